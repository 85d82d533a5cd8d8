"""Penalties as terms: functions of the parameters alone, added to any objective by `combine`."""

from collections.abc import Callable
from typing import NamedTuple

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


def l2(*, weights: float | PyTree = 0.01) -> Penalty:
    """Plain L2, as a term of the loss (unlike decoupled weight decay, an adaptive optimizer rescales it)."""
    return Penalty("l2", lambda params, constants, rng: losses.l2(params, weights))


def l1(*, weights: float | PyTree = 0.01) -> Penalty:
    """Plain L1, as a term of the loss."""
    return Penalty("l1", lambda params, constants, rng: losses.l1(params, weights))
