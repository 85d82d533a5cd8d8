from typing import NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert, models
from jaxptft.objectives import Context, multiple_choice

COUNTS = np.array([3, 2, 3])  # choices of each example; a fourth row only fills the batch


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    exists = np.arange(3) < np.append(COUNTS, 0)[:, None]
    lengths = np.where(exists, rng.integers(4, 9, (4, 3)), 0)
    mask = np.arange(8) < lengths[..., None]
    return {
        "input_ids": np.where(mask, rng.integers(1, 30, (4, 3, 8)), 0).astype(np.int32),
        "attention_mask": mask.astype(np.int32),
        "token_type_ids": (mask & (np.arange(8) >= 3)).astype(np.int32),
        "valid_choices": exists,
        "label": np.array([2, 1, 0, 0], np.int32),
        "ids": np.array([5, 6, 7, -1], np.int32),
        "valid": np.array([True, True, True, False]),
    }


def context():
    return Context({}, None, jax.random.key(0), False, None)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    torch.manual_seed(0)
    fields = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=12, **fields)
    model = transformers.BertForMultipleChoice(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    checkpoint = convert.load(folder)
    return model, checkpoint.params, models.build(checkpoint.config, "multiple_choice")


def test_loss_gradient_and_logits_are_transformers_over_the_choices_that_exist(reference, batch):
    theirs, params, model = reference
    objective = multiple_choice(model)

    def value(params):
        return objective.loss(params, batch, context())[0]["multiple_choice"].value()

    loss, gradient = jax.jit(jax.value_and_grad(value))(params)
    predicted = jax.jit(lambda params: objective.predict(params, batch, context()))(params)["logits"]
    total = torch.zeros(())
    names = ("input_ids", "attention_mask", "token_type_ids")
    for row, count in enumerate(COUNTS):  # one by one, since transformers knows no choice that does not exist
        inputs = {name: torch.tensor(batch[name][row : row + 1, :count]).long() for name in names}
        out = theirs(**inputs, labels=torch.tensor(batch["label"][row : row + 1]).long())
        np.testing.assert_allclose(predicted[row, :count], out.logits[0].detach(), rtol=1e-5, atol=1e-5)
        total = total + out.loss / 3
    total.backward()
    np.testing.assert_allclose(loss, total.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient["multiple_choice"]["kernel"].T, theirs.classifier.weight.grad, atol=1e-5)
    word = gradient["backbone"]["embeddings"]["word"]["embedding"]
    np.testing.assert_allclose(word, theirs.bert.embeddings.word_embeddings.weight.grad, atol=1e-5)
    assert (np.asarray(predicted)[~batch["valid_choices"]] == np.float32(-1e30)).all()


class Given(NamedTuple):
    """A model whose logits are its parameters."""

    init: object = staticmethod(lambda rng, batch: {})
    apply: object = staticmethod(lambda params, batch, *, rng, train: params["logits"])


def test_a_choice_that_does_not_exist_is_never_taken(batch):
    logits = np.zeros((4, 3), np.float32)
    logits[np.arange(4), batch["label"]] = 1.0
    logits[1, 2] = 9.0
    logits[2, 1] = 2.0
    _, (metrics, _) = multiple_choice(Given()).loss({"logits": logits}, batch, context())
    accuracy = metrics["multiple_choice/accuracy"]
    assert (float(accuracy.total), float(accuracy.count)) == (2, 3)  # by hand: rows 0 and 1


def test_label_smoothing_is_torchs_over_the_choices_that_exist(batch):
    logits = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    terms, _ = multiple_choice(Given(), label_smoothing=0.1).loss({"logits": logits}, batch, context())
    entropy = torch.nn.functional.cross_entropy
    expected = [
        entropy(torch.tensor(logits[row, :count]), torch.tensor(batch["label"][row]).long(), label_smoothing=0.1).item()
        for row, count in enumerate(COUNTS)
    ]
    np.testing.assert_allclose(terms["multiple_choice"].value(), np.mean(expected), rtol=1e-5)
