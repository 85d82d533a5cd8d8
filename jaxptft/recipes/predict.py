"""Predict the class of each row of a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro
from pydantic import Field

from jaxptft.recipes.finetune import Columns
from jaxptft.recipes.settings import Settings


class Config(Settings):
    """Predict the class of each row: jaxptft predict MODEL --data FILE --out FILE"""

    model: tyro.conf.Positional[str]
    """a run folder, a Hugging Face folder, a converted folder, or a name on the hub"""
    data: str
    """rows with a text (or a pair); labels are not needed and not read"""
    out: Path
    """a JSONL file: row, label, probabilities, in the order of the rows"""
    columns: Columns = Columns()
    id: str | None = None
    """a column whose values are carried into the predictions"""
    on_bad_row: Literal["error", "skip"] = "error"
    split: str | None = None
    """which split, of data that have several (default: the validation split)"""
    max_length: int | None = Field(default=None, ge=3)
    """longer texts are cut, and counted (default: as in the model's run, or what the model takes)"""
    batch_size: int = Field(default=64, ge=1)
    overwrite: bool = False
    """replace --out if it exists"""
    allow_bin: bool = False
    family: str | None = None


def run(config: Config, *, say: Callable[[str], None] = print) -> Path:
    """Write one JSON object a row: `row` (its line or number in the source), `label`, `probabilities` by label, and the
    value of the `id` column where one is named.

    The file appears whole or not at all. Raises FileExistsError when it exists and `overwrite` is not set.
    """
    from scipy.special import softmax

    from jaxptft import data
    from jaxptft.recipes.inference import Classifier
    from jaxptft.recipes.runtime import keep_compiled_programs

    if config.out.is_dir():
        raise IsADirectoryError(f"{config.out} is a folder; choose a file for --out")
    if config.out.exists() and not config.overwrite:
        raise FileExistsError(f"{config.out} exists; choose another --out, or pass --overwrite")
    if config.out.exists() and config.out.resolve() == Path(config.data).resolve():
        raise ValueError(f"--out and --data are both {config.out}; choose another --out")
    keep_compiled_programs()
    classifier = Classifier(config.model, family=config.family, allow_bin=config.allow_bin)
    columns = data.Columns(config.columns.text, config.columns.pair, id=config.id)
    split = data.pick_split(config.data, config.split)
    table = data.read_table(config.data, columns=columns, labelled=False, on_bad_row=config.on_bad_row, split=split)
    logits = classifier.logits(table, batch_size=config.batch_size, max_length=config.max_length, say=say)
    probabilities = softmax(logits.astype("float64"), axis=-1)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = config.out.with_name(f".{config.out.name}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            keys = table.keys or [None] * len(table)
            for row, key, values in zip(table.rows.tolist(), keys, probabilities, strict=True):
                by_name = {name: round(float(p), 6) for name, p in zip(classifier.names, values, strict=True)}
                line = {"row": row} | ({} if key is None else {"id": key})
                line |= {"label": classifier.names[int(values.argmax())], "probabilities": by_name}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        unfinished.replace(config.out)
    finally:
        unfinished.unlink(missing_ok=True)
    skipped = f", {table.report.skipped} bad rows skipped" if table.report.skipped else ""
    say(f"{len(table)} predictions in {config.out}{skipped}")
    return config.out
