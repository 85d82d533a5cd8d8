"""The same step on one device or many, of one process or several.

A mesh has the axes `data` and `fsdp`, and a batch is split by rows over both. State is whole on each device along
`data`; along `fsdp` its large arrays are cut, each device holding a part, and gathered where they are used (fully
sharded data parallelism: ZeRO, https://arxiv.org/abs/1910.02054, stage 3).

Under global-view `jit` (`jit_step`) whatever looks across the batch is global by itself, and XLA finds what has to
cross devices; it sums the gradient of each use of a leaf, that of a tied table twice. Where each device has the whole
state `mapped_step` gives it rows of its own instead, and what crosses is what the step says, the gradient once.
`compile_step` takes the one or the other. `pmap_step` is an adapter over the same step for code built on `pmap`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree

from jaxptft.objectives import Batch
from jaxptft.train.dispatch import Together, several, stack
from jaxptft.train.state import is_key
from jaxptft.train.step import Step

DATA, FSDP = "data", "fsdp"
_ROWS_TOGETHER = PartitionSpec(None, (DATA, FSDP))  # of the batches of several steps, stacked
SMALLEST = 2**14  # elements: what is smaller costs more to gather than to hold


def make_mesh(devices: Sequence[Any] | None = None, *, fsdp: int = 1) -> Mesh:
    """A mesh with the axes `data` and `fsdp` over `devices` (by default all, of every process).

    `fsdp` is how many devices share one copy of the state; ValueError where it does not divide their number.
    """
    devices = list(devices if devices is not None else jax.devices())
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"fsdp is {fsdp}, which does not divide {len(devices)} devices")
    # Under the newer default, AxisType.Explicit, Linen modules fail.
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, (DATA, FSDP), axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Every leaf, whole, on each device of the mesh."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: put(leaf, whole), tree)


def spread(tree: PyTree, mesh: Mesh, *, smallest: int = SMALLEST) -> PyTree:
    """A state, parameters or constants as `compile_step` wants them: leaves of `smallest` elements or more are cut
    along `fsdp`, the others are whole on each device."""
    return jax.tree.map(put, tree, spread_shardings(tree, mesh, smallest=smallest))


def spread_shardings(tree: PyTree, mesh: Mesh, *, smallest: int = SMALLEST) -> PyTree:
    """Where `spread` puts each leaf: cut at the longest of its axes that divides, the last of them where several do.

    The rule is one of shapes alone, so that an optimizer's moments lie where their parameters do.
    """

    def sharding(leaf: Any) -> NamedSharding:
        shape, parts = jnp.shape(leaf), mesh.shape[FSDP]
        fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
        if parts == 1 or not fitting or np.prod(shape) < smallest:
            return NamedSharding(mesh, PartitionSpec())
        axis = max(fitting, key=lambda axis: (shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, FSDP))

    return jax.tree.map(sharding, tree)


def made_spread(
    make: Callable[..., PyTree], mesh: Mesh, *, smallest: int = SMALLEST, donate_argnums: tuple[int, ...] = ()
) -> Callable[..., PyTree]:
    """`make`, a pure function, compiled to return what `spread` would: no device ever holds all of it.

    `donate_argnums` are those of its arguments whose memory it may use.
    """

    def run(*arguments: Any) -> PyTree:
        shardings = spread_shardings(jax.eval_shape(make, *arguments), mesh, smallest=smallest)
        return jax.jit(make, out_shardings=shardings, donate_argnums=donate_argnums)(*arguments)

    return jax.jit(make, donate_argnums=donate_argnums) if mesh.shape[FSDP] == 1 else run


def shard(batch: Batch, mesh: Mesh) -> Batch:
    """The batch's rows spread over all devices of the mesh, after `pad_rows` to a multiple of their number.

    Every process gives the whole batch, and of it only the rows of its own devices are copied to them.
    """
    rows = NamedSharding(mesh, PartitionSpec((DATA, FSDP)))
    return jax.tree.map(lambda leaf: put(leaf, rows), pad_rows(batch, mesh.size))


def shard_together(batches: Sequence[Batch], mesh: Mesh, most: int) -> Together:
    """The batches of up to `most` steps, of one shape, as `compile_step` with `together=most` takes them."""
    found = stack([pad_rows(batch, mesh.size) for batch in batches], most)
    rows, whole = NamedSharding(mesh, _ROWS_TOGETHER), NamedSharding(mesh, PartitionSpec())
    return Together(jax.tree.map(lambda leaf: put(leaf, rows), found.batches), put(found.count, whole))


def batch_specs(together: int) -> Any:
    """How what a step is given is split: its rows over all devices, be it one batch or those of several steps."""
    if together == 1:
        return PartitionSpec((DATA, FSDP))
    return Together(_ROWS_TOGETHER, PartitionSpec())  # pyright: ignore[reportArgumentType]


def own_rows(rows: int, mesh: Mesh) -> Int[np.ndarray, " rows"]:
    """Which of a batch's rows `shard` puts on this process's devices; `rows` is a multiple of the mesh's devices."""
    places = NamedSharding(mesh, PartitionSpec((DATA, FSDP))).addressable_devices_indices_map((rows,))
    return np.unique(np.concatenate([np.arange(rows)[place] for place in places.values() if place is not None]))


