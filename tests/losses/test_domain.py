import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.losses import domain_cross_entropy, reverse_gradient

LOGITS = np.array([0.5, -200.0, 3.0, np.nan], np.float32)
IS_TARGET = np.array([True, True, False, False])
VALID = np.array([True, True, True, False])


def test_value_and_gradient_are_torchs():
    value = lambda logits: domain_cross_entropy(logits, IS_TARGET, valid=VALID)  # noqa: E731
    leaf = torch.tensor(LOGITS[:3], requires_grad=True)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        leaf, torch.tensor(IS_TARGET[:3]).float(), reduction="none"
    )
    expected.sum().backward()
    np.testing.assert_allclose(value(LOGITS), [*expected.detach(), 0.0], rtol=1e-6)
    gradient = jax.grad(lambda logits: value(logits).sum())(LOGITS)
    np.testing.assert_allclose(gradient, [*leaf.grad, 0.0], rtol=1e-5)


def test_one_domain_for_all_rows():
    logits = jnp.array([1.0, -1.0], jnp.bfloat16)
    found = domain_cross_entropy(logits, False)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, domain_cross_entropy(logits, jnp.zeros(2, bool)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_comes_back_reversed_and_scaled(dtype):
    x = jnp.array([1.0, -2.0], dtype)

    @jax.jit
    def run(x, strength):
        return jax.value_and_grad(lambda x, s: (reverse_gradient(x, s) ** 2).sum(), argnums=(0, 1))(x, strength)

    value, (gradient, of_strength) = run(x, jnp.float32(0.25))
    assert value == 5.0
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, -0.25 * 2 * x)  # by hand
    assert of_strength == 0
    np.testing.assert_array_equal(reverse_gradient(x, 3.0), x)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"logits must be floating of shape \(batch,\), got float32 of shape \(1, 2\)"):
        domain_cross_entropy(jnp.ones((1, 2)), True)
    with pytest.raises(ValueError, match=r"is_target must be bool of the logits' shape \(2,\), got int32"):
        domain_cross_entropy(jnp.ones(2), jnp.ones(2, jnp.int32))
    with pytest.raises(ValueError, match=r"valid must be bool of the logits' shape \(2,\)"):
        domain_cross_entropy(jnp.ones(2), True, valid=jnp.ones(3, bool))
