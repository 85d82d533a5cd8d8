from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from jaxptft.objectives import Context, Mean, classification, lift, r_drop

BATCH = {
    "x": np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32),
    "label": np.array([0, 1, 1, 2, 0], np.int32),
    "ids": np.array([1, 2, 9, -1, -1], np.int32),
    "valid": np.array([True, True, True, False, False]),
}
PARAMS = {"w": np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)}


def linear(rate, masks=None):
    """x W with dropout on x; the masks that were drawn are left in `masks`."""

    def apply(params, batch, *, rng=None, train=False):
        x = jnp.asarray(batch["x"])
        if train and rate:
            mask = jax.random.bernoulli(rng, 1 - rate, x.shape) / (1 - rate)
            if masks is not None:
                masks.append(np.asarray(mask))
            x = x * mask
        return x @ params["w"]

    return SimpleNamespace(init=lambda rng, batch: PARAMS, apply=apply)


def run(objective, train=True, params=PARAMS):
    return objective.loss(params, BATCH, Context({}, None, jax.random.key(0), train, None))


def test_value_and_gradient_equal_torch_under_the_same_masks():
    masks = []
    objective = r_drop(classification(linear(0.5, masks)), weight=0.7)

    def value(params):
        terms, _ = run(objective, params=params)
        return sum(term.value() for term in terms.values())

    loss, gradient = jax.value_and_grad(value)(PARAMS)
    first, second = masks[:2]  # of the two losses; those of the two predictions are the same again
    assert all(any(np.array_equal(mask, own) for own in (first, second)) for mask in masks[2:])
    assert not np.array_equal(first, second)

    w = torch.tensor(PARAMS["w"], requires_grad=True)
    label = torch.tensor(BATCH["label"][:3], dtype=torch.long)
    one, other = (torch.tensor(BATCH["x"][:3] * mask[:3]) @ w for mask in (first, second))
    p, q = log_softmax(one, -1), log_softmax(other, -1)
    apart = kl_div(p, q, log_target=True, reduction="batchmean") + kl_div(q, p, log_target=True, reduction="batchmean")
    theirs = (cross_entropy(one, label) + cross_entropy(other, label)) / 2 + 0.7 * apart / 2
    theirs.backward()
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient["w"], w.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_without_dropout_and_in_evaluation_the_loss_is_the_tasks_own():
    plain = classification(linear(0.0))
    (own, (accuracy, _)), (terms, (metrics, _)) = run(plain), run(r_drop(plain, weight=3.0))
    assert (float(terms["r_drop"].total), float(terms["r_drop"].count)) == (0.0, 3.0)
    np.testing.assert_allclose(terms["classification"].value(), own["classification"].value(), rtol=1e-6)
    name = "classification/accuracy"
    np.testing.assert_allclose(metrics[name].value(), accuracy[name].value(), rtol=1e-6)
    noisy = classification(linear(0.5))
    assert run(r_drop(noisy, weight=3.0), train=False) == run(noisy, train=False)


def test_read_says_what_is_compared_and_what_counts():
    noisy = classification(linear(0.5))

    def pairs(params, batch, context):  # two distributions a row, of which the second row's first alone counts
        logits = noisy.predict(params, batch, context)["logits"]
        valid = np.zeros((5, 2), bool)
        valid[1, 0] = True
        return jnp.stack([logits, 2 * logits], 1), jnp.asarray(valid)

    both = run(r_drop(noisy, weight=1.0))[0]["r_drop"]
    one = run(r_drop(noisy, weight=1.0, read=pairs))[0]["r_drop"]
    assert float(one.count) == 1.0
    assert 0.0 < float(one.total) < float(both.total)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="the weight of r_drop must be at least 0, got -1"):
        r_drop(classification(linear(0.0)), weight=-1.0)
    silent = lift(lambda params, batch, context: {"a": Mean(0.0, 1)}, init=lambda rng, batch: PARAMS)
    with pytest.raises(ValueError, match=r"the objective predicts \[\]: give read="):
        run(r_drop(silent, weight=1.0))
