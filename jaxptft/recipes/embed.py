"""Write the vector that a model's backbone makes of each row, text or image."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from pydantic import Field

from jaxptft.recipes.settings import Settings
from jaxptft.recipes.tasks.settings import Columns


class Config(Settings):
    """The vector of each row: jaxptft embed MODEL --data ROWS --out features.npz"""

    model: tyro.conf.Positional[str]
    """a run folder, a Hugging Face folder, a converted folder, or a name on the hub"""
    data: str
    """rows of text, or images, as the model reads them; labels are not needed"""
    out: Path
    """a .npz file: features [rows, width], rows (where each stands in the data), and any labels and their names"""
    pooling: Literal["mean", "first", "last", "pooler"] | None = None
    """what of a row's hidden states the vector is (default: what a classifier of the family reads)"""
    columns: Columns = Columns()
    on_bad_row: Literal["error", "skip"] = "error"
    split: str | None = None
    """which split, of data that have several (default: the validation split)"""
    max_length: int | None = Field(default=None, ge=3)
    """longer texts are cut, and counted (default: what the model takes)"""
    batch_size: int = Field(default=64, ge=1)
    overwrite: bool = False
    """replace --out if it exists"""
    allow_bin: bool = False
    family: str | None = None


def run(config: Config, *, say: Callable[[str], None] = print) -> Path:
    """Write float32 features, int64 rows, and where the data has classes int32 labels and their names.

    The file appears whole or not at all. Raises FileExistsError when it exists and `overwrite` is not set, ValueError
    for a file that is not called .npz and for rows that do not fit, FloatingPointError for a model that gives NaN.
    """
    from jaxptft.recipes.features import Backbone
    from jaxptft.recipes.runtime import keep_compiled_programs

    if config.out.suffix != ".npz":
        raise ValueError(f"--out is {config.out}; give it a name that ends in .npz")
    if config.out.exists() and not config.overwrite:
        raise FileExistsError(f"{config.out} exists; choose another --out, or pass --overwrite")
    keep_compiled_programs()
    backbone = Backbone(config.model, pooling=config.pooling, family=config.family, allow_bin=config.allow_bin)
    rows = backbone.read(
        config.data,
        split=config.split,
        columns=config.columns,
        on_bad_row=config.on_bad_row,
        max_length=config.max_length,
        batch_size=config.batch_size,
        say=say,
    )
    found: dict[str, np.ndarray] = {"features": backbone.vectors(rows), "rows": np.asarray(rows.places, np.int64)}
    if rows.labels is not None:
        found |= {"labels": rows.labels, "names": np.array(rows.names)}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = config.out.with_name(f".{config.out.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, **found)  # type: ignore[arg-type]
        unfinished.replace(config.out)
    finally:
        unfinished.unlink(missing_ok=True)
    count, width = found["features"].shape
    say(f"{count} vectors of {width} numbers in {config.out}")
    return config.out
