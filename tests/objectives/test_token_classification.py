from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch

from jaxptft.objectives import Context, token_classification

MODEL = SimpleNamespace(
    init=lambda rng, batch: {"w": jax.random.normal(rng, (3, 4))},
    apply=lambda params, batch, *, rng, train: batch["x"] @ params["w"],
)


def make_batch(length=5):
    rng = np.random.default_rng(0)
    x = np.zeros((3, length, 3), np.float32)
    labels = np.full((3, length), -100, np.int32)
    x[:, :5] = rng.normal(size=(3, 5, 3))
    labels[:, :5] = [[-100, 0, 2, -100, 3], [1, -100, 1, 1, -100], [0, 1, 2, 3, 0]]
    return {"x": x, "labels": labels, "ids": np.array([4, 2, -1], np.int32), "valid": np.array([True, True, False])}


def context(train=True):
    return Context({}, None, jax.random.key(0), train, None)


def value_of(objective, batch):
    return lambda params: objective.loss(params, batch, context())[0]["token_classification"].value()


@pytest.mark.parametrize("weights", [None, (0.3, 2.0, 1.0, 0.5)])
def test_loss_and_gradient_are_torchs_over_the_labelled_tokens_of_valid_rows(weights):
    objective = token_classification(MODEL, class_weights=weights, label_smoothing=0.1)
    batch = make_batch()
    params = objective.init(jax.random.key(1), batch)
    loss, gradient = jax.value_and_grad(value_of(objective, batch))(params)

    w = torch.tensor(np.asarray(params["w"]), requires_grad=True)
    reference = torch.nn.functional.cross_entropy(
        (torch.tensor(batch["x"][:2]) @ w).reshape(-1, 4),
        torch.tensor(batch["labels"][:2], dtype=torch.long).reshape(-1),
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=0.1,
        ignore_index=-100,
    )
    reference.backward()
    np.testing.assert_allclose(loss, reference.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient["w"], w.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_padding_changes_nothing_and_an_empty_batch_is_zero():
    objective = token_classification(MODEL)
    params = objective.init(jax.random.key(1), make_batch())
    losses = [float(value_of(objective, make_batch(length))(params)) for length in (5, 9)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    batch = make_batch()
    batch["labels"][:] = -100
    loss, gradient = jax.value_and_grad(value_of(objective, batch))(params)
    assert loss == 0
    assert not gradient["w"].any()


def test_accuracy_and_predictions():
    objective = token_classification(MODEL, width=7)
    batch = make_batch()
    params = objective.init(jax.random.key(1), batch)
    _, (metrics, _) = objective.loss(params, batch, context())
    logits = batch["x"] @ np.asarray(params["w"])
    right = ((logits.argmax(-1) == batch["labels"]) & batch["valid"][:, None]).sum()
    accuracy = metrics["token_classification/token_accuracy"]
    assert (float(accuracy.total), float(accuracy.count)) == (right, 6)
    found = objective.predict(params, batch, context(train=False))
    assert found["tags"].shape == found["scores"].shape == (3, 7)
    np.testing.assert_array_equal(found["tags"][:, :5], logits.argmax(-1))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(found["scores"][:, :5], probabilities.max(-1), rtol=1e-5)
    assert not np.asarray(found["scores"][:, 5:]).any()
    narrow = token_classification(MODEL, width=4)
    with pytest.raises(ValueError, match="width is 4, and a batch has 5 tokens; expected as many at least"):
        narrow.predict(params, batch, context(train=False))
