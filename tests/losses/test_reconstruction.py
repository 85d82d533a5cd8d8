"""Errors of drawn images against torch, with gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxptft import losses

RNG = np.random.default_rng(0)
DRAWN = RNG.normal(0, 2, (5, 3, 2, 1)).astype(np.float32)
IMAGES = RNG.random((5, 3, 2, 1)).astype(np.float32)
VALID = np.array([True, False, True, True, False])
UPSTREAM = RNG.normal(size=5).astype(np.float32)
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(x, t, s):
    return -torch.distributions.Normal(x, torch.exp(s / 2)).log_prob(t)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (lambda x, t, s: losses.image_squared_error(x, t), lambda x, t, s: F.mse_loss(x, t, reduction="none")),
        (
            lambda x, t, s: losses.image_cross_entropy(x, t),
            lambda x, t, s: F.binary_cross_entropy_with_logits(x, t, reduction="none"),
        ),
        (losses.image_gaussian_nll, normal),
    ],
    ids=["squared error", "bernoulli", "gaussian"],
)
def test_values_and_gradients_are_torchs_summed_over_each_image(ours, theirs):
    def run(x, t, s):
        value, back = jax.vjp(ours, x, t, s)
        return value, back(jnp.asarray(UPSTREAM))

    value, gradients = quick(run)(DRAWN, IMAGES, jnp.float32(-0.7))
    leaves = [torch.tensor(part, requires_grad=True) for part in (DRAWN, IMAGES, np.float32(-0.7))]
    expected = theirs(*leaves).flatten(1).sum(1)
    (expected * torch.tensor(UPSTREAM)).sum().backward()
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5)
    for own, leaf in zip(gradients, leaves, strict=True):
        grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        np.testing.assert_allclose(own, grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [losses.image_squared_error, losses.image_cross_entropy, losses.image_gaussian_nll])
def test_rows_that_do_not_count_have_no_influence_and_narrow_ones_are_widened(loss):
    spoilt = np.where(VALID[:, None, None, None], DRAWN, np.nan)
    run = lambda x: loss(x, IMAGES, valid=VALID)  # noqa: E731
    value, gradient = quick(lambda x: (run(x), jax.grad(lambda x: run(x).sum())(x)))(spoilt)
    np.testing.assert_allclose(value[VALID], loss(DRAWN[VALID], IMAGES[VALID]), rtol=1e-6)
    assert not np.asarray(value)[~VALID].any()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[VALID]).min() > 0
    assert not np.asarray(gradient)[~VALID].any()
    narrow = jnp.asarray(DRAWN, jnp.bfloat16)
    assert loss(narrow, IMAGES).dtype == jnp.float32
    np.testing.assert_array_equal(loss(narrow, IMAGES), loss(narrow.astype(jnp.float32), IMAGES))


@pytest.mark.parametrize("loss", [losses.image_squared_error, losses.image_cross_entropy, losses.image_gaussian_nll])
def test_what_does_not_fit_is_named(loss):
    with pytest.raises(ValueError, match=r"have shape \(5, 3, 2, 1\) and targets \(5, 3, 2\); expected one"):
        loss(DRAWN, IMAGES[..., 0])
    with pytest.raises(ValueError, match="hold int32; expected floats"):
        loss(jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"valid must be bool of shape \(5,\), got bool of \(3,\)"):
        loss(DRAWN, IMAGES, valid=VALID[:3])
