import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft.objectives import Context, Mean, lift, slice_rng, total_loss

CONTEXT = Context(state={"kept": 1}, constants=None, rng=jax.random.key(0), train=True, axis_name=None)


def lifted(returned):
    return lift(lambda params, batch, context: returned, init=lambda rng, batch: {})


def test_a_mean_divides_and_nothing_counted_is_zero_with_zero_gradient():
    assert Mean(jnp.array(6.0), jnp.array(4.0)).value() == 1.5  # by hand
    assert Mean(jnp.array(0.0), jnp.array(0.0)).value() == 0.0
    gradient = jax.grad(lambda x: Mean(x * 0, jnp.array(0.0)).value())(3.0)
    assert gradient == 0.0


def test_the_loss_is_the_sum_of_the_terms_means():
    terms = {"a": Mean(jnp.array(6.0), jnp.array(4.0)), "b": Mean(jnp.array(1.0), jnp.array(2.0))}
    assert total_loss(terms) == 2.0  # 6/4 + 1/2


@pytest.mark.parametrize(
    "returned, metrics, state",
    [
        ({"a": Mean(1.0, 2.0)}, {}, {"kept": 1}),
        (({"a": Mean(1.0, 2.0)}, {"m": Mean(3.0, 4.0)}), {"m": Mean(3.0, 4.0)}, {"kept": 1}),
        (({"a": Mean(1.0, 2.0)}, ({"m": Mean(3.0, 4.0)}, {"new": 2})), {"m": Mean(3.0, 4.0)}, {"new": 2}),
    ],
)
def test_lift_accepts_three_forms_of_a_loss(returned, metrics, state):
    assert lifted(returned).loss({}, {}, CONTEXT) == ({"a": Mean(1.0, 2.0)}, (metrics, state))


def test_lift_fills_the_defaults():
    objective = lifted({})
    assert objective.start({"w": 1}, {}) == {}
    assert objective.prepare({}, {"s": 1}, 0) == {"s": 1}
    assert objective.predict({}, {}, CONTEXT) == {}
    assert objective.constants is None
    assert objective.coupled is False


def test_a_loss_that_returns_something_else_is_refused():
    with pytest.raises(TypeError, match="a loss returned float; expected terms"):
        lifted(3.0).loss({}, {}, CONTEXT)
    with pytest.raises(TypeError, match="term 'a' is a float; expected a Mean"):
        lifted({"a": 3.0}).loss({}, {}, CONTEXT)
    with pytest.raises(TypeError, match="metric 'm' is a int; expected a Mean"):
        lifted(({}, {"m": 3})).loss({}, {}, CONTEXT)


def test_dropout_keys_follow_the_first_example_of_the_slice():
    rng = jax.random.key(3)
    ids = np.array([7, 1, 2])
    expected = jax.random.fold_in(rng, 7)
    assert jnp.array_equal(jax.random.key_data(slice_rng(rng, {"ids": ids})), jax.random.key_data(expected))
    other = jax.random.key_data(slice_rng(rng, {"ids": ids[1:]}))
    assert not jnp.array_equal(other, jax.random.key_data(expected))
