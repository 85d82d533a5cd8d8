"""Prune a fine-tuned model: fewer layers, heads and neurons, whose weights are really gone, or zeros in its matrices.

What is left is a Hugging Face folder that everything takes: fine-tune or distil it to win back what it lost.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import tyro
from pydantic import Field, model_validator

from jaxptft.recipes.settings import Settings
from jaxptft.recipes.tasks.settings import Columns


class Config(Settings):
    """Prune a fine-tuned model: jaxptft prune MODEL --out DIR --heads 8 --neurons 768"""

    model: tyro.conf.Positional[str]
    """a run folder, a Hugging Face folder, a converted folder, or a name on the hub"""
    out: Path
    """the folder to make"""
    layers: str | None = None
    """those to keep, such as 0,2,4 or 0-3,5; or top:4, bottom:4, spread:4"""
    heads: int | None = Field(default=None, ge=1)
    """how many each layer keeps"""
    heads_share: float | None = Field(default=None, gt=0, lt=1)
    """in place of heads: the share that all layers together keep, each at least one"""
    neurons: int | None = Field(default=None, ge=1)
    """how wide the feed-forward blocks stay"""
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """the share of smallest weights in the layers' matrices that become zero; their shapes stay"""
    scope: Literal["global", "layer"] = "global"
    """the share of sparsity is that of all together, or of each matrix"""
    importance: Literal["gradient", "weights"] = "gradient"
    """which heads and neurons stay: those whose gates move the loss of labelled rows most, or with large weights"""
    data: str | None = None
    """labelled rows for importance and the table (default: the run's evaluation rows)"""
    columns: Columns = Columns()
    split: str | None = None
    """which split, of data that have several (default: the validation split)"""
    rows: int = Field(default=256, ge=1)
    """how many rows importance is measured on, and answers compared on, at most"""
    calls: int = Field(default=30, ge=1)
    """how many calls a time is the median of"""
    overwrite: bool = False
    """replace a model that is there"""
    allow_bin: bool = False
    family: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        asked = (self.layers, self.heads, self.heads_share, self.neurons, self.sparsity)
        if all(value is None for value in asked):
            raise ValueError("nothing is to go; give layers, heads, heads_share, neurons or sparsity")
        if self.heads is not None and self.heads_share is not None:
            raise ValueError("heads and heads_share are both given; give one")
        if self.scope != "global" and self.sparsity is None:
            raise ValueError("scope is that of sparsity; give sparsity too")
        if self.data is None and (self.split is not None or self.columns != Columns()):
            raise ValueError("columns and split are those of data; give data too")
        return self


def run(config: Config, *, say: Callable[[str], None] = print) -> Path:
    """Write the folder, with what was kept, every head's importance and the table in `pruning.json`.

    Layers go first; importance is that of what then is left. The folder appears whole or not at all. Raises
    FileExistsError where it exists and `overwrite` is not set, and ValueError where the model has no such parts, or no
    labelled rows are known.
    """
    import json

    from jaxptft import __version__, convert
    from jaxptft.convert.staging import new_folder
    from jaxptft.recipes import export_formats as formats
    from jaxptft.recipes import pruned
    from jaxptft.recipes import quantized_table as tables
    from jaxptft.recipes.export_rows import rows_of
    from jaxptft.recipes.exported import is_quantized
    from jaxptft.recipes.inference import Opened
    from jaxptft.recipes.model_source import locate, refuse_place
    from jaxptft.recipes.quantize import evaluation_of
    from jaxptft.recipes.runtime import keep_compiled_programs

    if is_quantized(config.model):
        raise ValueError(f"{config.model} is quantized; prune the model that it was made from, then quantize")
    refuse_place(config.out, config.model, overwrite=config.overwrite)
    keep_compiled_programs()
    asked = evaluation_of(config)
    opened = Opened(config.model, family=config.family, allow_bin=config.allow_bin)
    made, kept = pruned.prune(config, opened, asked, say=say)
    with new_folder(config.out, overwrite=config.overwrite) as staging:
        folder = staging / "model"
        convert.save(folder, made, tokenizer_from=locate(config.model))
        for file in folder.iterdir():
            file.rename(staging / file.name)
        folder.rmdir()
        after = Opened(staging)
        batches, _ = rows_of(
            opened, asked.data, run=None, columns=asked.columns, split=asked.split, count=config.rows, say=say
        )
        sides = (
            tables.Side(opened, formats.live(opened), locate(config.model)),
            tables.Side(after, formats.live(after), staging),
        )
        found = tables.measure(*sides, batches, request=asked, calls=config.calls)
        record: dict[str, Any] = {"model": config.model, **kept, **found, "jaxptft": __version__}
        (staging / "pruning.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    say(tables.shown(f"{config.model} pruned, on {asked.data}", found))
    say(f"written to {config.out}")
    return config.out
