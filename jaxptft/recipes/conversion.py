"""Hugging Face folders <-> converted folders, what a conversion would do, and models changed before they learn on."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from pydantic import model_validator

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


class Change(Source):
    """Make another model of a model: jaxptft convert change SRC --out DIR --keep-layers 0,2,4

    What is asked for is done in the order of the flags below: layers are left out, then added (numbered as they are by
    then), then the vocabulary, a new head, and parameters that start anew.
    """

    out: Path
    """the Hugging Face folder to make"""
    keep_layers: str | None = None
    """the layers to keep, such as 0,2,4 or 0-3,5"""
    drop_layers: str | None = None
    """the layers to leave out, in place of those to keep"""
    add_layers: str | None = None
    """the layers behind each of which a new one is put"""
    new_layers: Literal["copy", "identity"] = "copy"
    """new layers are copies, or compute nothing yet (GPT-2, ModernBERT)"""
    vocab_size: int | None = None
    """rows of the word table; new ones come last"""
    new_rows: Literal["mean", "init"] = "mean"
    """new rows are near the mean of the old ones, or as in a new model"""
    tokenizer: Path | None = None
    """a folder whose tokenizer takes the place of the model's"""
    new_head: str | None = None
    """a task whose head takes the place of the model's (classification, masked_lm ...), or none"""
    classes: int | None = None
    """outputs of the new head"""
    labels: tuple[str, ...] = ()
    """their names"""
    reinit: tuple[str, ...] = ()
    """patterns of parameters that start anew, such as backbone/layer_2/**"""
    seed: int = 0
    """of all that is drawn"""
    overwrite: bool = False
    """replace a model that is there"""

    @model_validator(mode="after")
    def _fits(self) -> "Change":
        if self.keep_layers is not None and self.drop_layers is not None:
            raise ValueError("keep_layers and drop_layers were both given; give one of them")
        if (self.classes is not None or self.labels) and self.new_head in (None, "none"):
            raise ValueError("classes and labels are those of a new head; give new_head too")
        asked = (self.keep_layers, self.drop_layers, self.add_layers, self.vocab_size, self.tokenizer, self.new_head)
        if not self.reinit and all(value is None for value in asked):
            raise ValueError("nothing is to change; give keep_layers, vocab_size, new_head, reinit or another")
        for name in ("keep_layers", "drop_layers", "add_layers"):
            numbers_of(name, getattr(self, name) or "0")
        return self


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


def change_source(config: Change, *, say: Callable[[str], None] = print) -> None:
    """Change the model, write it, and say what became of it."""
    import jax

    from jaxptft import convert
    from jaxptft.recipes.model_source import open_model

    options = _options(config)
    _, source = open_model(config.source, **options)
    words, head, leaves = jax.random.split(jax.random.key(config.seed), 3)
    changed = source
    if config.keep_layers is not None:
        changed = convert.keep_layers(changed, numbers_of("keep_layers", config.keep_layers))
    if config.drop_layers is not None:
        changed = convert.drop_layers(changed, numbers_of("drop_layers", config.drop_layers))
    if config.add_layers is not None:
        changed = convert.add_layers(changed, numbers_of("add_layers", config.add_layers), start=config.new_layers)
    if config.vocab_size is not None:
        changed = convert.resize_vocabulary(changed, config.vocab_size, rng=words, new_rows=config.new_rows)
    if config.new_head == "none":
        changed = convert.drop_heads(changed)
    elif config.new_head is not None:
        named = {"classes": config.classes, "labels": list(config.labels) or None}
        changed = convert.swap_head(changed, config.new_head, rng=head, **named)
    anew = [path for path, flag in _chosen(changed.params, config.reinit) if flag]
    if config.reinit:
        changed = convert.reinitialize(changed, set(anew).__contains__, rng=leaves)
    _check_tokenizer(config, changed)
    convert.save(config.out, changed, tokenizer_from=config.tokenizer, overwrite=config.overwrite)
    for name, one, other in (
        ("layers", source.config.layers, changed.config.layers),
        ("vocabulary", source.config.vocab_size, changed.config.vocab_size),
        ("heads", *(", ".join(sorted(model.params.keys() - {"backbone"})) or "none" for model in (source, changed))),
        (
            "parameters",
            *(f"{sum(leaf.size for leaf in jax.tree.leaves(model.params)):,}" for model in (source, changed)),
        ),
    ):
        say(f"{name}: {one} -> {other}" if one != other else f"{name}: {one}")
    if anew:
        say(f"started anew: {len(anew)} parameters, {anew[0]} first")
    say(f"written to {config.out}")


def _chosen(params: Any, patterns: Sequence[str]) -> list[tuple[str, bool]]:
    import jax

    from jaxptft import optim

    return list(zip(optim.paths(params), jax.tree.leaves(optim.mask(params, patterns)), strict=True))


def _check_tokenizer(config: Change, changed: Any) -> None:
    """ValueError where the tokenizer that comes along gives ids the model has no rows for."""
    if config.vocab_size is None and config.tokenizer is None:
        return
    from jaxptft import data

    folder = config.tokenizer or (changed.tokenizer_files[0].parent if changed.tokenizer_files else None)
    if folder is None:
        return
    ids, rows = max(data.load_tokenizer(folder).get_vocab().values()) + 1, changed.config.vocab_size
    if ids > rows:
        raise ValueError(
            f"the tokenizer in {folder} has {ids} ids where the model would have {rows} rows; "
            f"give a vocab_size of {ids}"
        )


def numbers_of(name: str, text: str) -> list[int]:
    """0,2,4-6 -> [0, 2, 4, 5, 6]"""
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise ValueError(f"{name} is {text!r}; expected numbers of layers such as 0,2,4 or 0-3,5")
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return found


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
