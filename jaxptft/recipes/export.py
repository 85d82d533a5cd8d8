"""Export a fine-tuned model: a program for JAX, an ONNX graph, a Hugging Face folder, or plain parameters.

What was written is read back from disk and compared with the model on real rows before it takes its place.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro
from pydantic import Field, model_validator

from jaxptft.recipes.settings import Settings
from jaxptft.recipes.tasks.settings import Columns

TOLERANCES = {"stablehlo": 1e-5, "hf": 1e-5, "flax": 1e-5, "onnx": 1e-4}
ROUNDING = 0.02  # of quantized inputs: the last bit of one decides between two integers


class Config(Settings):
    """Export a fine-tuned model: jaxptft export MODEL --format stablehlo --out DIR"""

    model: tyro.conf.Positional[str]
    """a run folder, a Hugging Face folder, a converted folder, a quantized one, or a name on the hub"""
    format: Literal["stablehlo", "onnx", "hf", "flax"]
    """a program that jax alone runs, an ONNX graph, a Hugging Face folder with a card, or msgpack of parameters"""
    out: Path
    """the folder to make"""
    data: str | None = None
    """rows to compare on, as `predict` reads them (default: the run's evaluation rows, or fixed examples)"""
    columns: Columns = Columns()
    split: str | None = None
    """which split, of data that have several (default: the validation split)"""
    rows: int = Field(default=256, ge=1)
    """how many rows are compared, at most"""
    tolerance: float | None = Field(default=None, ge=0)
    """how far outputs may be from the model's, as a share of the largest one where that is above 1 (default: 1e-5,
    for onnx 1e-4)"""
    license: str | None = None
    """for the model card, as the hub writes it, such as apache-2.0 (default: unknown)"""
    language: tuple[str, ...] = ()
    """for the model card, likewise, such as en"""
    overwrite: bool = False
    """replace a model that is there"""
    allow_bin: bool = False
    family: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.format != "hf" and (self.license is not None or self.language):
            raise ValueError("license and language are for the model card, which the format hf has; leave them out")
        if self.data is None and (self.split is not None or self.columns != Columns()):
            raise ValueError("columns and split are those of data; give data too")
        return self


def run(config: Config, *, say: Callable[[str], None] = print) -> Path:
    """Write the folder, with `export.json` (what was compared, and how far apart it was) and `SHA256SUMS` in it.

    It appears whole or not at all. Raises FileExistsError where it exists and `overwrite` is not set, and ValueError
    where the format cannot hold the model's task, or what was read back differs from the model.
    """
    import json

    from jaxptft import __version__, convert, export
    from jaxptft.convert.staging import new_folder
    from jaxptft.recipes import export_formats as formats
    from jaxptft.recipes.export_rows import rows_of
    from jaxptft.recipes.exported import OpenedQuantized, is_quantized
    from jaxptft.recipes.inference import Opened
    from jaxptft.recipes.model_card import write_card
    from jaxptft.recipes.model_source import refuse_place
    from jaxptft.recipes.runtime import keep_compiled_programs

    refuse_place(config.out, config.model, overwrite=config.overwrite)
    if config.format == "onnx":
        export.require_onnx()
    keep_compiled_programs()
    if is_quantized(config.model):
        if config.format != "stablehlo":
            raise ValueError(
                f"{config.model} is quantized, and {config.format} does not hold int8; export it as stablehlo, or the "
                "model that it was made from"
            )
        opened = OpenedQuantized(Path(config.model))
        rounds_inputs = opened.mode != "weights"
    else:
        opened = Opened(config.model, family=config.family, allow_bin=config.allow_bin)
        rounds_inputs = False
    formats.refuse_task(opened, config.format)
    live = formats.live(opened)
    folder = Path(config.model)
    of_run = folder if (folder / "config.yaml").is_file() else None
    asked = {"columns": config.columns, "split": config.split, "count": config.rows}
    batches, origin = rows_of(opened, config.data, run=of_run, say=say, **asked)
    tolerance = TOLERANCES[config.format] if config.tolerance is None else config.tolerance
    if rounds_inputs and config.tolerance is None:
        tolerance = ROUNDING

    with new_folder(config.out, overwrite=config.overwrite) as staging:
        if config.format == "hf":
            convert.save(staging, opened.checkpoint)
            card = {"license": config.license or "unknown", "language": config.language}
            write_card(staging, opened, run=of_run, name=config.out.name, **card)
        else:
            choices = max((b["valid_choices"].shape[1] for b in batches if "valid_choices" in b), default=2)
            formats.write(staging, opened, live, config.format, choices=choices, say=say)
        export.write_sums(staging)
        export.verify(staging, ())
        found = formats.compare(live, formats.read_back(staging, config.format), batches)
        told = ", ".join(f"{name} {difference:.2g}" for name, difference in found.differences.items())
        where = f"{found.rows} rows of {origin}"
        if not found.scaled <= tolerance:
            raise ValueError(
                f"the {config.format} export differs from the model by {told} on {where}, more than the tolerance of "
                f"{tolerance:g}, so it was not kept"
            )
        record = {
            "format": config.format,
            "task": opened.task,
            "model": config.model,
            "compared": {"rows": found.rows, "source": origin, "max_difference": found.differences},
            "tolerance": tolerance,
            "jaxptft": __version__,
        }
        (staging / "export.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        export.write_sums(staging)
    say(f"largest difference from the model on {where}: {told}")
    say(f"written to {config.out}")
    return config.out
