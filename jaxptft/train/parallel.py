"""The same step on one device or many.

Global-view `jit` over a mesh is the default: the batch is sharded along `data`, the state is replicated, and whatever
looks across the batch is global by itself. `pmap_step` is an adapter over the same step for code built on `pmap`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxptft.objectives import Batch
from jaxptft.train.step import Step

DATA = "data"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh with the axis `data` over `devices` (all local ones by default)."""
    devices = list(devices if devices is not None else jax.devices())
    # Under the newer default, AxisType.Explicit, Linen modules fail.
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Every leaf, whole, on each device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(batch: Batch, mesh: Mesh) -> Batch:
    """The batch's rows spread over the mesh's `data` axis, after `pad_rows` to a multiple of its size."""
    return jax.device_put(pad_rows(batch, mesh.shape[DATA]), NamedSharding(mesh, PartitionSpec(DATA)))


def pad_rows(batch: Batch, multiple: int) -> Batch:
    """The batch with rows that count for nothing added, up to a multiple of `multiple`.

    Added rows repeat the last one with `valid` False and `ids` -1. A batch without `valid` that needs padding is a
    ValueError, since its added rows would count. Where the batch holds several sources, each is padded.
    """
    if batch and all(isinstance(part, Mapping) for part in batch.values()):
        return {name: pad_rows(dict(part), multiple) for name, part in batch.items()}
    rows = len(jax.tree.leaves(batch)[0])
    missing = -rows % multiple
    if not missing:
        return batch
    if "valid" not in batch:
        raise ValueError(f"a batch of {rows} rows does not split over {multiple} devices and has no 'valid' mask")
    padded = {
        name: np.concatenate([leaf, np.repeat(np.asarray(leaf)[-1:], missing, 0)]) for name, leaf in batch.items()
    }
    padded["valid"][rows:] = False
    if "ids" in padded:
        padded["ids"][rows:] = -1
    return padded


def jit_step(step: Step, mesh: Mesh) -> Step:
    """The step compiled for a mesh: state and constants replicated, the batch sharded by rows, the state donated."""
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(DATA))
    return jax.jit(step, in_shardings=(whole, whole, rows), out_shardings=(whole, whole), donate_argnums=0)


def pmap_step(step: Step, *, axis_name: str = DATA, devices: Sequence[Any] | None = None) -> Step:
    """The step under `pmap`: takes the same plain state, constants and batch as `jit_step`'s, and returns the same.

    `step` must have been made with the same `axis_name`. The batch's rows must divide by the number of devices
    (see `pad_rows`). State that the objective carries must come back equal on every device.
    """
    devices = list(devices if devices is not None else jax.local_devices())
    mapped: dict[object, Callable] = {}

    def run(state, constants, batch):
        rows = {len(leaf) for leaf in jax.tree.leaves(batch)}
        if any(size % len(devices) for size in rows):
            raise ValueError(f"{sorted(rows)} rows do not split over {len(devices)} devices; use pad_rows first")
        split = jax.tree.map(lambda leaf: leaf.reshape(len(devices), -1, *leaf.shape[1:]), batch)
        structure = jax.tree.structure((state, constants, batch))
        if structure not in mapped:
            # Full trees: a prefix whose length happens to match would be read leaf by leaf and replicate silently.
            axes = tuple(
                jax.tree.map(lambda _, a=axis: a, tree) for tree, axis in ((state, None), (constants, None), (split, 0))
            )
            mapped[structure] = jax.pmap(step, axis_name=axis_name, in_axes=axes, out_axes=None, devices=devices)
        return mapped[structure](state, constants, split)

    return run
