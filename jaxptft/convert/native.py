"""Our own folder: parameters as flax msgpack beside everything needed to give the source back.

params.msgpack holds {"params": ..., "extras": tensors that became no parameter}; jaxptft.json holds the rest and the
SHA-256 of the weights; tokenizer files travel along.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxptft.convert.checkpoint import Checkpoint, Extras
from jaxptft.convert.families import find_family
from jaxptft.convert.hf_config import read_json
from jaxptft.convert.manifest import Manifest
from jaxptft.convert.staging import new_folder, tokenizer_files

DESCRIPTION = "jaxptft.json"
WEIGHTS = "params.msgpack"
_FORMAT = 2


def write_native(folder: str | Path, checkpoint: Checkpoint, *, overwrite: bool = False) -> None:
    """Writes a checkpoint as our own folder; it appears whole or not at all. Refusals are those of `save`."""
    from flax.serialization import msgpack_serialize

    extras = asdict(checkpoint.extras)
    weights = msgpack_serialize({"params": checkpoint.params, "extras": extras.pop("tensors")})
    description = {
        "format": _FORMAT,
        "family": checkpoint.family,
        "config": asdict(checkpoint.config),
        "labels": checkpoint.labels,
        "extras": extras,
        "manifest": None if checkpoint.manifest is None else checkpoint.manifest.to_dict(),
        "sha256": {WEIGHTS: hashlib.sha256(weights).hexdigest()},
    }
    with new_folder(folder, overwrite=overwrite) as staging:
        (staging / WEIGHTS).write_bytes(weights)
        for file in checkpoint.tokenizer_files:
            shutil.copyfile(file, staging / file.name)
        # transformers chooses a tokenizer's class by the model's type.
        (staging / "config.json").write_text(json.dumps(_config_fields(checkpoint), indent=2) + "\n", encoding="utf-8")
        (staging / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _config_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"model_type": checkpoint.family, **checkpoint.extras.fields}


def read_native(folder: str | Path) -> Checkpoint:
    """Reads what `write_native` wrote; FileNotFoundError or ValueError naming the file that is absent or damaged."""
    from flax.serialization import msgpack_restore

    source = Path(folder)
    description = read_json(source / DESCRIPTION)
    if description.get("format") != _FORMAT:
        raise ValueError(f"{source / DESCRIPTION} is of format {description.get('format')!r}, expected {_FORMAT}")
    if not (source / WEIGHTS).is_file():
        raise FileNotFoundError(f"{source / WEIGHTS} does not exist: import the model again")
    weights = (source / WEIGHTS).read_bytes()
    try:
        if hashlib.sha256(weights).hexdigest() != description["sha256"][WEIGHTS]:
            raise ValueError(f"{source / WEIGHTS} has another SHA-256 than it was written with: import again")
        family = find_family(description["family"])
        tuples = {name: tuple(description["extras"][name]) for name in ("absent", "heads")}
        extras: dict[str, Any] = {**description["extras"], **tuples}
        manifest = description["manifest"]
        tree: Any = msgpack_restore(weights)
        return Checkpoint(
            family=family.name,
            config=family.config(**{name: _as_tuple(value) for name, value in description["config"].items()}),
            params=tree["params"],
            labels=description["labels"],
            extras=Extras(tensors=tree["extras"], **extras),
            manifest=None if manifest is None else Manifest.from_dict(manifest),
            tokenizer_files=tokenizer_files(source),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source / DESCRIPTION} is damaged: {type(error).__name__} {error}") from None


def _as_tuple(value: Any) -> Any:
    # JSON has no tuples, and configs, which are hashed, no lists.
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
