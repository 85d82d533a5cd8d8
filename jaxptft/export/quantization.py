"""Float parameters -> int8 ones, symmetric, one scale an output of a projection or a row of a table.

Source: Jacob et al. 2018, arXiv:1712.05877 (section 3, per channel and with zero point 0 as Krishnamoorthi 2018,
arXiv:1806.08342, section 3). What reads them is `models.with_int8`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxptft.models import Params, is_int8

Clip = Literal["max", "mse"]
_MOST = 127
_SHARES = np.linspace(1.0, 0.5, 26)  # of the largest magnitude, among which the one of least error is looked for


def quantize_matrix(matrix: np.ndarray, *, axis: int, clip: Clip = "max") -> dict[str, np.ndarray]:
    """{"int8": [rows, columns], "scale": float32, of size 1 along `axis`}; along it, one scale serves all values.

    The scale is the largest magnitude / 127; with `clip` "mse", of the magnitudes from there down to its half the one
    that leaves the least squared error. What is all zeros has the scale 1. Raises ValueError for NaN and infinity.
    """
    matrix = np.asarray(matrix, np.float32)
    if not np.isfinite(matrix).all():
        raise ValueError("NaN or infinity cannot be int8")
    largest = np.abs(matrix).max(axis, keepdims=True)
    whole = np.where(largest < np.finfo(np.float32).tiny * _MOST, np.float32(1), largest / np.float32(_MOST))
    scale = whole = whole.astype(np.float32)
    if clip == "mse":
        least = np.full(scale.shape, np.inf)
        for share in _SHARES.astype(np.float32):
            error = np.square(matrix - _rounded(matrix, whole * share) * (whole * share)).sum(axis, keepdims=True)
            scale, least = np.where(error < least, whole * share, scale), np.minimum(error, least)
    return {"int8": _rounded(matrix, scale).astype(np.int8), "scale": scale}


def quantize(
    params: Params, paths: Iterable[str], *, clip: Clip = "max", ranges: Mapping[str, Any] | None = None
) -> Params:
    """The parameters with the matrices at these slash paths as int8; the others are the same arrays.

    A path that ends in `embedding` is of a table, with a scale a row; others are of kernels [inputs, outputs], with a
    scale an output. `ranges` are the largest magnitudes of the kernels' inputs, kept beside them as "input".

    Raises ValueError where a path is no matrix of floats, or int8 already.
    """
    flat: dict[str, Any] = dict(flatten_dict(params, sep="/"))  # pyright: ignore[reportArgumentType]
    for path in paths:
        if f"{path}/int8" in flat:
            raise ValueError(f"{path} is int8 already; quantize the model that it was made from")
        if path not in flat or np.ndim(flat[path]) != 2:
            raise ValueError(f"{path} is no matrix of the model")
        try:
            made = quantize_matrix(flat.pop(path), axis=-1 if path.endswith("embedding") else 0, clip=clip)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if ranges is not None and path in ranges:
            made["input"] = np.asarray(ranges[path], np.float32)
        flat |= {f"{path}/{name}": array for name, array in made.items()}
    return unflatten_dict(flat, sep="/")


def dequantize(params: Params) -> Params:
    """The parameters with float32 matrices in the place of int8 ones."""
    if is_int8(params):
        return np.asarray(params["int8"], np.float32) * np.asarray(params["scale"])  # type: ignore[return-value]
    return {name: dequantize(node) if isinstance(node, Mapping) else node for name, node in params.items()}  # type: ignore


def _rounded(matrix: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(matrix / scale), -_MOST, _MOST)
