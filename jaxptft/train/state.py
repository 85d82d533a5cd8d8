"""All that a training step carries from one step to the next."""

from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from jaxptft.objectives import Batch, Objective, Params
from jaxptft.optim import partition


class State(NamedTuple):
    """Parameters, optimizer and objective state, the step they have reached, and the run's key."""

    step: Int[Array, ""]  # optimizer steps taken or skipped
    params: Params  # all of them, the frozen ones included
    opt_state: PyTree  # of the trainable leaves only
    objective_state: PyTree
    rng: PRNGKeyArray  # never changes; each step folds its number in


def create_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    params: Params,
    batch: Batch,
    *,
    trainable: PyTree,
    rng: PRNGKeyArray,
) -> State:
    """The state before the first step.

    Args:
        params: with imported weights already in; every leaf of the state is copied, so that a later step may donate its
            buffers without touching the caller's, and even where an optimizer starts from the parameters themselves.
        batch: any training batch; `objective.start` may look at its shapes.
        trainable: True at each leaf of `params` that learns.
    """
    params = _copied(params)
    learnt, _ = partition(params, trainable)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=_copied(optimizer.init(learnt)),
        objective_state=_copied(objective.start(params, batch)),
        rng=jax.random.clone(rng),
    )


def is_key(leaf: Any) -> TypeGuard[jax.Array]:
    """Whether a leaf is a random key, which NumPy cannot hold and which is sent and saved as its numbers."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
