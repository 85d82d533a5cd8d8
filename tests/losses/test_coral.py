import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.losses import coral, covariance

RNG = np.random.default_rng(0)
SOURCE, TARGET = RNG.normal(20, 1, (7, 3)).astype(np.float32), RNG.normal(20, 3, (6, 3)).astype(np.float32)
VALID = np.array([True, True, False, True, True, False, True])


def test_covariance_is_numpys_over_the_valid_rows():
    np.testing.assert_allclose(covariance(SOURCE), np.cov(SOURCE.T), rtol=1e-4, atol=1e-6)
    dirty = np.where(VALID[:, None], SOURCE, np.inf)
    np.testing.assert_allclose(covariance(dirty, VALID), np.cov(SOURCE[VALID].T), rtol=1e-4, atol=1e-6)


def test_value_and_gradients_are_torchs():
    dirty = np.where(VALID[:, None], SOURCE, np.nan)
    value, gradients = jax.jit(jax.value_and_grad(lambda s, t: coral(s, t, source_valid=VALID), argnums=(0, 1)))(
        dirty, TARGET
    )
    leaves = [torch.tensor(rows, dtype=torch.float64, requires_grad=True) for rows in (SOURCE[VALID], TARGET)]
    expected = (torch.cov(leaves[0].T) - torch.cov(leaves[1].T)).square().sum() / (4 * 3**2)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-4)
    np.testing.assert_allclose(gradients[0][VALID], leaves[0].grad.numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(gradients[1], leaves[1].grad.numpy(), rtol=1e-3, atol=1e-5)
    assert not gradients[0][~VALID].any()


def test_a_sample_of_one_row_has_no_covariance_to_align():
    one = jnp.arange(7) == 3
    value, gradient = jax.value_and_grad(lambda target: coral(SOURCE, target, source_valid=one))(TARGET)
    assert value == 0
    assert not gradient.any()
    assert not covariance(SOURCE, one).any()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"must have one width, got shapes \(7, 3\) and \(6, 2\)"):
        coral(SOURCE, TARGET[:, :2])
    with pytest.raises(ValueError, match=r"rows must be floating of shape \(rows, width\), got int32"):
        covariance(jnp.ones((2, 2), jnp.int32))
    with pytest.raises(ValueError, match=r"valid must be bool of shape \(7,\), got float32 of shape \(7,\)"):
        covariance(SOURCE, jnp.ones(7))
