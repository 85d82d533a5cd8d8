import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft.objectives import cosine_decay, ema


def test_the_decay_grows_from_its_base_to_one():
    """Grill et al. 2020, section 3.3, by hand: half of what is missing to 1 is left halfway."""
    values = [float(cosine_decay(jnp.int32(step), base=0.9, steps=8)) for step in (-1, 0, 2, 4, 8, 9)]
    quarter = 1 - 0.1 * (np.cos(np.pi / 4) + 1) / 2
    np.testing.assert_allclose(values, [0.9, 0.9, quarter, 0.95, 1.0, 1.0], rtol=1e-6)


def test_the_average_reads_only_what_the_target_has_and_stays_where_both_are_equal():
    draw = lambda seed: {"backbone": {"w": jax.random.normal(jax.random.key(seed), (50,))}}  # noqa: E731
    target, online = draw(0), draw(1) | {"predictor": jnp.ones(2)}
    moved = ema(target, online, 0.75)
    expected = 0.75 * np.asarray(target["backbone"]["w"]) + 0.25 * np.asarray(online["backbone"]["w"])
    np.testing.assert_allclose(moved["backbone"]["w"], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(ema(target, target, 0.996)["backbone"]["w"], target["backbone"]["w"])
    with pytest.raises(KeyError, match="the parameters have no backbone/w, which the target network reads"):
        ema(target, {"backbone": {}}, 0.5)
