import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.losses import masked_token_cross_entropy

BATCH, LENGTH, VOCAB = 3, 6, 11


def _case():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(BATCH, LENGTH, VOCAB)).astype(np.float32)
    labels = rng.integers(0, VOCAB, size=(BATCH, LENGTH))
    chosen = np.zeros((BATCH, LENGTH), bool)
    chosen[0, [1, 2, 5]] = True
    chosen[2, 0] = True
    labels[0, 1] = 0  # token 0 can be chosen
    return logits, labels, chosen


def test_equals_torch_over_chosen_positions():
    """torch's mean with ignore_index=-100 elsewhere, and its gradient; very unequal counts, one of them 0."""
    logits, labels, chosen = _case()

    def mean(x):
        total, count = masked_token_cross_entropy(x, labels, chosen)
        return total.sum() / count.sum()

    value, gradient = jax.value_and_grad(mean)(logits)
    leaf = torch.tensor(logits, requires_grad=True)
    targets = torch.tensor(np.where(chosen, labels, -100))
    expected = torch.nn.functional.cross_entropy(leaf.reshape(-1, VOCAB), targets.reshape(-1))
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-5, atol=1e-7)
    total, count = masked_token_cross_entropy(logits, labels, chosen)
    np.testing.assert_array_equal(count, chosen.sum(axis=1))
    assert total[1] == 0.0


def test_gathered_positions_equal_full_length():
    """The chosen positions moved into a capacity of 4 places give the same totals and counts."""
    logits, labels, chosen = _case()
    order = np.argsort(~chosen, axis=1, kind="stable")[:, :4]
    rows = np.arange(BATCH)[:, None]
    gathered = masked_token_cross_entropy(logits[rows, order], labels[rows, order], chosen[rows, order])
    full = masked_token_cross_entropy(logits, labels, chosen)
    np.testing.assert_allclose(gathered[0], full[0], rtol=1e-6)
    np.testing.assert_array_equal(gathered[1], full[1])


def test_unchosen_positions_have_no_influence():
    logits, labels, chosen = _case()
    total, count = masked_token_cross_entropy(logits, labels, chosen)
    logits[~chosen], labels[~chosen] = np.nan, -100
    again, recount = masked_token_cross_entropy(logits, labels, chosen)
    np.testing.assert_array_equal(total, again)
    np.testing.assert_array_equal(count, recount)
    gradient = jax.grad(lambda x: masked_token_cross_entropy(x, labels, chosen)[0].sum())(logits)
    assert (np.asarray(gradient)[~chosen] == 0.0).all()


@pytest.mark.parametrize(
    "logits, labels, chosen, message",
    [
        ((2, 5), jnp.zeros((2, 3), int), jnp.ones((2, 3), bool), r"logits must have shape .* got \(2, 5\)"),
        ((2, 3, 5), jnp.zeros((2, 3)), jnp.ones((2, 3), bool), "labels must be integer token ids, got float32"),
        ((2, 3, 5), jnp.zeros((2, 3), int), jnp.ones((2, 3), int), r"chosen must be bool .* \(2, 3\), got int32"),
        (
            (2, 3, 5),
            jnp.zeros((2, 3), int),
            jnp.ones((2, 4), bool),
            r"chosen must be bool .* got bool of shape \(2, 4\)",
        ),
        ((2, 4, 5), jnp.zeros((2, 3), int), jnp.ones((2, 3), bool), r"integer labels must have shape \(2, 4\)"),
    ],
)
def test_errors(logits, labels, chosen, message):
    with pytest.raises(ValueError, match=message):
        masked_token_cross_entropy(jnp.zeros(logits), labels, chosen)
