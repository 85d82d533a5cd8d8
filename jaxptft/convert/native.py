"""Our own folder: parameters as flax msgpack beside everything needed to give the source back.

params.msgpack holds {"params": ..., "extras": tensors that became no parameter}; jaxptft.json holds the rest and the
SHA-256 of the weights; tokenizer files travel along.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import numpy as np

from jaxptft.convert.checkpoint import Checkpoint, Extras
from jaxptft.convert.engine import fitted, flatten
from jaxptft.convert.families import find_family
from jaxptft.convert.hf_config import read_json
from jaxptft.convert.manifest import Manifest
from jaxptft.convert.match import FLOATING, standard_name
from jaxptft.convert.slimming import widened
from jaxptft.convert.staging import new_folder, tokenizer_files
from jaxptft.convert.wording import reason, spelt

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
    source = Path(folder)
    description = read_json(source / DESCRIPTION)
    if description.get("format") != _FORMAT:
        raise ValueError(f"{source / DESCRIPTION} is of format {shown(description.get('format'))}, expected {_FORMAT}")
    tree = _read_weights(source / WEIGHTS, description.get("sha256"))
    try:
        family = find_family(description["family"])
        tuples = {name: tuple(description["extras"][name]) for name in ("absent", "heads")}
        extras: dict[str, Any] = {**description["extras"], **tuples}
        manifest = description["manifest"]
        checkpoint = Checkpoint(
            family=family.name,
            config=family.config(**{name: _as_tuple(value) for name, value in description["config"].items()}),
            params=tree["params"],
            labels=description["labels"],
            extras=Extras(tensors=tree["extras"], **extras),
            manifest=None if manifest is None else Manifest.from_dict(manifest),
            tokenizer_files=tokenizer_files(source),
        )
        _check(checkpoint)
        return checkpoint
    except Exception as error:  # a description that was edited by hand can fail anywhere
        said = reason(error) if type(error) is ValueError else f"{type(error).__name__} {reason(error)}"
        raise ValueError(f"{source / DESCRIPTION} is damaged: {said}") from None


def _read_weights(path: Path, sums: Any) -> Any:
    from flax.serialization import msgpack_restore

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: import the model again")
    if not isinstance(sums, dict) or WEIGHTS not in sums:
        raise ValueError(f"{path.with_name(DESCRIPTION)} is damaged: it has no sha256 of {WEIGHTS}; import again")
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != sums[WEIGHTS]:
        raise ValueError(f"{path} has another SHA-256 than it was written with: import again")
    try:
        return msgpack_restore(weights)
    except Exception as error:  # msgpack and numpy raise many kinds on damaged bytes
        raise ValueError(f"{path} is damaged: {type(error).__name__} {reason(error)}") from None


def _check(checkpoint: Checkpoint) -> None:
    """ValueError unless parameters, labels and extras are of the kinds that whoever reads them takes for granted."""
    extras, labels = checkpoint.extras, checkpoint.labels
    for name in ("names", "dtypes", "tied", "fields"):
        value = getattr(extras, name)
        if not isinstance(value, dict) or (name != "fields" and not all(type(one) is str for one in value.values())):
            raise ValueError(f"extras.{name} must map names to names")
    if others := set(extras.dtypes.values()) - set(FLOATING):
        raise ValueError(f"extras.dtypes has {shown(sorted(others)[0])}, expected one of {', '.join(FLOATING)}")
    family = find_family(checkpoint.family)
    for known, name in extras.names.items():
        if standard_name(family, name) not in (known, family.unprefixed.get(known)):
            raise ValueError(f"extras.names calls {spelt(known)} {spelt(name)}, which {family.name} knows as another")
    if labels is not None and not (type(labels) is list and all(type(label) is str for label in labels)):
        raise ValueError(f"labels must be a list of names, got {shown(labels)}")
    if labels is not None and len(set(labels)) < len(labels):
        raise ValueError(f"labels must differ from each other, got {shown(labels)}")
    for name, array in extras.tensors.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"tensor {spelt(name)} of {WEIGHTS} is {type(array).__name__}, expected an array")
    for path, array in flatten(checkpoint.params).items():
        if array.dtype != np.float32:
            raise ValueError(f"parameter {spelt(path)} is {array.dtype}, expected float32")
    fitted(find_family(checkpoint.family), *widened(checkpoint, checkpoint.params), absent=extras.absent)


def _as_tuple(value: Any) -> Any:
    # JSON has no tuples, and configs, which are hashed, no lists.
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
