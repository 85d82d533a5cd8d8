"""Evaluate a fine-tuned model on labelled rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro
from pydantic import Field, model_validator

from jaxptft.recipes import report as reports
from jaxptft.recipes.settings import Settings
from jaxptft.recipes.tasks.settings import Columns, MultiLabel, Settled, Tags


class Config(Settings):
    """Evaluate a fine-tuned model on labelled rows: jaxptft evaluate MODEL --data FILE"""

    model: tyro.conf.Positional[str]
    """a run folder, a Hugging Face folder, a converted folder, an exported program, or a name on the hub"""
    data: str
    """labelled rows, as `finetune --train` takes them"""
    out: Path | None = None
    """a JSON file for the numbers"""
    columns: Columns = Columns()
    labels: MultiLabel = MultiLabel()
    tags: Tags = Tags()
    settled: Settled = Settled()
    on_bad_row: Literal["error", "skip"] = "error"
    split: str | None = None
    """which split, of data that have several (default: the validation split)"""
    max_length: int | None = Field(default=None, ge=3)
    """longer texts are cut, and counted (default: as in the model's run, or what the model takes)"""
    batch_size: int = Field(default=64, ge=1)
    allow_bin: bool = False
    family: str | None = None

    @model_validator(mode="after")
    def _settled_before(self) -> "Config":
        if self.labels.threshold != "common" or self.tags.learn is not None or self.tags.label_all_pieces:
            raise ValueError(
                "labels.threshold, tags.learn and tags.label_all_pieces are of a fine-tuning; leave them out"
            )
        return self


def run(config: Config, *, say: Callable[[str], None] = print) -> reports.Report:
    """Report how good the model is at its task; each row counts exactly once.

    Raises ValueError when the model has no head of a task, a value is of another task, or a row does not fit.
    """
    from jaxptft import data
    from jaxptft.recipes.exported import open_any
    from jaxptft.recipes.runtime import keep_compiled_programs
    from jaxptft.recipes.tasks import module_of
    from jaxptft.recipes.tasks.options import refuse_unused

    if config.out is not None and config.out.exists():
        raise FileExistsError(f"{config.out} exists; choose another --out")
    keep_compiled_programs()
    opened = open_any(config.model, family=config.family, allow_bin=config.allow_bin)
    if opened.preprocessing is None:
        data.refuse_absent_split(config.data, config.split)
    refuse_unused(config, opened.task)
    report = module_of(opened.task).evaluate(opened, config, say=say)
    say(report.text)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    return report
