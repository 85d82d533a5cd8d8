"""Hugging Face folders <-> converted folders, and what a conversion would do."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

from jaxptft.recipes.settings import Settings


class Source(Settings):
    """What the commands that read a Hugging Face folder share."""

    source: tyro.conf.Positional[Path]
    """a Hugging Face folder: config.json and weights (safetensors, sharded or not; flax_model.msgpack), or a run"""
    family: str | None = None
    """the architecture, where config.json names none"""
    heads: tuple[str, ...] = ("source",)
    """source: those of its architecture; none; or some of them by name (classifier, mlm ...)"""
    allow_bin: bool = False
    """read pytorch_model.bin (never through a raw unpickle)"""
    allow_unused: tuple[str, ...] = ()
    """patterns of tensors that may go unused"""
    allow_missing: tuple[str, ...] = ()
    """patterns of tensors that may be missing"""


class Inspect(Source):
    """Show what an import would use, leave and miss: jaxptft convert inspect SRC"""


class Import(Source):
    """Convert a Hugging Face folder to Flax parameters: jaxptft convert import SRC DST"""

    destination: tyro.conf.Positional[Path]
    """the folder to make: params.msgpack, jaxptft.json, tokenizer files"""
    overwrite: bool = False
    """replace a model that is there"""


class Export(Settings):
    """Convert back to a Hugging Face folder: jaxptft convert export SRC DST"""

    source: tyro.conf.Positional[Path]
    """a folder made by `jaxptft convert import`"""
    destination: tyro.conf.Positional[Path]
    """the folder to make: config.json, model.safetensors, tokenizer files"""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """of every tensor (default: what each was when it was imported)"""
    overwrite: bool = False
    """replace a model that is there"""


def inspect_source(config: Inspect, *, say: Callable[[str], None] = print) -> None:
    """Print the manifest; ValueError when an import would be refused."""
    from jaxptft import convert

    manifest = convert.inspect(_weights(config.source), **_options(config))
    say(str(manifest))
    if manifest.problems:
        raise ValueError(f"{config.source} would be refused: {len(manifest.problems)} problems, listed above")


def import_source(config: Import, *, say: Callable[[str], None] = print) -> None:
    """Convert, then print the manifest."""
    from jaxptft import convert

    options = _options(config)
    source = _weights(config.source)
    say(str(convert.import_folder(source, config.destination, overwrite=config.overwrite, **options)))


def export_source(config: Export, *, say: Callable[[str], None] = print) -> None:
    """Convert back, then print the manifest."""
    from jaxptft import convert

    options = {"overwrite": config.overwrite, "dtype": config.dtype}
    say(str(convert.export_folder(config.source, config.destination, **options)))


def _weights(source: Path) -> Path:
    """The folder to read: of a run, its model."""
    from jaxptft.recipes.model_source import locate

    return locate(source) if (source / "config.yaml").is_file() else source


def _options(config: Source) -> dict:
    names = {"source": "source", "none": ()}
    return {
        "family": config.family,
        "heads": names.get(" ".join(config.heads), config.heads),
        "allow_bin": config.allow_bin,
        "allow_unused": config.allow_unused,
        "allow_missing": config.allow_missing,
    }
