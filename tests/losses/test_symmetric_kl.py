import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from jaxptft.losses import symmetric_kl

ONE, OTHER = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32) * 3


def test_value_and_both_gradients_equal_torch():
    """The authors' own expression: the mean of `kl_div` in both directions."""
    value, gradients = jax.value_and_grad(lambda *sides: symmetric_kl(*sides).sum(), (0, 1))(ONE, OTHER)
    sides = [torch.tensor(side, requires_grad=True) for side in (ONE, OTHER)]
    p, q = (log_softmax(side, -1) for side in sides)
    expected = (kl_div(p, q, log_target=True, reduction="sum") + kl_div(q, p, log_target=True, reduction="sum")) / 2
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for ours, theirs in zip(gradients, sides, strict=True):
        np.testing.assert_allclose(ours, theirs.grad, rtol=1e-4, atol=1e-6)


def test_uncounted_positions_and_impossible_classes_add_nothing_to_value_or_gradient():
    broken = np.where(np.arange(5)[:, None] == 4, np.nan, ONE)
    impossible = np.where(np.arange(3) == 2, -np.inf, broken)
    others = np.where(np.arange(3) == 2, -np.inf, OTHER)
    valid = jnp.arange(5) < 4

    def summed(side):
        return symmetric_kl(side, others, valid=valid).sum()

    value, gradient = jax.value_and_grad(summed)(impossible)
    np.testing.assert_allclose(value, symmetric_kl(ONE[:4, :2], OTHER[:4, :2]).sum(), rtol=1e-5)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[4].any()


def test_equal_logits_are_exactly_0_apart():
    assert not symmetric_kl(ONE, ONE).any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"logits must be floating .* got int32 of shape \(2,\)"):
        symmetric_kl(np.zeros(2, np.int32), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match=r"one shape, got \(5, 3\) and \(4, 3\)"):
        symmetric_kl(ONE, OTHER[:4])
    with pytest.raises(ValueError, match=r"valid must have shape \(5,\)"):
        symmetric_kl(ONE, OTHER, valid=jnp.ones((5, 3), bool))
