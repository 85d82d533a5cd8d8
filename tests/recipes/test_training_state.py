"""The state before the first step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxptft import train
from jaxptft.objectives import Mean, lift
from jaxptft.recipes.training_state import first_state

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4).T
BATCH = {"x": np.ones((8, 4), np.float32)}


def loss(params, batch, context):
    return {"l": Mean(((batch["x"] @ params["w"]) ** 2).sum(), 8)}, ({}, context.state)


@pytest.mark.parametrize("kind", ["numpy", "view", "read-only", "placed", "replicated"])
@pytest.mark.parametrize("devices", [1, 8])
def test_the_caller_keeps_its_parameters(kind, devices):
    """Whatever they are: the state's memory is its own, which a step takes."""
    mesh = train.make_mesh(jax.devices()[:devices])
    read_only = VALUES.copy()
    read_only.flags.writeable = False
    given = {
        "numpy": np.ascontiguousarray(VALUES),
        "view": VALUES,
        "read-only": read_only,
        "placed": jnp.asarray(VALUES),
        "replicated": train.replicate(jnp.asarray(VALUES), mesh),
    }[kind]
    objective = lift(loss, init=lambda rng, batch: {"w": jnp.zeros((4, 3))})
    optimizer, trainable = optax.sgd(0.1), {"w": True}
    rng = jax.random.key(0)
    state = first_state(objective, optimizer, {"w": given}, BATCH, trainable=trainable, rng=rng, mesh=mesh)
    np.testing.assert_array_equal(state.params["w"], VALUES)
    step = train.jit_step(train.make_step(objective, optimizer, trainable=trainable), mesh)
    after, _ = step(state, {}, train.shard(BATCH, mesh))
    assert state.params["w"].is_deleted()
    np.testing.assert_array_equal(given, VALUES)
    assert not np.array_equal(after.params["w"], VALUES)
    assert jax.random.key_data(rng).shape == (2,)
