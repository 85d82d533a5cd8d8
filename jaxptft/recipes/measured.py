"""What a run measures of its model and data before its first step (importances, weights of rows), kept in its folder.

Measured anew on another machine, or with another number of threads, it would differ in the last bits; a run that is
resumed takes what it began with, and measures nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxptft import train
from jaxptft.data.cache import publish, read_manifest
from jaxptft.recipes.run_folder import check_same

_FILE = "arrays.npz"


class Measured:
    """Trees of arrays by name, in `checkpoints/measured` of the run's folder `out`."""

    def __init__(self, out: Path, *, resume: bool):
        self._out, self._folder, self._resume = out, out / "checkpoints" / "measured", resume
        self._fresh: dict[str, tuple[str, PyTree]] = {}

    def take(self, name: str, made_of: str, measure: Callable[[], PyTree], *, like: PyTree) -> PyTree:
        """What `measure` gives or, where a run is resumed that kept it, what it gave then.

        `made_of` is a fingerprint of what it is measured of; `like` is a tree of the same structure. Raises ValueError
        where the run that is resumed measured something else.
        """
        folder = self._folder / name
        kept = read_manifest(folder, {"name": name}) if self._resume else None  # damaged: it is measured anew
        if not train.value_from_first(kept is not None):
            found = jax.tree.map(np.asarray, measure())
            self._fresh[name] = made_of, found
            return found
        leaves = None
        if kept is not None:
            check_same({name: kept.get("made_of")}, {name: made_of}, self._out)
            with np.load(folder / _FILE, allow_pickle=False) as arrays:
                leaves = [arrays[f"leaf_{number}"] for number in range(len(arrays.files))]
        # Of several processes the first alone has the folder.
        shapes = train.value_from_first(leaves and [(leaf.shape, leaf.dtype.str) for leaf in leaves])
        leaves = leaves or [np.zeros(shape, dtype) for shape, dtype in shapes]
        return jax.tree.unflatten(jax.tree.structure(like), train.from_first(leaves))

    def keep(self) -> None:
        """Write what was measured; to be called when the folder is the run's, and before its first checkpoint."""
        for name, (made_of, tree) in self._fresh.items():

            def fill(folder: Path, tree: PyTree = tree, facts: Any = (name, made_of)) -> dict[str, str]:
                leaves = {f"leaf_{number}": leaf for number, leaf in enumerate(jax.tree.leaves(tree))}
                np.savez(folder / _FILE, **leaves)
                return {"name": facts[0], "made_of": facts[1]}

            publish(self._folder / name, fill)
        self._fresh.clear()
