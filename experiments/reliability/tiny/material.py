"""What tiny runs learn from: sentences whose animal decides the verb, digits of 8 x 8 pixels, and tokenizers."""

import csv
import json
from pathlib import Path

import numpy as np

ANIMALS = {"cat": "sat on", "dog": "ran under"}
WORDS = ("good", "bad")


def sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        animal = str(rng.choice(list(ANIMALS)))
        first, place, word = rng.choice(["The", "A"]), rng.choice(["mat", "tree", "old mat"]), rng.choice(WORDS)
        found.append(f"{first} {word} {animal} {ANIMALS[animal]} the {place} .")
    return found


def write_corpus(path: Path, *, documents: int, seed: int) -> Path:
    """Documents of four sentences, each on its line, with a blank line between two documents."""
    lines = sentences(4 * documents, seed)
    path.write_text("\n\n".join("\n".join(lines[4 * at : 4 * at + 4]) for at in range(documents)) + "\n")
    return path


def write_uneven(path: Path, *, documents: int, seed: int) -> Path:
    """Documents of 1 to 8 words, one a line."""
    rng = np.random.default_rng(seed)
    lines = (sentence.split()[: rng.integers(1, 9)] for sentence in sentences(documents, seed))
    path.write_text("".join(" ".join(words) + "\n" for words in lines))
    return path


def write_classes(path: Path, *, rows: int, seed: int) -> Path:
    """The class is the word, good or bad."""
    texts = sentences(rows, seed)
    return _write_table(path, "label", [(text, text.split()[1]) for text in texts])


def write_scores(path: Path, *, rows: int, seed: int) -> Path:
    """The score is the number of letters."""
    return _write_table(path, "score", [(text, str(len(text) / 10)) for text in sentences(rows, seed)])


def _write_table(path: Path, label: str, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", label), *rows])
    return path


def write_tags(path: Path, *, rows: int, seed: int) -> Path:
    """Animals are entities."""
    lines = []
    for text in sentences(rows, seed):
        words = text.split()
        tags = ["B-ANIMAL" if word in ANIMALS else "O" for word in words]
        lines.append(json.dumps({"tokens": words, "ner_tags": tags}))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_digits(folder: Path) -> Path:
    """PNG files of scikit-learn's digits 0, 1 and 4, twelve of each, in a folder a class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    flat, classes = load_digits(return_X_y=True)
    for digit in (0, 1, 4):
        place = folder / str(digit)
        place.mkdir(parents=True)
        pictures = (np.asarray(flat)[classes == digit].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        for number, picture in enumerate(pictures[:12]):
            Image.fromarray(picture).save(place / f"{number:02}.png")
    return folder


def write_tokenizer(folder: Path, corpus: Path, *, family: str) -> Path:
    from jaxptft.recipes import tokenizer_train

    config = tokenizer_train.Config(
        corpus=(str(corpus),),
        out=folder,
        family=family,  # pyright: ignore[reportArgumentType]
        vocab_size=300 if family == "gpt2" else 60,
        lowercase=True,
        documents="blank-line",
        max_length=32,
    )
    tokenizer_train.run(config, say=lambda text: None)
    return folder
