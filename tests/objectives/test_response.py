import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft import objectives

VOCAB = 7


class Table:
    """A causal model of one table: the logits after a token are its row."""

    @staticmethod
    def init(rng, batch):
        return {"table": jax.random.normal(rng, (VOCAB, VOCAB))}

    @staticmethod
    def apply(params, batch, *, rng=None, train=False):
        assert "token_type_ids" not in batch
        return params["table"][batch["input_ids"]]


BATCH = {
    "input_ids": np.array([[1, 2, 3, 4, 0, 6], [5, 6, 0, 6, 6, 6], [1, 1, 1, 1, 1, 1]], np.int32),
    "attention_mask": np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], np.int32),
    "token_type_ids": np.array([[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], np.int32),
    "ids": np.array([0, 1, -1], np.int32),
    "valid": np.array([True, True, False]),
}


def test_loss_and_gradient_are_those_of_torch_with_the_prompt_ignored():
    objective = objectives.response(Table)
    params = objective.init(jax.random.key(0), BATCH)
    context = objectives.Context({}, None, jax.random.key(1), True, None)

    def loss(params):
        return objectives.total_loss(objective.loss(params, BATCH, context)[0])

    value, gradient = jax.value_and_grad(loss)(params)
    weights = torch.tensor(np.asarray(params["table"]), requires_grad=True)
    labels = np.where(BATCH["token_type_ids"] == 1, BATCH["input_ids"], -100)  # as transformers takes them
    logits = weights[torch.tensor(BATCH["input_ids"]).long()]
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, VOCAB), torch.tensor(labels[:, 1:].reshape(-1)).long(), ignore_index=-100
    )
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(gradient["table"], weights.grad, atol=1e-6)


def test_predictions_are_the_sums_of_each_response():
    objective = objectives.response(Table)
    params = objective.init(jax.random.key(0), BATCH)
    context = objectives.Context({}, None, jax.random.key(1), False, None)
    found = objective.predict(params, BATCH, context)
    log = np.asarray(jax.nn.log_softmax(params["table"]))
    by_hand = [-(log[2, 3] + log[3, 4] + log[4, 0]), -(log[5, 6] + log[6, 0]), 0.0]
    np.testing.assert_allclose(found["loss"], by_hand, rtol=1e-5)
    assert found["tokens"].tolist() == [3, 2, 0]
    right = objective.loss(params, BATCH, context)[1][0]["response/accuracy"]
    best = np.asarray(jnp.argmax(params["table"], -1))
    assert float(right.total) == sum(best[a] == b for a, b in [(2, 3), (3, 4), (4, 0), (5, 6), (6, 0)])
