"""Several steps a dispatch: one program that takes as many steps as it is told, one after another.

Starting a program costs time, and what it works with is allocated anew; for small models and short steps that is much
of a step. The number of steps is an argument of the program, not a part of it: each step is computed by the same
instructions however many there are, so where a run was cut in between changes nothing, and one program does for all.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from jaxptft.objectives import Batch, Mean
from jaxptft.train.state import State
from jaxptft.train.step import Step


class Together(NamedTuple):
    """The batches of some steps, stacked: leaf [most, ...], of which the first `count` are taken."""

    batches: Batch
    count: Int[Array, ""] | np.int32


def stack(batches: Sequence[Batch], most: int) -> Together:
    """Up to `most` batches of one shape as `Together`, in NumPy; ValueError where there are none, or too many."""
    if not 1 <= len(batches) <= most:
        raise ValueError(f"there are {len(batches)} batches to stack; expected 1 to {most}")

    def stacked(*leaves: Any) -> np.ndarray:
        whole = np.zeros((most, *np.shape(leaves[0])), np.asarray(leaves[0]).dtype)
        for place, leaf in enumerate(leaves):
            whole[place] = leaf
        return whole

    return Together(jax.tree.map(stacked, *batches), np.int32(len(batches)))


def several(step: Step, most: int) -> Callable[[State, PyTree, Together], tuple[State, dict[str, Mean]]]:
    """`step` taken `count` times, up to `most`; what it measures comes as [most], zeros behind the last."""

    step = jax.jit(step, inline=True)  # traced once, for its shapes and for the loop

    def run(state: State, constants: PyTree, together: Together) -> tuple[State, dict[str, Mean]]:
        first = jax.tree.map(lambda leaf: leaf[0], together.batches)
        _, shapes = jax.eval_shape(step, state, constants, first)
        measured = jax.tree.map(lambda shape: jnp.zeros((most, *shape.shape), shape.dtype), shapes)

        def one(place: Array, carry: tuple[State, Any]) -> tuple[State, Any]:
            state, measured = carry
            batch = jax.tree.map(lambda leaf: leaf[place], together.batches)
            state, metrics = step(state, constants, batch)
            return state, jax.tree.map(lambda all_, own: all_.at[place].set(own), measured, metrics)

        return jax.lax.fori_loop(0, together.count, one, (state, measured))

    return run
