"""The divergence of a Gaussian from the standard one against `torch.distributions`, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from jaxptft.losses import gaussian_kl

RNG = np.random.default_rng(0)
MEAN, LOG_VARIANCE = (RNG.normal(0, 2, (4, 3)).astype(np.float32) for _ in range(2))


def test_value_and_gradients_are_torchs():
    value, gradients = jax.value_and_grad(lambda m, s: gaussian_kl(m, s).sum(), argnums=(0, 1))(MEAN, LOG_VARIANCE)
    m, s = (torch.tensor(part, requires_grad=True) for part in (MEAN, LOG_VARIANCE))
    each = kl_divergence(Normal(m, torch.exp(s / 2)), Normal(0.0, 1.0)).sum(1)
    each.sum().backward()
    np.testing.assert_allclose(gaussian_kl(MEAN, LOG_VARIANCE), each.detach(), rtol=1e-5)
    np.testing.assert_allclose(value, each.sum().item(), rtol=1e-5)
    for own, leaf in zip(gradients, (m, s), strict=True):
        np.testing.assert_allclose(own, leaf.grad, rtol=1e-4, atol=1e-6)


def test_near_the_standard_one_no_digits_are_lost():
    """exp(s) - 1 - s is s^2 / 2 to its first order: a hand computation, half of it the divergence."""
    np.testing.assert_allclose(gaussian_kl(jnp.zeros((1, 1)), jnp.full((1, 1), 1e-2)), [2.5083e-5], rtol=1e-3)


def test_rows_that_do_not_count_have_no_influence():
    valid = np.array([True, False, True, False])
    spoilt = np.where(valid[:, None], MEAN, np.nan)
    value, gradient = jax.value_and_grad(lambda m: gaussian_kl(m, LOG_VARIANCE, valid=valid).sum())(spoilt)
    np.testing.assert_allclose(value, gaussian_kl(MEAN[valid], LOG_VARIANCE[valid]).sum(), rtol=1e-6)
    np.testing.assert_array_equal(gradient, np.where(valid[:, None], MEAN, 0))


def test_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"means have shape \(4, 3\) and targets \(4, 2\); expected one"):
        gaussian_kl(MEAN, LOG_VARIANCE[:, :2])
