"""Mixout: in training, each parameter is put back to its pre-trained value with probability p.

    w  <-  ( m * u + (1 - m) * w - p * u ) / (1 - p)          m = 1 with probability p, u the pre-trained value

so that the mean over m is w itself, as in dropout, which is the case u = 0. Lee, Cho and Kang 2020, arXiv:1909.11299,
equation 7; drawn element by element, as in the authors' code, where it is applied to the kernels of linear layers.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from jaxptft.objectives.contract import Objective, Params
from jaxptft.objectives.transformed import transformed


def mix(params: Params, reference: PyTree, rng: PRNGKeyArray, probability: float) -> Params:
    """`params` with the leaves that `reference` has mixed with it; the others, and those where it has None, stay.

    The draw follows from the key and a leaf's path alone, not from the batch: it is one for all shards.
    """
    return _mixed(params, reference, rng, probability, "")


def _mixed(own: Any, reference: Any, rng: PRNGKeyArray, probability: float, path: str) -> Any:
    if reference is None:
        return own
    if isinstance(own, Mapping):
        if strangers := sorted(reference.keys() - own.keys()):
            raise ValueError(f"mixout has a reference for '{f'{path}/{strangers[0]}'.strip('/')}', which params lacks")
        return {
            name: _mixed(value, reference.get(name), rng, probability, f"{path}/{name}") for name, value in own.items()
        }
    if own.shape != reference.shape:
        raise ValueError(
            f"mixout has a reference of shape {reference.shape} for '{path.strip('/')}' of shape {own.shape}"
        )
    key = jax.random.fold_in(rng, zlib.crc32(path.strip("/").encode()))
    back = jax.random.bernoulli(key, probability, own.shape)
    return (jnp.where(back, reference, own) - probability * reference) / (1.0 - probability)


def mixout(objective: Objective, pretrained: PyTree, *, probability: float) -> Objective:
    """`objective` in training on parameters that are mixed with `pretrained`, and on the parameters as they are else.

    `pretrained` has the leaves that are to be mixed, at their paths in params, and None or nothing elsewhere: the
    imported kernels that train, as a rule. It is a constant of the objective.

    Raises:
        ValueError: the probability is not in [0, 1), or there is nothing to mix; when traced, a leaf that does not fit.
    """
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"the probability of mixout must lie in [0, 1), got {probability}")
    if not jax.tree.leaves(pretrained):
        raise ValueError("mixout got no pre-trained values to mix in: give at least one leaf")

    def transform(params, constants, rng, train):
        return mix(params, constants, rng, probability) if train and probability else params

    return transformed(objective, transform, constants=pretrained)
