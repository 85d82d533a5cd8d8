"""Regression and multi-label over a linear model, against torch's losses on the rows that count."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.objectives import Context, multi_label, regression


class Linear(NamedTuple):
    init: object = staticmethod(lambda rng, batch: {"w": jax.random.normal(rng, (3, 2))})
    apply: object = staticmethod(lambda params, batch, *, rng, train: batch["x"] @ params["w"])


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(5, 3)).astype(np.float32),
        "label": rng.normal(size=5).astype(np.float32),
        "ids": np.array([4, 2, 9, -1, -1], np.int32),
        "valid": np.array([True, True, True, False, False]),
    }


def learnt(objective, batch, outputs):
    """The loss and its gradient at some parameters, the metrics and the predictions."""
    params = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(3, outputs)), jnp.float32)}
    context = Context({}, None, jax.random.key(0), True, None)

    def value(params):
        terms, (metrics, _) = objective.loss(params, batch, context)
        (term,) = terms.values()
        return term.value(), metrics

    (loss, metrics), gradient = jax.value_and_grad(value, has_aux=True)(params)
    predictions = objective.predict(params, batch, context._replace(train=False))["logits"]
    return params["w"], loss, gradient["w"], metrics, predictions


def torchs(w, batch, loss_of):
    leaf = torch.tensor(np.asarray(w), requires_grad=True)
    loss = loss_of(torch.tensor(batch["x"][:3]) @ leaf, torch.tensor(batch["label"][:3]))
    loss.backward()
    return loss.item(), leaf.grad.numpy()


def test_regression_is_torchs_mean_squared_error_over_the_valid_rows(batch):
    batch["label"][3:] = np.nan
    w, loss, gradient, metrics, predictions = learnt(regression(Linear()), batch, 1)
    expected, slope = torchs(w, batch, lambda x, y: torch.nn.functional.mse_loss(x[:, 0], y))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert metrics == {}
    np.testing.assert_allclose(predictions, batch["x"] @ w, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)


def test_regression_needs_one_output(batch):
    objective = regression(Linear())
    with pytest.raises(ValueError, match=r"outputs of shape \(5, 2\); expected \(batch, 1\): one number each"):
        learnt(objective, batch, 2)


@pytest.mark.parametrize("weights", [None, (0.3, 2.0)])
def test_multi_label_is_torchs_bce_over_the_valid_rows(batch, weights):
    batch["label"] = (np.random.default_rng(2).random((5, 2)) < 0.5).astype(np.float32)
    w, loss, gradient, metrics, predictions = learnt(multi_label(Linear(), positive_weights=weights), batch, 2)
    pos_weight = None if weights is None else torch.tensor(weights)
    expected, slope = torchs(w, batch, torch.nn.BCEWithLogitsLoss(pos_weight=pos_weight))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)
    accuracy = metrics["multi_label/accuracy"]
    right = ((batch["x"] @ w > 0) == (batch["label"] > 0))[:3].sum()
    assert (float(accuracy.total), float(accuracy.count)) == (right, 6)
    np.testing.assert_allclose(predictions, batch["x"] @ w, rtol=1e-5)


@pytest.mark.parametrize(("objective", "outputs"), [(regression(Linear()), 1), (multi_label(Linear()), 2)])
def test_a_batch_of_padding_alone_is_zero_with_zero_gradient(batch, objective, outputs):
    batch["valid"][:] = False
    if outputs == 2:
        batch["label"] = np.ones((5, 2), np.float32)
    _, loss, gradient, _, _ = learnt(objective, batch, outputs)
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize(("objective", "outputs"), [(regression(Linear()), 1), (multi_label(Linear()), 2)])
def test_a_row_counts_as_its_weight_says(batch, objective, outputs):
    """Weights of 2, 1 and 0 are the first row twice, the second once and the third never."""
    if outputs == 2:
        batch["label"] = (np.random.default_rng(2).random((5, 2)) < 0.5).astype(np.float32)
    weighted = learnt(objective, batch | {"weight": np.array([2, 1, 0, 7, 7], np.float32)}, outputs)
    rows = np.array([0, 0, 1, 3, 4])
    repeated = learnt(objective, {name: values[rows] for name, values in batch.items()}, outputs)
    np.testing.assert_allclose(weighted[1], repeated[1], rtol=1e-6)
    np.testing.assert_allclose(weighted[2], repeated[2], rtol=1e-5)
