import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.losses import mean_squared_error


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3), (4, 2, 3)])
def test_equals_torch(shape):
    rng = np.random.default_rng(0)
    predictions, targets = rng.normal(size=(2, *shape)).astype(np.float32)
    upstream = rng.normal(size=shape[0]).astype(np.float32)
    value, pullback = jax.vjp(lambda x: mean_squared_error(x, targets), predictions)
    leaf = torch.tensor(predictions, requires_grad=True)
    expected = torch.nn.functional.mse_loss(leaf, torch.tensor(targets), reduction="none").reshape(4, -1).mean(dim=1)
    (expected * torch.tensor(upstream)).sum().backward()
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-6)
    np.testing.assert_allclose(pullback(upstream)[0], leaf.grad, rtol=1e-6)


def test_bfloat16_is_accumulated_in_float32():
    """Hand computation: the mean of 4,096 ones is 1; a bfloat16 sum stops at 256."""
    loss = mean_squared_error(jnp.ones((1, 4096), jnp.bfloat16), jnp.zeros((1, 4096), jnp.bfloat16))
    assert loss.dtype == jnp.float32
    assert loss[0] == 1.0


@pytest.mark.parametrize("predictions, targets", [((3, 1), (3,)), ((3,), (4,)), ((), ())])
def test_shapes_must_agree(predictions, targets):
    with pytest.raises(ValueError, match="predictions and targets must have one shape with the batch first, got"):
        mean_squared_error(jnp.zeros(predictions), jnp.zeros(targets))
