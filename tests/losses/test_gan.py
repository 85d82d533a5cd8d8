"""The losses of adversarial networks against torch's binary cross-entropy, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxptft.losses import gan_discriminator, gan_generator

RNG = np.random.default_rng(0)
REAL, DRAWN = (RNG.normal(0, 3, 6).astype(np.float32) for _ in range(2))


def theirs(logits, label):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")


def test_values_and_gradients_are_torchs():
    real, drawn = (torch.tensor(part, requires_grad=True) for part in (REAL, DRAWN))
    each = theirs(real, 1.0) + theirs(drawn, 0.0)
    np.testing.assert_allclose(gan_discriminator(REAL, DRAWN), each.detach(), rtol=1e-5)
    gradients = jax.grad(lambda r, d: gan_discriminator(r, d).sum(), argnums=(0, 1))(REAL, DRAWN)
    for own, other in zip(gradients, torch.autograd.grad(each.sum(), (real, drawn)), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5)
    each = theirs(drawn, 1.0)
    np.testing.assert_allclose(gan_generator(DRAWN), each.detach(), rtol=1e-5)
    gradient = jax.grad(lambda d: gan_generator(d).sum())(DRAWN)
    np.testing.assert_allclose(gradient, torch.autograd.grad(each.sum(), drawn)[0], rtol=1e-5)


def test_a_discriminator_that_is_certain_leaves_all_finite_and_the_generator_a_full_gradient():
    """Section 3 of the paper: log(1 - D) would have a gradient of 0 there. By hand: the loss is 200, its slope -1."""
    certain = jnp.array([-200.0])
    value, slope = jax.value_and_grad(lambda d: gan_generator(d).sum())(certain)
    assert (float(value), slope.tolist()) == (200.0, [-1.0])
    assert gan_discriminator(certain, -certain).tolist() == [400.0]


def test_rows_that_do_not_count_have_no_influence():
    valid = np.array([True, True, False, True, False, True])
    spoilt = np.where(valid, DRAWN, np.nan).astype(np.float32)
    value = gan_discriminator(spoilt, spoilt, valid=valid)
    np.testing.assert_allclose(value, np.where(valid, gan_discriminator(DRAWN, DRAWN), 0), rtol=1e-6)
    gradient = jax.grad(lambda d: gan_generator(d, valid=valid).sum())(spoilt)
    np.testing.assert_allclose(gradient, np.where(valid, jax.grad(lambda d: gan_generator(d).sum())(DRAWN), 0))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"logits are float32 of shape \(2, 1\); expected floats, one for each image"):
        gan_generator(jnp.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"valid must be bool of shape \(2,\), got float32 of \(2,\)"):
        gan_generator(jnp.zeros(2), valid=jnp.ones(2))
    with pytest.raises(ValueError, match=r"real and drawn images have shapes \(2,\) and \(3,\); expected one"):
        gan_discriminator(jnp.zeros(2), jnp.zeros(3))
