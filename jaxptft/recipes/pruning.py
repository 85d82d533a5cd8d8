"""Pruning in a fine-tuning: which matrices, when their masks are made, and what came of it."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxptft import optim, train
from jaxptft.objectives import Params

_LAYERS, _ALL = "backbone/layer_*/**/kernel", "backbone/**/kernel"


class Pruner(NamedTuple):
    """The matrices of a run that are pruned, by their paths, and its settings for it (`finetune.Pruning`)."""

    settings: Any
    paths: tuple[str, ...]

    def optimizer(self, inner: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        """The run's optimizer, which prunes."""
        own, begin, end = self.settings, *self._span(steps)
        every = max(1, (end - begin) // own.updates)
        shared: dict[str, Any] = {"method": own.method, "patterns": self.paths, "scope": own.scope}
        return optim.pruned(inner, **shared, sparsity=own.sparsity, begin=begin, end=end, every=every)

    def is_done(self, state: train.State, steps: int) -> bool:
        """Whether in a run of so many steps all is zero that shall be."""
        return self.settings.method == "keep" or int(state.opt_state.count) >= self._span(steps)[1]

    def watch(self, state: train.State) -> dict[str, float]:
        """For the log."""
        return {"pruning/sparsity": self.facts(state.params)["sparsity"]}

    def facts(self, params: Params) -> dict[str, Any]:
        """What is zero, in all and by matrix: for report.json."""
        found = optim.zeros_by_path(params, self.paths)
        zeros, sizes = (sum(part) for part in zip(*found.values(), strict=True))
        return {
            "method": self.settings.method,
            "sparsity": zeros / sizes,
            "weights": sizes,
            "by_matrix": {path: zero / size for path, (zero, size) in found.items()},
        }

    def told(self, params: Params) -> str:
        """The same in words."""
        found = self.facts(params)
        line = (
            f"pruning: {100 * found['sparsity']:.1f} % of {found['weights']:,} weights in {len(self.paths)} matrices "
            "are zero"
        )
        if self.settings.method == "keep" or found["sparsity"] > self.settings.sparsity - 0.005:
            return line
        return (
            f"{line}, fewer than the {100 * self.settings.sparsity:g} % asked for: masks are made anew at updates, of "
            "which a run that skips steps has fewer; set pruning.end lower"
        )

    def _span(self, steps: int) -> tuple[int, int]:
        return round(self.settings.begin * steps), max(1, round(self.settings.end * steps))


def pruner_of(settings: Any, params: Params, trainable: Any) -> Pruner | None:
    """None where nothing is to be pruned.

    Raises ValueError where a pattern matches no matrix, what it matches does not train, or there is nothing to keep.
    """
    if settings.method == "none":
        return None
    learns = dict(zip(optim.paths(trainable), jax.tree.leaves(trainable), strict=True))
    leaves = dict(zip(optim.paths(params), jax.tree.leaves(params), strict=True))
    matrices = {path: None for path, leaf in leaves.items() if np.ndim(leaf) > 1}
    usual = (_LAYERS,) if any(optim.matches(_LAYERS, path) for path in matrices) else (_ALL,)
    asked = settings.patterns or usual
    for pattern in asked:
        optim.mask(dict.fromkeys(matrices, 0), pattern)
    chosen = [path for path in matrices if any(optim.matches(pattern, path) for pattern in asked)]
    if still := [path for path in chosen if not learns[path]]:
        if settings.patterns or len(still) == len(chosen):
            raise ValueError(
                f"{still[0]} is to be pruned and does not train; unfreeze it, or name others with pruning.patterns"
            )
        chosen = [path for path in chosen if learns[path]]
    found = Pruner(settings, tuple(chosen))
    if settings.method == "keep" and not found.facts(params)["sparsity"]:
        raise ValueError("pruning.method is keep, and no weight of the model is zero in the matrices that are named")
    return found
