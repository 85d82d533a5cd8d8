"""Penalties as terms: functions of the parameters alone, added to any objective by `combine`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxptft import losses
from jaxptft.objectives.contract import Params


class Penalty(NamedTuple):
    """A named scalar function of params and its constants; it counts once a batch, however the batch is split."""

    name: str
    loss: Callable[[Params, PyTree, PRNGKeyArray], Float[Array, ""]]
    constants: PyTree = None


def l2_to_pretrained(pretrained: Params, *, weights: float | PyTree = 0.01, new_weight: float = 0.0) -> Penalty:
    """L2-SP: keep the parameters near `pretrained` (Li et al. 2018, arXiv:1802.01483, section 3.1).

    `weights` and `new_weight` are those of `jaxptft.losses.l2_to_pretrained`. The reference is a constant of the
    objective: it travels to the step as an argument, is never donated, and is checkpointed once.
    """

    def loss(params, constants, rng):
        return losses.l2_to_pretrained(params, constants, weights, new_weight)

    return Penalty("l2_to_pretrained", loss, pretrained)


def elastic_weight_consolidation(reference: Params, importance: PyTree, *, weight: float = 1.0) -> Penalty:
    """EWC: keep near `reference` what mattered there (Kirkpatrick et al. 2017, arXiv:1612.00796, equation 3).

    `importance` is the diagonal Fisher information at `reference`, as `jaxptft.train.diagonal_fisher` gives it; what it
    lacks is free to move. `weight` is the paper's lambda / 2. Both trees are constants of the objective.

    Raises:
        ValueError: the weight is negative, or `importance` has no leaf.
    """
    if not weight >= 0.0:
        raise ValueError(f"the weight of elastic_weight_consolidation must be at least 0, got {weight}")
    if not jax.tree.leaves(importance):
        raise ValueError("elastic_weight_consolidation got an importance without leaves: there is nothing to hold")

    def loss(params, constants, rng):
        return weight * losses.elastic_weight(params, constants["reference"], constants["importance"])

    return Penalty("elastic_weight", loss, {"reference": reference, "importance": importance})


def l2(*, weights: float | PyTree = 0.01) -> Penalty:
    """Plain L2, as a term of the loss (unlike decoupled weight decay, an adaptive optimizer rescales it)."""
    return Penalty("l2", lambda params, constants, rng: losses.l2(params, weights))


def l1(*, weights: float | PyTree = 0.01) -> Penalty:
    """Plain L1, as a term of the loss."""
    return Penalty("l1", lambda params, constants, rng: losses.l1(params, weights))
