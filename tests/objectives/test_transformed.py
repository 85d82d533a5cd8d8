import jax
import jax.numpy as jnp
import numpy as np

from jaxptft.objectives import Context, Mean, lift, transformed


def stateful():
    """A loss of params and constants whose state counts how often it was taken, and that predicts its params."""

    def loss(params, batch, context):
        total = (params["w"] * context.constants["c"]).sum()
        return {"sum": Mean(total, jnp.ones(()))}, ({}, {"taken": context.state["taken"] + 1})

    return lift(
        loss,
        init=lambda rng, batch: {"w": jnp.ones(2)},
        start=lambda params, batch: {"taken": jnp.zeros(()), "seen": params["w"]},
        prepare=lambda params, state, step: {**state, "seen": params["w"] + step},
        predict=lambda params, batch, context: {"w": params["w"]},
        constants={"c": jnp.array([1.0, 10.0])},
    )


def doubled(params, constants, rng, train):
    noise = jax.random.normal(rng) if train else 0.0
    return {"w": 2.0 * params["w"] + constants["shift"] + noise}


def test_loss_and_predictions_see_transformed_params_and_state_and_constants_pass_through():
    objective = transformed(stateful(), doubled, constants={"shift": jnp.array([0.0, 1.0])})
    params = {"w": jnp.array([3.0, 4.0])}  # 2 w + shift = [6, 9]
    state = objective.start(params, {})
    np.testing.assert_array_equal(state["seen"], [6.0, 9.0])
    assert objective.prepare(params, state, 1)["seen"].tolist() == [7.0, 10.0]
    context = Context(state, objective.constants, jax.random.key(0), False, None)

    def value(params):
        terms, (_, state) = objective.loss(params, {}, context)
        return terms["sum"].total, state

    (total, state), gradient = jax.value_and_grad(value, has_aux=True)(params)
    assert (float(total), float(state["taken"])) == (6.0 + 90.0, 1.0)
    np.testing.assert_array_equal(gradient["w"], [2.0, 20.0])
    np.testing.assert_array_equal(objective.predict(params, {}, context)["w"], [6.0, 9.0])


def test_the_transform_has_a_key_of_its_own_and_knows_when_it_is_training():
    objective = transformed(stateful(), doubled, constants={"shift": jnp.zeros(2)})
    params = {"w": jnp.zeros(2)}

    def noise(seed):
        context = Context({}, objective.constants, jax.random.key(seed), True, None)
        return float(objective.predict(params, {}, context)["w"][0])

    assert noise(0) == noise(0) != noise(1)
    assert noise(0) != float(jax.random.normal(jax.random.key(0)))


def test_extra_init_adds_parameters():
    added = transformed(
        stateful(), doubled, extra_init=lambda rng, params: {"more": jnp.zeros(params["w"].shape)}
    ).init(jax.random.key(0), {})
    assert {name: leaf.shape for name, leaf in added.items()} == {"w": (2,), "more": (2,)}
