"""Reading `flax_model.msgpack`, the weights that transformers wrote for Flax until version 4.

Their tree is turned into the names and the orientation of the torch files, so that one table serves both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxptft.convert.wording import reason


def read_msgpack(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a Flax checkpoint by their torch names; a one-line ValueError naming the file if it is damaged."""
    from flax.serialization import msgpack_restore

    try:
        tree = msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack and numpy raise many kinds on damaged bytes
        raise ValueError(f"{path} is not a readable msgpack file: {reason(error)}") from None
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} must hold a tree of parameters, got {type(tree).__name__}")
    return dict(_tensors(path, tree, ()))


def _tensors(path: Path, tree: Mapping[str, Any], parents: tuple[str, ...]):
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _tensors(path, value, (*parents, str(name)))
            continue
        if not isinstance(value, np.ndarray):
            raise ValueError(f"{path}: {'.'.join((*parents, str(name)))} is {type(value).__name__}, expected an array")
        leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(name, str(name))
        yield ".".join((*parents, leaf)), value.T if name == "kernel" else value
