"""Parameters as plain msgpack, which `flax.serialization.msgpack_restore` reads without this package."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize

from jaxptft.models import Params

PARAMS = "params.msgpack"


def write_flax(folder: Path, params: Params) -> None:
    """Write the tree of parameters, and nothing else."""
    (folder / PARAMS).write_bytes(msgpack_serialize(jax.tree.map(np.asarray, params)))


def read_flax(folder: Path) -> Any:
    """The tree of parameters."""
    return msgpack_restore((folder / PARAMS).read_bytes())
