import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.losses import span_cross_entropy


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 7)).astype(np.float32) * 3
    return logits, np.array([0, 3, 2, 6]), np.array([0, 4, 2, 6])


def test_value_and_gradient_are_torchs(rows):
    logits, start, end = rows
    ours, gradient = jax.value_and_grad(lambda x: span_cross_entropy(x[0], x[1], start, end).mean())(logits)
    x = torch.tensor(logits, requires_grad=True)
    entropy = torch.nn.functional.cross_entropy
    theirs = (entropy(x[0], torch.tensor(start)) + entropy(x[1], torch.tensor(end))) / 2
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, x.grad.numpy(), atol=1e-7)


def test_places_outside_do_not_count(rows):
    logits, start, end = rows
    inside = np.arange(7) < np.array([5, 5, 7, 7])[:, None]
    whole = span_cross_entropy(logits[0], logits[1], start, end, inside=jnp.asarray(inside))
    for row, length in enumerate(inside.sum(1)):
        cut = logits[:, row : row + 1, :length]
        alone = span_cross_entropy(cut[0], cut[1], start[row : row + 1], end[row : row + 1])
        np.testing.assert_allclose(whole[row], alone[0], rtol=1e-6)
    assert span_cross_entropy(logits[0], logits[1], np.full(4, 6), end, inside=jnp.asarray(inside))[0] == jnp.inf


def test_rows_that_are_not_valid_are_zero_whatever_they_hold(rows):
    logits, start, end = rows
    logits[:, 1] = np.nan
    valid = jnp.array([True, False, True, True])
    inside = jnp.asarray(np.ones((4, 7), bool)).at[1].set(False)
    value = lambda x: span_cross_entropy(x[0], x[1], start, end, inside=inside, valid=valid).sum()  # noqa: E731
    loss, gradient = jax.value_and_grad(value)(logits)
    assert np.isfinite(loss)
    assert not gradient[:, 1].any()
