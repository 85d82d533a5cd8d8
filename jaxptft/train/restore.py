"""Going back to a checkpoint: in one process, or in several that all take what the first of them reads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxptft.train.checkpoint import CheckpointStore
from jaxptft.train.parallel import put
from jaxptft.train.processes import from_first, is_first, value_from_first


def restore(
    store: CheckpointStore,
    like: PyTree,
    *,
    step: int | None = None,
    accept: Callable[[dict[str, Any]], None] = lambda meta: None,
) -> tuple[int, PyTree, dict[str, Any]]:
    """`store.restore` in all processes together, of which only the first needs to see the folder.

    What it raises is raised in the first process alone; the others are ended when that one is.
    """
    if jax.process_count() == 1:
        return store.restore(like, step=step, accept=accept)
    shapes = jax.tree.map(_shape, like)
    found: Any = None
    if is_first():
        found = store.restore(shapes, step=step, accept=accept)
    newest, meta = value_from_first(None if found is None else [found[0], found[2]])
    tree = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes) if found is None else found[1]
    return newest, jax.tree.map(lambda value, leaf: _placed(from_first(value), leaf), tree, like), meta


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """Of what a checkpoint holds: of keys, the numbers that they are made of."""
    return jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else jax.eval_shape(jnp.asarray, leaf)


def _placed(value: np.ndarray, like: Any) -> Any:
    if not isinstance(like, jax.Array):
        return value
    placed = put(value, like.sharding)
    return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(like)) if _is_key(like) else placed
