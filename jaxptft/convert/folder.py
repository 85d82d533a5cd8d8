"""Model folders <-> checkpoints in memory: Hugging Face's folders both ways, ours through `native`."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as shown
from typing import Any, NamedTuple

import numpy as np

from jaxptft.convert import engine
from jaxptft.convert.checkpoint import Checkpoint
from jaxptft.convert.families import FAMILIES, find_family
from jaxptft.convert.heads import Heads, check_heads, find_architecture
from jaxptft.convert.hf_config import read_json, read_labels
from jaxptft.convert.manifest import Manifest
from jaxptft.convert.match import match
from jaxptft.convert.native import DESCRIPTION, read_native, write_native
from jaxptft.convert.rules import Config, Family
from jaxptft.convert.slimming import KEPT, narrowed, whole_config, widened
from jaxptft.convert.staging import new_folder, tokenizer_files
from jaxptft.convert.tensors import read_tensors, write_tensors
from jaxptft.models import Params


def load(
    folder: str | Path,
    *,
    labels: Sequence[str] | None = None,
    heads: Heads = "source",
    family: str | None = None,
    allow_bin: bool = False,
    allow_unused: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
) -> Checkpoint:
    """Reads a Hugging Face folder, or one of our own (`import_folder`).

    `heads` "source" takes the heads of the architecture that config.json names, a tuple those of its names that the
    folder has (each a key of params: "classifier", "mlm"), () none: what is left aside comes back on export. `labels`
    renames the classes. `family` stands in for an absent `model_type`. The patterns are fnmatch over tensor names:
    `allow_unused` lets unknown tensors be left aside, `allow_missing` lets table tensors be absent (an encoder saved
    without its pooler: "pooler.*"); fill the gaps with `complete(params, fresh)`.

    Raises FileNotFoundError for absent files, and ValueError in one line for everything else that does not fit.
    """
    source = Path(folder)
    opened = _open(source, heads, family, allow_bin, allow_unused, allow_missing)
    try:
        params, extras, manifest = engine.import_tensors(
            opened.table, opened.config, opened.tensors, fields=opened.fields, **opened.arguments
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    made = Checkpoint(
        family=opened.table.name,
        config=opened.config,
        params=params,
        labels=_labels(source, opened.fields, labels, manifest.classes),
        extras=extras,
        manifest=manifest,
        tokenizer_files=tokenizer_files(source),
    )
    return narrowed(made, opened.fields)


def inspect(
    folder: str | Path,
    *,
    heads: Heads = "source",
    family: str | None = None,
    allow_bin: bool = False,
    allow_unused: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
) -> Manifest:
    """What `load` would make of a folder; what it would refuse among the tensors is listed under `problems`."""
    opened = _open(Path(folder), heads, family, allow_bin, allow_unused, allow_missing)
    try:
        return match(opened.table, opened.config, opened.tensors, fields=opened.fields, **opened.arguments)[0]
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def save(
    folder: str | Path,
    checkpoint: Checkpoint,
    *,
    params: Params | None = None,
    labels: Sequence[str] | None = None,
    fields: Mapping[str, Any] | None = None,
    tokenizer_from: str | Path | None = None,
    overwrite: bool = False,
    dtype: str | None = None,
    max_shard_size: int = 5_000_000_000,
) -> Manifest:
    """Writes a Hugging Face folder that `transformers` loads; it appears whole or not at all.

    `params`, `labels` stand in for the checkpoint's own; `fields` are further ones for config.json. Tokenizer files
    come from `tokenizer_from`, else from where the checkpoint was read. `dtype` None gives each tensor its source's
    dtype, and new ones float32. `overwrite` replaces a folder only if it holds a model. Returns the account of what
    was written.

    Raises FileExistsError for a folder that is not empty, ValueError where parameters, labels and config disagree.
    """
    table = find_family(checkpoint.family)
    config, params = widened(checkpoint, checkpoint.params if params is None else params)
    labels = checkpoint.labels if labels is None else list(labels)
    heads = engine.heads_of(table, params)
    tensors = engine.export_tensors(table, config, params, checkpoint.extras, dtype=dtype)
    fields = _fields(table, checkpoint, heads, dtype) | dict(fields or {})
    manifest, _ = match(
        table,
        config,
        tensors,
        fields=fields,
        heads=heads,
        allow_unused=["*"],
        allow_missing=checkpoint.extras.absent,
    )
    fields = _with_class_names(fields, labels, manifest.classes)
    files = checkpoint.tokenizer_files if tokenizer_from is None else tokenizer_files(tokenizer_from)
    with new_folder(folder, overwrite=overwrite) as staging:
        (staging / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        write_tensors(staging, tensors, max_shard_size=max_shard_size)
        for file in files:
            shutil.copyfile(file, staging / file.name)
    return manifest


def import_folder(
    source: str | Path,
    destination: str | Path,
    *,
    heads: Heads = "source",
    family: str | None = None,
    allow_bin: bool = False,
    allow_unused: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    overwrite: bool = False,
) -> Manifest:
    """A Hugging Face folder -> our own folder. Arguments and refusals are those of `load` and `save`."""
    checkpoint = load(
        source,
        heads=heads,
        family=family,
        allow_bin=allow_bin,
        allow_unused=allow_unused,
        allow_missing=allow_missing,
    )
    write_native(destination, checkpoint, overwrite=overwrite)
    assert checkpoint.manifest is not None
    return checkpoint.manifest


def export_folder(
    source: str | Path,
    destination: str | Path,
    *,
    overwrite: bool = False,
    dtype: str | None = None,
    max_shard_size: int = 5_000_000_000,
) -> Manifest:
    """Our own folder -> a Hugging Face folder. Arguments and refusals are those of `read_native` and `save`."""
    return save(destination, read_native(source), overwrite=overwrite, dtype=dtype, max_shard_size=max_shard_size)


class _Opened(NamedTuple):
    table: Family
    config: Config
    fields: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    arguments: dict[str, Any]  # of the engine: heads, allow_unused, allow_missing


def _open(
    source: Path,
    heads: Heads,
    family: str | None,
    allow_bin: bool,
    allow_unused: Sequence[str],
    allow_missing: Sequence[str],
) -> _Opened:
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not a folder: expected one with config.json and weights")
    if (source / DESCRIPTION).is_file():
        # What was imported once was accepted then; it is read through its own export.
        native = read_native(source)
        table, (config, params) = find_family(native.family), widened(native, native.params)
        fields = _fields(table, native, engine.heads_of(table, native.params), None)
        if native.labels is not None:
            fields = _with_class_names(fields, native.labels, len(native.labels))
        tensors = engine.export_tensors(table, config, params, native.extras)
        allow_unused, allow_missing = ["*"], native.extras.absent
    else:
        fields = read_json(source / "config.json")
        table = _named_family(source / "config.json", fields, family)
        config = table.read_config(fields, allow_unused=allow_unused)
        tensors = read_tensors(source, allow_bin=allow_bin)
    check_heads(table, heads)
    arguments = {"heads": heads, "allow_unused": allow_unused, "allow_missing": allow_missing}
    return _Opened(table, config, fields, tensors, arguments)


def _named_family(path: Path, fields: Mapping[str, Any], family: str | None) -> Family:
    named = fields.get("model_type") or family
    if named is None:
        raise ValueError(f"{path} names no model_type: pass family= (one of {', '.join(sorted(FAMILIES))})")
    if family is not None and named != family:
        raise ValueError(f"{path} says model_type {shown(named)}, but family={family!r} was asked for")
    return find_family(named)


def _labels(
    source: Path, fields: Mapping[str, Any], labels: Sequence[str] | None, classes: int | None
) -> list[str] | None:
    if classes is None:
        return None if labels is None else list(labels)
    named = read_labels(fields)
    if named is not None and len(named) != classes:
        raise ValueError(f"{source}: id2label names {len(named)} classes where the classifier has {classes}")
    if labels is not None and len(labels) != classes:
        raise ValueError(
            f"{source}: {len(labels)} labels were given where the classifier has {classes} classes; "
            "pass heads=() to start a new head"
        )
    return list(labels) if labels is not None else named or [f"LABEL_{index}" for index in range(classes)]


def _fields(table: Family, checkpoint: Checkpoint, heads: Sequence[str], dtype: str | None) -> dict[str, Any]:
    """The config.json of what is written, but for the names of its classes."""
    extras = checkpoint.extras
    fields = table.write_config(whole_config(checkpoint.config), extras.fields)
    fields.pop(KEPT, None)
    if kept := getattr(checkpoint.config, "kept_heads", None):
        fields[KEPT] = list(kept)
    if not extras.restores(heads) or not fields.get("architectures"):
        fields["architectures"] = [find_architecture(table, heads)]
    if extras.names and not extras.restores(heads):
        # They are about the head that stays behind.
        for name in ("id2label", "label2id", "num_labels", "problem_type", "task_specific_params"):
            fields.pop(name, None)
        if any(table.heads[head].tied for head in heads):
            fields.pop("tie_word_embeddings", None)
    if dtype is not None:
        fields["dtype"] = dtype
        fields.pop("torch_dtype", None)
    return fields


def _with_class_names(fields: Mapping[str, Any], labels: Sequence[str] | None, classes: int | None) -> dict[str, Any]:
    """A config.json that names the classes; ValueError for labels that do not fit them."""
    if labels is not None and len(set(labels)) < len(labels):
        raise ValueError(f"labels must differ from each other, got {labels}")
    if classes is None:
        return dict(fields)
    if labels is not None and len(labels) != classes:
        raise ValueError(f"{len(labels)} labels were given for a classifier of {classes} classes")
    names = labels or read_labels(fields)
    if names is None or len(names) != classes:
        names = [f"LABEL_{index}" for index in range(classes)]
    named = {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    return {**{name: value for name, value in fields.items() if name != "num_labels"}, **named}
