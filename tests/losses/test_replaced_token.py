import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.losses import replaced_token_cross_entropy


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 6)).astype(np.float32)
    logits[0, :2] = 1e4, -1e4  # far out, where log(sigmoid(x)) written out would be infinite
    counted = rng.random((3, 6)) < 0.7
    counted[0, :2], counted[2] = True, False
    return logits, rng.random((3, 6)) < 0.4, counted


def test_equals_torch_over_the_counted_tokens(case):
    """torch's binary_cross_entropy_with_logits over the selected tokens, and its gradient."""
    logits, replaced, counted = case

    def mean(x):
        total, count = replaced_token_cross_entropy(x, replaced, counted)
        return total.sum() / count.sum()

    value, gradient = jax.value_and_grad(mean)(logits)
    leaf = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        leaf[counted], torch.tensor(replaced[counted]).float()
    )
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(replaced_token_cross_entropy(logits, replaced, counted)[1], counted.sum(1))


def test_what_is_not_counted_has_no_influence(case):
    logits, replaced, counted = case
    total, _ = replaced_token_cross_entropy(logits, replaced, counted)
    logits[~counted], replaced[~counted] = np.nan, ~replaced[~counted]
    np.testing.assert_array_equal(replaced_token_cross_entropy(logits, replaced, counted)[0], total)
    gradient = jax.grad(lambda x: replaced_token_cross_entropy(x, replaced, counted)[0].sum())(logits)
    assert (np.asarray(gradient)[~counted] == 0.0).all()


def test_bfloat16_is_accumulated_in_float32():
    """Hand computation: 4,096 logits of 0 cost log 2 each; a bfloat16 sum stops far below."""
    flags = jnp.ones((1, 4096), bool)
    total, _ = replaced_token_cross_entropy(jnp.zeros((1, 4096), jnp.bfloat16), flags, flags)
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total[0], 4096 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize(
    "logits, replaced, counted, message",
    [
        (np.zeros((2, 3, 1)), np.ones((2, 3), bool), np.ones((2, 3), bool), r"logits must be floating .* \(2, 3, 1\)"),
        (np.zeros((2, 3), int), np.ones((2, 3), bool), np.ones((2, 3), bool), "logits must be floating .* got int32"),
        (np.zeros((2, 3)), np.ones((2, 3), int), np.ones((2, 3), bool), r"replaced must be bool .* got int32"),
        (np.zeros((2, 3)), np.ones((2, 3), bool), np.ones(2, bool), r"counted must be bool .* of \(2,\)"),
    ],
)
def test_errors(logits, replaced, counted, message):
    with pytest.raises(ValueError, match=message):
        replaced_token_cross_entropy(logits, replaced, counted)
