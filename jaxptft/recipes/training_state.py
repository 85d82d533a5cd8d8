"""The state before the first step, where its mesh wants it: made on no device that could not hold it."""

from typing import Any

import jax

from jaxptft import train
from jaxptft.objectives import Batch, Objective, Params


def first_state(
    objective: Objective, optimizer: Any, params: Params, batch: Batch, *, trainable: Any, rng: Any, mesh: Any
) -> train.State:
    """`train.create_state`, spread over the mesh; of several processes, all take the first one's parameters."""
    if mesh.shape["fsdp"] == 1:
        if jax.process_count() > 1:  # whose machines need not compute alike to the last bit
            params = train.from_first(params)
    else:
        params = train.spread(params, mesh)

    def make(params: Params, batch: Batch, rng: Any) -> train.State:
        return train.create_state(objective, optimizer, params, batch, trainable=trainable, rng=rng)

    # As one program: each leaf by itself would be compiled by shape.
    return train.spread(train.made_spread(make, mesh)(params, batch, rng), mesh)
