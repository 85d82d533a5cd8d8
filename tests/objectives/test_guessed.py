import jax
import jax.numpy as jnp
import numpy as np

from jaxptft.objectives.guessed import guessed


def test_it_is_numpys_argmax_with_ties_and_infinities():
    rng = np.random.default_rng(0)
    logits = rng.integers(-2, 3, (200, 3, 7)).astype(np.float32)  # many ties
    logits[::5, 0, 2], logits[::7, 1, 3], logits[::11] = np.inf, -np.inf, -np.inf
    labels = rng.integers(0, 7, (200, 3))
    expected = logits.argmax(-1) == labels
    assert 50 < expected.sum() < 400
    np.testing.assert_array_equal(jax.jit(guessed)(logits, labels), expected)


def test_what_is_no_number_and_no_class_is_never_guessed():
    logits = jnp.array([[jnp.nan, 1.0], [jnp.nan, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert guessed(logits, jnp.array([0, 1, 2, -100])).tolist() == [False] * 4
