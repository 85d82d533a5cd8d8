"""The divergence from the uniform distribution, against scipy's entropy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from jaxptft import losses


def test_it_is_scipys():
    logits = np.random.default_rng(0).normal(size=(3, 2, 5, 7)).astype(np.float32) * 3
    expected = entropy(softmax(logits, axis=-1), np.full(7, 1 / 7), axis=-1).mean(axis=(1, 2))
    np.testing.assert_allclose(losses.uniform_kl(jnp.asarray(logits)), expected, rtol=1e-5)
    # A place that is sure of its word costs all that a choice of seven is worth.
    np.testing.assert_allclose(losses.uniform_kl(jnp.array([[200.0] + [0.0] * 6])), [np.log(7)], rtol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"logits are int32 of shape \(2, 3\); expected floats"):
        losses.uniform_kl(jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(ValueError, match=r"of shape \(3,\); expected floats \[batch, ..., classes\]"):
        losses.uniform_kl(jnp.zeros(3))
