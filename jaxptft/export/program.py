"""StableHLO: the function as one program for CPU, CUDA and TPU, of any batch and length, and its weights beside it.

The weights are an argument of the program and not constants in it: the program stays some hundred kilobytes, compiles
without anything to fold or hash, and the programs of several lengths share one copy of the weights in memory. They are
an .npz, so that numpy alone reads them. The file that runs it all, `runner`, travels along.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export  # pyright: ignore[reportUnusedImport]
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxptft.export import runner
from jaxptft.export.scoring import Input, Scores
from jaxptft.models import Params

PLATFORMS = ("cpu", "cuda", "tpu")


def shapes(inputs: Mapping[str, Input], limits: Mapping[str, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """The inputs with their free axes as symbols of one scope, each at most its limit if it has one."""
    names = list(dict.fromkeys(axis for given in inputs.values() for axis in given.axes if isinstance(axis, str)))
    constraints = [f"{name} <= {limits[name]}" for name in names if name in limits]
    free: dict[Any, Any] = {}
    if names:
        free = dict(zip(names, jax.export.symbolic_shape(", ".join(names), constraints=constraints), strict=True))
    return {
        name: jax.ShapeDtypeStruct(tuple(free.get(axis, axis) for axis in given.axes), np.dtype(given.dtype))
        for name, given in inputs.items()
    }


def lower(
    function: Scores,
    params: Params,
    inputs: Mapping[str, Input],
    *,
    limits: Mapping[str, int],
    platforms: tuple[str, ...] = PLATFORMS,
) -> jax.export.Exported:
    """The program of ({path: array}, inputs) -> outputs."""
    weights = {path: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for path, leaf in _flat(params).items()}

    @jax.jit
    def scores(weights, inputs):
        return function(unflatten_dict(weights, sep="/"), inputs)

    return jax.export.export(scores, platforms=platforms)(weights, shapes(inputs, limits))


def write_program(
    folder: Path, function: Scores, params: Params, inputs: Mapping[str, Input], *, limits: Mapping[str, int]
) -> dict[str, Any]:
    """Write program, weights and the file that runs them; what is to be known of the program besides."""
    exported = lower(function, params, inputs, limits=limits)
    (folder / runner.PROGRAM).write_bytes(exported.serialize())
    arrays: dict[str, Any] = {path: np.asarray(leaf) for path, leaf in _flat(params).items()}
    np.savez(folder / runner.WEIGHTS, **arrays)
    shutil.copyfile(runner.__file__, folder / "run.py")
    return {
        "platforms": list(exported.platforms),
        "calling_convention": exported.calling_convention_version,
        "jax": jax.__version__,
    }


def _flat(params: Params) -> dict[str, Any]:
    return flatten_dict(params, sep="/")  # pyright: ignore[reportReturnType]
