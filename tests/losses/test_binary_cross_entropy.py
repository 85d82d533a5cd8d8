import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.losses import binary_cross_entropy


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 3)).astype(np.float32)
    logits[0] = 1e4, -1e4, 50.0  # where log(sigmoid(x)) written out would be infinite
    return logits, (rng.random((5, 3)) < 0.4).astype(np.float32)


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 7.0)])
@pytest.mark.parametrize("soft", [False, True])
def test_value_and_gradient_are_torchs(case, weights, soft):
    logits, targets = case
    if soft:
        targets = 0.8 * targets + 0.1
    upstream = np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
    value, pullback = jax.vjp(lambda x: binary_cross_entropy(x, targets, positive_weights=weights), logits)
    leaf = torch.tensor(logits, requires_grad=True)
    pos_weight = None if weights is None else torch.tensor(weights)
    expected = torch.nn.BCEWithLogitsLoss(reduction="none", pos_weight=pos_weight)(leaf, torch.tensor(targets))
    (expected * torch.tensor(upstream)).sum().backward()
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(pullback(upstream)[0], leaf.grad, rtol=1e-5, atol=1e-7)


def test_rows_that_do_not_count_have_no_influence(case):
    logits, targets = case
    valid = np.array([True, True, False, True, False])
    logits[~valid] = np.nan
    value, gradient = jax.value_and_grad(lambda x: binary_cross_entropy(x, targets, valid=valid).sum())(logits)
    assert value == binary_cross_entropy(logits[valid], targets[valid]).sum()
    assert np.isfinite(gradient).all()
    assert not gradient[~valid].any()


def test_certainty_that_is_right_costs_nothing():
    """Hand computation: -log sigmoid(inf) is 0, and -log sigmoid(-inf) is infinite."""
    infinite = jnp.array([[jnp.inf, -jnp.inf, jnp.inf]])
    loss = binary_cross_entropy(infinite, jnp.array([[True, False, False]]))
    assert loss.tolist() == [[0.0, 0.0, float("inf")]]


def test_bfloat16_is_computed_in_float32(case):
    logits, targets = case
    narrow = jnp.asarray(logits, jnp.bfloat16)
    loss = binary_cross_entropy(narrow, targets)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, binary_cross_entropy(narrow.astype(jnp.float32), targets))


@pytest.mark.parametrize(
    ("logits", "targets", "options", "said"),
    [
        (
            np.zeros((2, 3), int),
            np.zeros((2, 3)),
            {},
            "logits must be floating with labels as the last axis, got int32",
        ),
        (np.zeros((2, 3)), np.zeros(2), {}, r"targets must have the logits' shape \(2, 3\), got \(2,\)"),
        (
            np.zeros((2, 3)),
            np.zeros((2, 3)),
            {"positive_weights": [1.0, 2.0]},
            r"positive_weights must have shape \(3,\), one for each label, got \(2,\)",
        ),
        (
            np.zeros((2, 3)),
            np.zeros((2, 3)),
            {"valid": np.ones(3, bool)},
            r"valid must be bool of shape \(2,\), got bool",
        ),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"valid": np.ones(2)}, r"valid must be bool of shape \(2,\), got float32"),
    ],
)
def test_what_does_not_fit_is_refused(logits, targets, options, said):
    with pytest.raises(ValueError, match=said):
        binary_cross_entropy(logits, targets, **options)
