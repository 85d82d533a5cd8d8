"""Going back to a checkpoint: in one process, or in several that all take what the first of them reads."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxptft.train.checkpoint import CheckpointStore, DamagedCheckpoint
from jaxptft.train.parallel import put
from jaxptft.train.processes import from_first, is_first, value_from_first
from jaxptft.train.state import is_key

log = logging.getLogger(__name__)


def newest_whole(checkpoints: CheckpointStore, best: CheckpointStore) -> tuple[int, bool]:
    """The newest step to go back to, and whether the best model that it names is undamaged as well.

    Where that model is damaged an earlier step is taken, from which it comes again; only where no step has a good one
    is it the newest undamaged step. Each damage is a warning that names the file. Raises DamagedCheckpoint where no
    step is undamaged.
    """
    fallback, damage = None, None
    for step in checkpoints.steps()[::-1]:
        try:
            checkpoints.verify(step)
            best_step = checkpoints.read_meta(step)["loop"]["best_step"]
        except DamagedCheckpoint as error:
            log.warning("checkpoint of step %d is damaged and passed over: %s", step, error)
            damage = error
            continue
        try:
            if best_step >= 0:
                best.verify(best_step)
            return step, True
        except DamagedCheckpoint as error:
            log.warning("the best model that the checkpoint of step %d names is damaged: %s", step, error)
            fallback = step if fallback is None else fallback
    if fallback is None:
        raise DamagedCheckpoint(f"no checkpoint in {checkpoints.folder} is undamaged; the oldest: {damage}")
    return fallback, False


def restore(store: CheckpointStore, like: PyTree, *, step: int) -> tuple[PyTree, dict[str, Any]]:
    """The tree and meta of a step, in all processes together, of which only the first needs to see the folder.

    What it raises is raised in the first process alone; the others are ended when that one is.
    """
    if jax.process_count() == 1:
        return store.restore(like, step=step)[1:]
    shapes = jax.tree.map(_shape, like)
    found: Any = store.restore(shapes, step=step)[1:] if is_first() else None
    meta = value_from_first(None if found is None else found[1])
    tree = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes) if found is None else found[0]
    return jax.tree.map(lambda value, leaf: _placed(from_first(value), leaf), tree, like), meta


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """Of what a checkpoint holds: of keys, the numbers that they are made of."""
    return jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else jax.eval_shape(jnp.asarray, leaf)


def _placed(value: np.ndarray, like: Any) -> Any:
    if not isinstance(like, jax.Array):
        return value
    placed = put(value, like.sharding)
    return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(like)) if is_key(like) else placed
