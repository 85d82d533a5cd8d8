"""Quantize a fine-tuned model: int8 matrices in the place of float32 ones, and what that costs and gains.

The folder is asked by `predict` and `evaluate`, and exported by `export --format stablehlo`. It is read back from disk
before it is measured.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import tyro
from pydantic import Field, model_validator

from jaxptft.recipes.settings import Settings
from jaxptft.recipes.tasks.settings import Columns


class Config(Settings):
    """Quantize a fine-tuned model to int8: jaxptft quantize MODEL --out DIR"""

    model: tyro.conf.Positional[str]
    """a run folder, a Hugging Face folder, a converted folder, or a name on the hub"""
    out: Path
    """the folder to make"""
    mode: Literal["auto", "weights", "dynamic", "static"] = "auto"
    """weights: int8 in memory, float as they work; dynamic: inputs are int8 too, a scale a token; static: with one
    range a layer, from --calibrate; auto: weights or dynamic, whichever is faster here"""
    patterns: tuple[str, ...] = ("backbone/**",)
    """which projections, by the paths of their kernels (`**` takes the head too)"""
    embeddings: bool = True
    """the tables of the embeddings too, a scale a row"""
    clip: Literal["max", "mse"] = "max"
    """a scale reaches the largest weight, or leaves the least squared error"""
    calibrate: str | None = None
    """rows that the ranges of static are measured on"""
    percentile: float = Field(default=100.0, gt=50, le=100)
    """how many in a hundred of a layer's inputs its range of static holds (100: all)"""
    data: str | None = None
    """labelled rows for the table (default: the run's evaluation rows)"""
    columns: Columns = Columns()
    split: str | None = None
    """which split, of data that have several (default: the validation split)"""
    rows: int = Field(default=256, ge=1)
    """how many rows ranges are measured on, and answers compared on, at most"""
    calls: int = Field(default=30, ge=1)
    """how many calls a time is the median of"""
    overwrite: bool = False
    """replace a model that is there"""
    allow_bin: bool = False
    family: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if (self.mode == "static") != (self.calibrate is not None):
            raise ValueError("mode static and calibrate belong together; give both, or neither")
        if self.percentile != 100 and self.mode != "static":
            raise ValueError("percentile is of the ranges of mode static; leave it out")
        if self.data is None and (self.split is not None or self.columns != Columns()):
            raise ValueError("columns and split are those of data; give data too")
        return self


def run(config: Config, *, say: Callable[[str], None] = print) -> Path:
    """Write the folder, with the table in `quantization.json` and the `SHA256SUMS` of its files.

    It appears whole or not at all. Raises FileExistsError where it exists and `overwrite` is not set, and ValueError
    where the model is quantized already, no matrix is chosen, or there are no labelled rows.
    """
    import copy
    import json

    from jaxptft import __version__, export
    from jaxptft.convert.staging import new_folder
    from jaxptft.recipes import export_formats as formats
    from jaxptft.recipes import quantized_table as tables
    from jaxptft.recipes.export_rows import rows_of
    from jaxptft.recipes.exported import OpenedQuantized, is_quantized
    from jaxptft.recipes.inference import Opened
    from jaxptft.recipes.model_source import QUANTIZATION, locate, refuse_place
    from jaxptft.recipes.runtime import keep_compiled_programs

    if is_quantized(config.model):
        raise ValueError(f"{config.model} is quantized already; give the model that it was made from")
    refuse_place(config.out, config.model, overwrite=config.overwrite)
    keep_compiled_programs()
    asked = evaluation_of(config)
    opened = Opened(config.model, family=config.family, allow_bin=config.allow_bin)
    if opened.task not in export.TASKS:
        raise ValueError(
            f"{opened.source} is for {opened.task}, and only tasks of one run of the model a row can be quantized"
        )
    batches, _ = rows_of(
        opened, asked.data, run=None, columns=asked.columns, split=asked.split, count=config.rows, say=say
    )
    before = formats.live(opened)
    paths = _chosen(config, before, batches[0])
    ranges = None
    if config.calibrate is not None:
        options: dict[str, Any] = {"columns": asked.columns, "split": None, "count": config.rows, "say": say}
        rows = rows_of(opened, config.calibrate, run=None, **options)[0]
        ranges = tables.ranges(before, rows, percentile=config.percentile)
    changed = copy.copy(opened)
    changed.params = export.quantize(opened.params, paths, clip=config.clip, ranges=ranges)
    mode, why = config.mode, None
    if config.mode == "auto":
        mode, why = tables.faster(before, changed.params, batches[0], calls=config.calls)
        say(why)

    with new_folder(config.out, overwrite=config.overwrite) as staging:
        about = {"mode": mode, "clip": config.clip, "patterns": list(config.patterns), "embeddings": config.embeddings}
        formats.write(staging, changed, before, "int8", quantization=about)
        (staging / QUANTIZATION).write_text("{}\n", encoding="utf-8")
        export.write_sums(staging)
        made = OpenedQuantized(staging)
        sides = (tables.Side(opened, before, locate(config.model)), tables.Side(made, formats.live(made), staging))
        found = tables.measure(*sides, batches, request=asked, calls=config.calls)
        record = {
            "model": config.model,
            **about,
            "percentile": config.percentile,
            "why": why,
            "matrices": paths,
            **found,
            "jaxptft": __version__,
        }
        (staging / QUANTIZATION).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        export.write_sums(staging)
    say(tables.shown(f"{len(paths)} matrices as int8, mode {mode}, on {asked.data}", found))
    say(f"written to {config.out}")
    return config.out


def evaluation_of(config: Any) -> Any:
    """What `evaluate` is asked: the rows given, or those that the run chose its best model on."""
    from jaxptft.recipes import evaluate
    from jaxptft.recipes.settings import build, read_yaml

    shared: dict[str, Any] = {"model": config.model, "allow_bin": config.allow_bin, "family": config.family}
    if config.data is not None:
        return evaluate.Config(data=config.data, columns=config.columns, split=config.split, **shared)
    file = Path(config.model) / "config.yaml"
    values = read_yaml(file) if file.is_file() else {}
    recorded = values.get("eval")
    if not isinstance(recorded, str) or not Path(recorded).exists():
        raise ValueError(f"no evaluation rows of {config.model} are known, or they have moved; give --data")
    return evaluate.Config(data=recorded, columns=build(Columns, values.get("columns") or {}), **shared)


def _chosen(config: Config, live: Any, batch: Any) -> list[str]:
    """The paths of the matrices to quantize; ValueError where a pattern takes no projection, or there is none."""
    from jaxptft import models, optim

    able = models.int8_paths(live.function, live.params, {name: batch[name] for name in live.inputs})
    kernels = [path for path in able if path.endswith("kernel")]
    for pattern in config.patterns:
        if not any(optim.matches(pattern, path) for path in kernels):
            near = f"such as {kernels[0]}" if kernels else "of which the model has none"
            raise ValueError(f"patterns: {pattern!r} takes none of the model's projections, {near}")
    chosen = [path for path in kernels if any(optim.matches(pattern, path) for pattern in config.patterns)]
    if config.embeddings:
        chosen += [path for path in able if path.endswith("embedding")]
    if not chosen:
        raise ValueError("nothing to quantize: patterns is empty and embeddings is off")
    return chosen
