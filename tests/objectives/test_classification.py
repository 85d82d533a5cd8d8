from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.objectives import Context, classification


class Linear(NamedTuple):
    init: object = staticmethod(lambda rng, batch: {"w": jax.random.normal(rng, (3, 2))})
    apply: object = staticmethod(lambda params, batch, *, rng, train: batch["x"] @ params["w"])


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(5, 3)).astype(np.float32),
        "label": np.array([0, 1, 1, 0, 0], np.int32),
        "ids": np.array([4, 2, 9, -1, -1], np.int32),
        "valid": np.array([True, True, True, False, False]),
    }


def run(objective, params, batch, train=True):
    return objective.loss(params, batch, Context({}, None, jax.random.key(0), train, None))


@pytest.mark.parametrize("weights", [None, (0.3, 2.0)])
def test_loss_and_gradient_are_torchs_over_the_valid_rows(batch, weights):
    objective = classification(Linear(), class_weights=weights, label_smoothing=0.1)
    params = objective.init(jax.random.key(1), batch)
    value = lambda params: run(objective, params, batch)[0]["classification"].value()  # noqa: E731
    loss, gradient = jax.value_and_grad(value)(params)

    w = torch.tensor(np.asarray(params["w"]), requires_grad=True)
    reference = torch.nn.functional.cross_entropy(
        torch.tensor(batch["x"][:3]) @ w,
        torch.tensor(batch["label"][:3], dtype=torch.long),
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=0.1,
    )
    reference.backward()
    np.testing.assert_allclose(loss, reference.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient["w"], w.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_accuracy_counts_valid_rows_and_predictions_are_logits(batch):
    objective = classification(Linear())
    params = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)), jnp.float32)}
    _, (metrics, _) = run(objective, params, batch)
    logits = batch["x"] @ np.asarray(params["w"])
    expected = (logits.argmax(-1) == batch["label"])[:3].sum()
    accuracy = metrics["classification/accuracy"]
    assert (float(accuracy.total), float(accuracy.count)) == (expected, 3)
    predicted = objective.predict(params, batch, Context({}, None, jax.random.key(0), False, None))
    np.testing.assert_allclose(predicted["logits"], logits, rtol=1e-5)


def test_a_batch_of_padding_alone_is_zero_with_zero_gradient(batch):
    objective = classification(Linear())
    params = objective.init(jax.random.key(1), batch)
    batch["valid"][:] = False
    value = lambda params: run(objective, params, batch)[0]["classification"].value()  # noqa: E731
    loss, gradient = jax.value_and_grad(value)(params)
    assert loss == 0
    assert not gradient["w"].any()


def test_rows_count_by_their_weight_and_without_weights_nothing_changes(batch):
    objective = classification(Linear(), class_weights=(0.3, 2.0))
    params = objective.init(jax.random.key(1), batch)
    value = lambda params, batch: run(objective, params, batch)[0]["classification"].value()  # noqa: E731
    weight = np.array([0.5, 3.0, 0.0, np.nan, 7.0], np.float32)  # the last two rows are not valid
    loss, gradient = jax.value_and_grad(value)(params, batch | {"weight": weight})

    w = torch.tensor(np.asarray(params["w"]), requires_grad=True)
    label, classes = torch.tensor(batch["label"][:3], dtype=torch.long), torch.tensor([0.3, 2.0])
    per_row = torch.nn.functional.cross_entropy(
        torch.tensor(batch["x"][:3]) @ w, label, weight=classes, reduction="none"
    )
    rows = torch.tensor(weight[:3])
    reference = (per_row * rows).sum() / (classes[label] * rows).sum()
    reference.backward()
    np.testing.assert_allclose(loss, reference.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient["w"], w.grad.numpy(), rtol=1e-5, atol=1e-7)
    # Rows that all weigh 1 count as rows without weights do.
    assert value(params, batch | {"weight": np.ones(5, np.float32)}) == value(params, batch)
