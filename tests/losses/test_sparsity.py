"""What holds units silent, against torch and numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from jaxptft.losses import activity_kl, activity_l1

quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ACTIVITY = np.array([0.01, 0.05, 0.3, 0.999], np.float32)


def test_the_divergence_and_its_gradient_are_torchs():
    leaf = torch.tensor(ACTIVITY, requires_grad=True)
    expected = kl_divergence(Bernoulli(torch.tensor(0.05)), Bernoulli(leaf)).sum()
    expected.backward()
    value, gradient = quick(jax.value_and_grad(lambda a: activity_kl(a, 0.05)))(ACTIVITY)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-4, atol=1e-5)
    assert abs(activity_kl(jnp.full(3, 0.2), 0.2)) < 1e-6  # it is what it shall be


def test_at_the_bounds_it_is_large_and_finite_and_beyond_them_nan():
    run = quick(jax.value_and_grad(lambda a: activity_kl(a, 0.1)))
    value, gradient = run(np.array([0.0, 1.0], np.float32))
    # By hand: 0.1 log(0.1 / 1e-6) + 0.9 log 0.9 and 0.1 log 0.1 + 0.9 log(0.9 / 1e-6), within float32's 1 - 1e-6.
    np.testing.assert_allclose(value, 13.165, rtol=5e-3)
    assert np.isfinite(gradient).all()
    for outside in (-0.1, 1.5, np.nan):
        assert np.isnan(run(np.array([0.5, outside], np.float32))[0])


def test_the_sum_of_absolute_values_is_numpys_over_rows_that_count():
    codes = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    valid = np.array([True, False, True, True])
    np.testing.assert_allclose(activity_l1(codes), np.abs(codes).sum(1), rtol=1e-6)
    spoilt = np.where(valid[:, None], codes, np.nan)
    gradient = jax.grad(lambda c: activity_l1(c, valid=valid).sum())(spoilt)
    np.testing.assert_array_equal(gradient, np.sign(codes) * valid[:, None])


def test_what_does_not_fit_is_named():
    for target in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"target activity is .*; expected a share of the time between 0 and 1"):
            activity_kl(ACTIVITY, target)
    with pytest.raises(ValueError, match=r"activity is float32 of shape \(2, 2\); expected floats, one for each unit"):
        activity_kl(jnp.ones((2, 2)), 0.1)
    with pytest.raises(ValueError, match="codes hold int32; expected floats"):
        activity_l1(jnp.ones((2, 2), jnp.int32))