def put(leaf: Any, sharding: Any) -> Any:
    """`jax.device_put` that also takes shardings over several processes, each of which gives the same whole leaf."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf if leaf.sharding == sharding else jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    if is_key(leaf):
        whole = put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(whole, impl=jax.random.key_impl(leaf))
    # Not `device_put`, which would compare what all processes hold.
    value = np.array(leaf, dtype=jax.dtypes.canonicalize_dtype(np.asarray(leaf).dtype))
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


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


def axis_of(mesh: Mesh) -> str | None:
    """The `axis_name` of a step on this mesh: that of `mapped_step` where several devices have the state whole."""
    return DATA if mesh.size > 1 and mesh.shape[FSDP] == 1 else None


def compile_step(make: Callable[..., Step], mesh: Mesh, *, smallest: int = SMALLEST, together: int = 1) -> Step:
    """The step that `make(axis_name=...)` gives, compiled for a mesh: by `mapped_step` where several devices have the
    state whole, else by `jit_step`, which says what it takes."""
    axis_name = axis_of(mesh)
    if axis_name is None:
        return jit_step(make(axis_name=None), mesh, smallest=smallest, together=together)
    return mapped_step(make(axis_name=axis_name), mesh, together=together)


def jit_step(step: Step, mesh: Mesh, *, smallest: int = SMALLEST, together: int = 1) -> Step:
    """The step compiled for a mesh, the state donated: state and constants lie as `spread` puts them, the batch by
    rows. `smallest` must be what they were spread with.

    With `together` above 1 it takes up to so many steps at once, on what `shard_together` gives, and each metric comes
    back as [together].
    """
    run: Any = step if together == 1 else several(step, together)
    whole = NamedSharding(mesh, PartitionSpec())
    if mesh.shape[FSDP] == 1:
        rows = jax.tree.map(lambda spec: NamedSharding(mesh, spec), batch_specs(together))
        return jax.jit(run, in_shardings=(whole, whole, rows), out_shardings=(whole, whole), donate_argnums=0)

    def constrained(tree: PyTree) -> PyTree:
        return jax.lax.with_sharding_constraint(tree, spread_shardings(tree, mesh, smallest=smallest))

    def spread_step(state, constants, batch):
        state, metrics = run(constrained(state), constants, batch)
        return constrained(state), metrics

    # What comes in is committed, so it says itself how it lies.
    return jax.jit(spread_step, out_shardings=(None, whole), donate_argnums=0)


def mapped_step(step: Step, mesh: Mesh, *, together: int = 1) -> Step:
    """As `jit_step`, of a step that was made with `axis_name="data"`: every device takes it on rows of its own.

    What the objective carries and what it measures must come back equal on every device, as under `pmap`. ValueError
    where the mesh cuts the state.
    """
    if mesh.shape[FSDP] > 1:
        raise ValueError(f"the mesh cuts the state over {mesh.shape[FSDP]} devices; give this step to jit_step")
    run: Any = step if together == 1 else several(step, together)
    specs = PartitionSpec(), PartitionSpec(), batch_specs(together)
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    mapped = on_own_rows(run, mesh, specs[-1])
    return jax.jit(mapped, in_shardings=places, out_shardings=places[0], donate_argnums=0)


def on_own_rows(run: Callable[..., Any], mesh: Mesh, rows: Any) -> Callable[..., Any]:
    """`run(*trees, batch)` on every device at once, of the batch the part that `rows` gives it, of the trees all.

    What it returns must be equal on all of them.
    """

    def mapped(*arguments: Any) -> Any:
        specs = (*(PartitionSpec() for _ in arguments[1:]), rows)
        # With the check every use of a leaf that is whole on each device has its gradient summed for itself.
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)(*arguments)

    return mapped


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
