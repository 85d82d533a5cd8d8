import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxptft import train
from jaxptft.objectives import Mean, lift

BATCH = {"x": np.ones(3, np.float32)}


def linear(start=None):
    def loss(params, batch, context):
        return {"l": Mean((params["w"] * params["frozen"] * batch["x"]).sum(), 3)}, ({}, context.state)

    return lift(loss, init=lambda rng, batch: {"w": jnp.ones(3), "frozen": jnp.full(3, 2.0)}, start=start)


def create(optimizer, objective=None, params=None):
    objective = objective or linear()
    trainable = {"w": True, "frozen": False}
    params = params or objective.init(None, BATCH)
    state = train.create_state(objective, optimizer, params, BATCH, trainable=trainable, rng=jax.random.key(5))
    step = jax.jit(train.make_step(objective, optimizer, trainable=trainable), donate_argnums=0)
    return state, step


def test_the_first_state():
    state, _ = create(optax.adam(0.1), linear(start=lambda params, batch: {"seen": 0, "rows": len(batch["x"])}))
    assert int(state.step) == 0
    assert jax.random.key_data(state.rng).tolist() == jax.random.key_data(jax.random.key(5)).tolist()
    assert isinstance(state.objective_state["seen"], jax.Array)
    assert state.objective_state["rows"] == 3
    assert state.opt_state[0].mu["frozen"] is None  # nothing is kept for a leaf that does not learn


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.1),
        optax.contrib.schedule_free_adamw(0.1),  # starts with z = params
        optax.chain(optax.sgd(0.1), optax.ema(0.9)),
        optax.chain(optax.trace(0.9), optax.add_noise(0.1, 0.5, jax.random.key(0))),
    ],
    ids=["adam", "schedule_free", "ema", "noise"],
)
def test_donating_the_state_leaves_the_callers_arrays_alone(optimizer):
    """Also where the optimizer's or the objective's first state is the parameters themselves."""
    caller = {"w": jnp.ones(3), "frozen": jnp.full(3, 2.0)}
    state, step = create(optimizer, linear(start=lambda params, batch: {"average": params["w"]}), caller)
    after, _ = step(state, None, BATCH)
    assert state.params["w"].is_deleted()
    assert caller["w"].tolist() == [1, 1, 1]
    assert not np.array_equal(after.params["w"], caller["w"])
    assert after.objective_state["average"].tolist() == [1, 1, 1]


def test_the_callers_key_survives_too():
    rng = jax.random.key(5)
    state = train.create_state(linear(), optax.sgd(0.1), {"w": jnp.ones(3)}, BATCH, trainable={"w": True}, rng=rng)
    state.rng.delete() if hasattr(state.rng, "delete") else None
    assert jax.random.key_data(rng).tolist() == jax.random.key_data(jax.random.key(5)).tolist()
