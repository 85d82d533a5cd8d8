import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.losses import next_token_cross_entropy, next_tokens

BATCH, LENGTH, VOCAB = 3, 7, 11
SEGMENTS = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 3, 0], [1, 0, 0, 0, 0, 0, 0]])
#: By hand: nothing follows the last token of a text, and the third row has nothing to predict at all.
PREDICTED = np.array([[1, 1, 1, 1, 1, 1, 0], [1, 0, 1, 1, 0, 0, 0], [0] * 7], bool)


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    return rng.normal(size=(BATCH, LENGTH, VOCAB)).astype(np.float32), rng.integers(0, VOCAB, size=(BATCH, LENGTH))


def test_targets_are_the_next_tokens_of_the_same_text(case):
    _, tokens = case
    targets, predicted = next_tokens(tokens, SEGMENTS)
    np.testing.assert_array_equal(predicted, PREDICTED)
    np.testing.assert_array_equal(targets[:, :-1], tokens[:, 1:])


def test_equals_torch_on_shifted_logits_and_labels(case):
    """torch's mean with ignore_index=-100 wherever nothing follows, and its gradient."""
    logits, tokens = case

    def mean(x):
        total, count = next_token_cross_entropy(x, tokens, SEGMENTS)
        return total.sum() / count.sum()

    value, gradient = jax.value_and_grad(mean)(logits)
    leaf = torch.tensor(logits, requires_grad=True)
    labels = torch.tensor(np.where(PREDICTED[:, :-1], tokens[:, 1:], -100))
    expected = torch.nn.functional.cross_entropy(leaf[:, :-1].reshape(-1, VOCAB), labels.reshape(-1))
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(next_token_cross_entropy(logits, tokens, SEGMENTS)[1], PREDICTED.sum(1))


def test_what_is_not_predicted_has_no_influence(case):
    logits, tokens = case
    total, _ = next_token_cross_entropy(logits, tokens, SEGMENTS)
    logits[~PREDICTED] = np.nan
    np.testing.assert_array_equal(next_token_cross_entropy(logits, tokens, SEGMENTS)[0], total)
    gradient = jax.grad(lambda x: next_token_cross_entropy(x, tokens, SEGMENTS)[0].sum())(logits)
    assert (np.asarray(gradient)[~PREDICTED] == 0.0).all()


@pytest.mark.parametrize(
    "logits, tokens, segments, message",
    [
        ((2, 3), np.ones((2, 3), int), np.ones((2, 3), int), r"logits must have shape .* got \(2, 3\)"),
        ((2, 3, 5), np.ones((2, 3)), np.ones((2, 3), int), "tokens must be integers of shape .* got float32"),
        ((2, 3, 5), np.ones(3, int), np.ones(3, int), r"tokens must be integers of shape .* of \(3,\)"),
        ((2, 3, 5), np.ones((2, 3), int), np.ones((2, 4), int), r"segments must be integers .* of \(2, 4\)"),
        ((2, 3, 5), np.ones((2, 3), int), np.ones((2, 3)), r"segments must be integers .* got float32"),
        ((2, 4, 5), np.ones((2, 3), int), np.ones((2, 3), int), r"integer labels must have shape \(2, 4\)"),
    ],
)
def test_errors(logits, tokens, segments, message):
    with pytest.raises(ValueError, match=message):
        next_token_cross_entropy(jnp.zeros(logits), tokens, segments)
