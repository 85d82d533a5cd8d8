"""Evaluate a classifier on labelled rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro
from pydantic import Field

from jaxptft.recipes import report as reports
from jaxptft.recipes.finetune import Columns
from jaxptft.recipes.settings import Settings


class Config(Settings):
    """Evaluate a classifier on labelled rows: jaxptft evaluate MODEL --data FILE"""

    model: tyro.conf.Positional[str]
    """a run folder, a Hugging Face folder, a converted folder, or a name on the hub"""
    data: str
    """labelled rows, as `finetune --train` takes them"""
    out: Path | None = None
    """a JSON file for the numbers"""
    columns: Columns = Columns()
    on_bad_row: Literal["error", "skip"] = "error"
    split: str | None = None
    """which split, of data that have several (default: the validation split)"""
    max_length: int | None = Field(default=None, ge=3)
    """longer texts are cut, and counted (default: as in the model's run, or what the model takes)"""
    batch_size: int = Field(default=64, ge=1)
    allow_bin: bool = False
    family: str | None = None


def run(config: Config, *, say: Callable[[str], None] = print) -> reports.Report:
    """Report accuracy, F1 and the confusion matrix; each row counts exactly once.

    Raises ValueError when the model has no classification head, or a row's label is none of the model's.
    """
    from jaxptft import data
    from jaxptft.recipes.inference import Classifier
    from jaxptft.recipes.runtime import keep_compiled_programs

    if config.out is not None and config.out.exists():
        raise FileExistsError(f"{config.out} exists; choose another --out")
    keep_compiled_programs()
    classifier = Classifier(config.model, family=config.family, allow_bin=config.allow_bin)
    columns = data.Columns(config.columns.text, config.columns.pair, config.columns.label)
    split = data.pick_split(config.data, config.split)
    table = data.read_table(
        config.data, columns=columns, names=classifier.names, on_bad_row=config.on_bad_row, split=split
    )
    logits = classifier.logits(table, batch_size=config.batch_size, max_length=config.max_length, say=say)
    assert table.labels is not None
    report = reports.classification_report(logits, table.labels, classifier.names)
    say(
        f"{len(table)} rows from {table.source}" + (f", {table.report.skipped} skipped" if table.report.skipped else "")
    )
    say(report.text)
    say(reports.confusion_text(report))
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    return report
