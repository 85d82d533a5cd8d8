"""Predict each row of a file: its class, its entities, its answer, as the model's task is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro
from pydantic import Field

from jaxptft.recipes.settings import Settings
from jaxptft.recipes.tasks.settings import Columns, Settled


class Config(Settings):
    """Predict each row: jaxptft predict MODEL --data FILE --out FILE"""

    model: tyro.conf.Positional[str]
    """a run folder, a Hugging Face folder, a converted folder, an exported program, or a name on the hub"""
    data: str
    """rows as the model was fine-tuned on; labels are not needed and not read"""
    out: Path
    """a JSONL file: a line for each row, in their order"""
    columns: Columns = Columns()
    settled: Settled = Settled()
    id: str | None = None
    """a column whose values are carried into the predictions"""
    on_bad_row: Literal["error", "skip"] = "error"
    split: str | None = None
    """which split, of data that have several (default: the validation split)"""
    max_length: int | None = Field(default=None, ge=3)
    """longer texts are cut, and counted (default: as in the model's run, or what the model takes)"""
    max_new_tokens: int = Field(default=64, ge=1)
    """of a response at most"""
    batch_size: int = Field(default=64, ge=1)
    overwrite: bool = False
    """replace --out if it exists"""
    allow_bin: bool = False
    family: str | None = None


def run(config: Config, *, say: Callable[[str], None] = print) -> Path:
    """Write one JSON object a row, of the kind that the model's task gives (see `jaxptft.recipes.tasks`).

    The file appears whole or not at all. Raises FileExistsError when it exists and `overwrite` is not set, and
    ValueError when a value is of another task than the model's.
    """
    from jaxptft import data
    from jaxptft.recipes.exported import open_any
    from jaxptft.recipes.runtime import keep_compiled_programs
    from jaxptft.recipes.tasks import module_of
    from jaxptft.recipes.tasks.options import refuse_unused

    if config.out.is_dir():
        raise IsADirectoryError(f"{config.out} is a folder; choose a file for --out")
    if config.out.exists() and not config.overwrite:
        raise FileExistsError(f"{config.out} exists; choose another --out, or pass --overwrite")
    if config.out.exists() and config.out.resolve() == Path(config.data).resolve():
        raise ValueError(f"--out and --data are both {config.out}; choose another --out")
    keep_compiled_programs()
    opened = open_any(config.model, family=config.family, allow_bin=config.allow_bin)
    if opened.preprocessing is None:
        data.refuse_absent_split(config.data, config.split)
    refuse_unused(config, opened.task)
    lines = module_of(opened.task).predict(opened, config, say=say)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = config.out.with_name(f".{config.out.name}.unfinished")
    count = 0
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
        unfinished.replace(config.out)
    finally:
        unfinished.unlink(missing_ok=True)
    say(f"{count} predictions in {config.out}")
    return config.out
