"""How far parameters have moved from where they were: ||theta - theta_0|| / ||theta_0||, and the angle between them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxptft import optim
from jaxptft.objectives import Params


class Drift(NamedTuple):
    """Of some parameters, taken together as one vector; None where one of its ends is zero and there is no answer."""

    relative_l2: float | None  # 0: not moved
    cosine: float | None  # of the angle between before and after; 1: the same direction


def drift(params: Params, reference: Params, *, by: Callable[[str], str] = lambda path: path) -> dict[str, Drift]:
    """The drift from `reference` of what `by` makes one of the paths: each leaf by itself, or layers (`piece_of`).

    Computed in float64 on the host: near its start a cosine differs from 1 by less than float32 can tell. Raises
    ValueError where the two differ in their paths or shapes.
    """
    ours, theirs = (dict(zip(optim.paths(tree), jax.tree.leaves(tree), strict=True)) for tree in (params, reference))
    if unshared := sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(f"{unshared[0]} is in one of the models alone; only the same parameters can be compared")
    sums: dict[str, np.ndarray] = {}
    for path, leaf in ours.items():
        after, before = np.asarray(leaf), np.asarray(theirs[path])
        if after.shape != before.shape:
            raise ValueError(f"{path} has shape {before.shape} before and {after.shape} after; they must be the same")
        after, before = (array.astype(np.float64).reshape(-1) for array in (after, before))
        moved = after - before
        own = np.array([moved @ moved, before @ before, after @ after, after @ before])
        sums[by(path)] = sums.get(by(path), 0.0) + own
    return {name: _drift(*own.tolist()) for name, own in sums.items()}


def _drift(moved: float, before: float, after: float, product: float) -> Drift:
    relative = (moved / before) ** 0.5 if before else None if moved else 0.0
    if not moved:
        return Drift(relative, 1.0)
    return Drift(relative, product / (before * after) ** 0.5 if before and after else None)
