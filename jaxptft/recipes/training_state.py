"""The state before the first step, where its mesh wants it: made on no device that could not hold it."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxptft import train
from jaxptft.objectives import Batch, Objective, Params


def first_state(
    objective: Objective, optimizer: Any, params: Params, batch: Batch, *, trainable: Any, rng: Any, mesh: Any
) -> train.State:
    """`train.create_state`, spread over the mesh; of several processes, all take the first one's parameters."""
    own: tuple[int, ...] = ()
    if mesh.shape["fsdp"] > 1:
        params = train.spread(params, mesh)
    elif jax.process_count() > 1:  # whose machines need not compute alike to the last bit
        params = train.from_first(params)
    else:  # a copy whose memory becomes the state's, so that no second one is ever held
        own = (0,)
        copied = jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, params)
        params = jax.device_put(copied, NamedSharding(mesh, PartitionSpec()), may_alias=False)

    def make(params: Params, batch: Batch, rng: Any) -> train.State:
        return train.create_state(objective, optimizer, params, batch, trainable=trainable, rng=rng)

    # As one program: each leaf by itself would be compiled by shape.
    return train.spread(train.made_spread(make, mesh, donate_argnums=own)(params, batch, rng), mesh)
