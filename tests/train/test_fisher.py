"""The diagonal of the Fisher information against loops over single rows, in jax and in torch."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft import objectives, train

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def small():
    """tanh(x K) C, and fourteen rows of which eleven count; their label is 9, no class, where they do not."""
    rng = np.random.default_rng(0)
    params = {
        "backbone": {"kernel": rng.normal(size=(5, 4)).astype(np.float32)},
        "classifier": {"kernel": rng.normal(size=(4, 3)).astype(np.float32)},
    }

    def apply(params, batch, *, rng=None, train=False):
        return jnp.tanh(batch["x"] @ params["backbone"]["kernel"]) @ params["classifier"]["kernel"]

    valid = np.arange(14) % 5 != 2
    batch = {
        "x": np.where(valid[:, None], rng.normal(size=(14, 5)), 1e30).astype(np.float32),
        "label": np.where(valid, rng.integers(0, 3, 14), 9).astype(np.int32),
        "ids": np.where(valid, np.arange(14), -1).astype(np.int32),
        "valid": valid,
    }
    objective = objectives.classification(SimpleNamespace(init=lambda rng, batch: params, apply=apply))
    return SimpleNamespace(params=params, batch=batch, objective=objective)


@pytest.fixture(scope="module")
def fisher(small):
    return train.diagonal_fisher(small.objective, small.params, [small.batch], rng=KEY, chunk=4)


def rows_of(batch, *slices):
    return [{name: leaf[part] for name, leaf in batch.items()} for part in slices]


def close(ours, theirs):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), ours, theirs)


def test_it_is_the_mean_of_squared_gradients_of_single_valid_rows(small, fisher):
    context = objectives.Context({}, None, KEY, False, None)
    squares = []
    for number in np.flatnonzero(small.batch["valid"]):
        (row,) = rows_of(small.batch, slice(number, number + 1))
        gradient = jax.grad(
            lambda params, row=row: small.objective.loss(params, row, context)[0]["classification"].total
        )
        squares.append(jax.tree.map(np.square, gradient(small.params)))
    assert len(squares) == 11
    close(fisher, jax.tree.map(lambda *leaves: np.mean(leaves, 0), *squares))


def test_it_equals_torchs_per_example_gradients(small, fisher):
    kernel, head = (
        torch.tensor(small.params[name]["kernel"], requires_grad=True) for name in ("backbone", "classifier")
    )
    squares = []
    for number in np.flatnonzero(small.batch["valid"]):
        logits = torch.tanh(torch.tensor(small.batch["x"][number]) @ kernel) @ head
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(int(small.batch["label"][number])))
        squares.append([gradient.numpy() ** 2 for gradient in torch.autograd.grad(loss, (kernel, head))])
    means = [np.mean(own, 0) for own in zip(*squares, strict=True)]
    close(fisher, {"backbone": {"kernel": means[0]}, "classifier": {"kernel": means[1]}})


def test_neither_batches_nor_chunks_nor_devices_matter(small, fisher):
    parts = rows_of(small.batch, slice(0, 3), slice(3, 14))
    close(fisher, train.diagonal_fisher(small.objective, small.params, parts, rng=KEY, chunk=5))
    mesh = train.make_mesh()
    place = partial(train.shard, mesh=mesh)
    params = train.replicate(small.params, mesh)
    close(fisher, train.diagonal_fisher(small.objective, params, [small.batch], rng=KEY, chunk=8, place=place))


def test_what_does_not_train_is_not_asked_about(small, fisher):
    mask = {"backbone": {"kernel": False}, "classifier": {"kernel": True}}
    found = train.diagonal_fisher(small.objective, small.params, [small.batch], rng=KEY, trainable=mask)
    assert found["backbone"]["kernel"] is None
    close(found["classifier"], fisher["classifier"])


def test_drawn_labels_come_from_what_the_model_predicts(small):
    """Under logits so far apart that every draw is the largest; and with an even model, each class as often."""
    sure = {**small.params, "classifier": {"kernel": small.params["classifier"]["kernel"] * 50}}
    context = objectives.Context({}, None, KEY, False, None)
    relabel = train.drawn_labels(small.objective)
    logits = small.objective.predict(sure, small.batch, context)["logits"]
    valid = small.batch["valid"]
    assert (relabel(sure, small.batch, context)["label"] == logits.argmax(-1))[valid].mean() > 0.9
    even = {**small.params, "classifier": {"kernel": np.zeros((4, 3), np.float32)}}
    many = {"x": np.zeros((3000, 5), np.float32), "ids": np.arange(3000, dtype=np.int32)}
    counts = np.bincount(relabel(even, many, context)["label"], minlength=3)
    assert (abs(counts - 1000) < 5 * (3000 * 2 / 9) ** 0.5).all()  # binomial
    found = train.diagonal_fisher(small.objective, small.params, [small.batch], rng=KEY, relabel=relabel, chunk=4)
    drawn = {**small.batch, "label": np.asarray(relabel(small.params, small.batch, context)["label"])}
    close(found, train.diagonal_fisher(small.objective, small.params, [drawn], rng=KEY, chunk=4))


def test_what_has_no_per_example_gradients_is_refused(small):
    with pytest.raises(ValueError, match="examples interact"):
        train.diagonal_fisher(small.objective._replace(coupled=True), small.params, [], rng=KEY)
    with pytest.raises(ValueError, match="chunk must be at least 1 row, got 0"):
        train.diagonal_fisher(small.objective, small.params, [], rng=KEY, chunk=0)
    with pytest.raises(ValueError, match="no valid row"):
        train.diagonal_fisher(small.objective, small.params, [], rng=KEY)
