"""Token ids and labels out of range, which JAX would clamp or turn into NaN, and tokenizers that do not fit a model.

python experiments/reliability/ranges.py --lane full    # results/ranges_full.json
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
from folders.sound import FIELDS, WORDS, tokenizer_files, whole_folder, write_folder
from trials import Trials, main

from jaxptft import data
from jaxptft.cli import main as command_line

DRAWS = {"fast": 100, "full": 1000}
VOCAB, CLASSES = len(WORDS), 3


def ids_and_labels(trials: Trials, lane: str) -> None:
    """One bad value at a drawn place of a sound table: refused, its row named, before there is a batch."""
    with tempfile.TemporaryDirectory() as made:
        os.environ["JAXPTFT_CACHE"] = f"{made}/cache"
        tokenizer = data.load_tokenizer(write_folder(Path(made) / "model", whole_folder("one file")))
        texts = [" ".join(WORDS[5 : 5 + 1 + number % 6]) for number in range(40)]
        tokens = data.tokenize(data.make_table(texts, source="rows"), tokenizer, 8)
        data.check_tokens(tokens, VOCAB)
        images = data.make_images(np.zeros((40, 4, 4, 1), np.uint8), names=None)
        for draw in range(DRAWS[lane]):
            _spoil(trials, np.random.default_rng((7, draw)), tokens, images)


def _spoil(trials: Trials, drawn: np.random.Generator, tokens: data.Tokenized, images: data.Images) -> None:
    row, sound = int(drawn.integers(40)), drawn.integers(0, CLASSES, 40)
    options: dict[str, Any] = {"batch_size": 4, "classes": CLASSES}

    bad_tokens = tokens.tokens.copy()
    place = int(drawn.integers(len(bad_tokens)))
    owner = int(np.searchsorted(tokens.offsets, place, "right")) - 1
    bad_tokens[place] = drawn.choice([-1, VOCAB, VOCAB + 1, 2**31 - 1, -(2**31)])
    spoilt = replace(tokens, tokens=bad_tokens)
    _refused(trials, "token id", lambda: data.check_tokens(spoilt, VOCAB), f"example {owner} has token id")

    labels = sound.copy()
    labels[row] = drawn.choice([-1, CLASSES, 2**31, -(2**40), 10**9])
    told = f"example {row} has label"
    _refused(trials, "label, Batches", lambda: data.Batches(tokens, labels, **options), told)
    _refused(trials, "label, PackedBatches", lambda: data.PackedBatches(tokens, labels, length=16, **options), told)
    _refused(trials, "label, ImageBatches", lambda: data.ImageBatches(images, labels, **options), told)
    for values, what in ((sound + 0.5, "whole numbers"), (sound[:-1], "expected"), (sound[:, None], "expected")):
        _refused(trials, "labels of another kind", lambda v=values: data.Batches(tokens, v, **options), what)

    two = bool(drawn.integers(2))
    targets = drawn.normal(size=(40, 2) if two else 40).astype(np.float64)
    targets[(row, 1) if two else row] = drawn.choice([np.nan, np.inf, -np.inf, 1e39])
    told = f"example {row} has target"
    _refused(trials, "target", lambda: data.Batches(tokens, batch_size=4, targets=targets), told)

    weights = drawn.random(40)
    weights[row] = drawn.choice([-1.0, np.nan, np.inf])
    told = f"example {row} has weight"
    _refused(trials, "sampling weight", lambda: data.Batches(tokens, sound, batch_size=4, weights=weights), told)


def models(trials: Trials, lane: str) -> None:
    """Tokenizers that have more words than the model, and rows that are longer: one line, and no step was taken."""
    for extra in (1, 2, 40) if lane == "full" else (1,):
        for command in ("finetune", "pretrain"):
            with tempfile.TemporaryDirectory() as made:
                folder = Path(made)
                os.environ["JAXPTFT_CACHE"] = f"{made}/cache"
                files = whole_folder("one file") | tokenizer_files([*WORDS, *(f"w{number}" for number in range(extra))])
                model = write_folder(folder / "model", files)
                (folder / "rows.csv").write_text("text,label\n" + "a b,x\nc d,y\n" * 8)
                (folder / "corpus.txt").write_text("a b c d e f\n" * 40)
                flags = {
                    "finetune": ["--train", f"{folder}/rows.csv", "--max-length", "8", "--steps", "2"],
                    "pretrain": ["--corpus", f"{folder}/corpus.txt", "--max-length", "8", "--steps", "2"],
                }[command]
                out = ["--out", f"{folder}/run"]
                told = f"the tokenizer has {VOCAB + extra} ids, and the model's embedding table {VOCAB} rows"
                _command(trials, f"{command}, larger tokenizer", [command, "--model", str(model), *flags, *out], told)
                trials.check(not (folder / "run").exists(), f"{command}: the run was begun", of="nothing written")
                long = [*flags, "--max-length", str(FIELDS["max_position_embeddings"] + extra)]
                sound = write_folder(folder / "sound", whole_folder("one file"))
                _command(trials, f"{command}, too long", [command, "--model", str(sound), *long, *out], "positions")
                trials.check(not (folder / "run").exists(), f"{command}: the run was begun", of="nothing written")


def _refused(trials: Trials, kind: str, do: Callable[[], Any], told: str) -> None:
    try:
        do()
    except ValueError as error:
        well = told in str(error) and "\n" not in str(error)
        trials.check(well, f"{kind}: said {str(error)!r}, expected {told!r}", of=kind)
    except Exception as error:
        trials.failed(f"{kind}: {type(error).__name__}: {error}")
    else:
        trials.failed(f"{kind}: nothing was refused")


def _command(trials: Trials, kind: str, flags: list[str], told: str) -> None:
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        status = command_line(flags)
    lines = [line for line in err.getvalue().splitlines() if line.startswith("jaxptft: error: ")]
    well = status == 2 and len(lines) == 1 and told in lines[0]
    trials.check(well, f"{kind}: status {status}, said {json.dumps(err.getvalue()[-500:])}", of=kind)


if __name__ == "__main__":
    sys.exit(main({"ids_and_labels": ids_and_labels, "models": models}, script=__file__))
