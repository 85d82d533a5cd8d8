from typing import NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert, models
from jaxptft.objectives import Context, question_answering

LENGTHS = np.array([9, 6, 4])


def batch_of():
    mask = np.arange(9) < np.append(LENGTHS, 0)[:, None]
    place = np.arange(9)
    return {
        "input_ids": np.where(mask, np.random.default_rng(0).integers(1, 30, (4, 9)), 0).astype(np.int32),
        "attention_mask": mask.astype(np.int32),
        "token_type_ids": (mask & (place >= 3)).astype(np.int32),
        "context": mask & (place >= 3) & (place < np.append(LENGTHS, 0)[:, None] - 1),
        "start": np.array([4, 0, 3, 0], np.int32),
        "end": np.array([6, 0, 3, 0], np.int32),
        "ids": np.array([5, 6, 7, -1], np.int32),
        "valid": np.array([True, True, True, False]),
    }


def run(objective, params, batch):
    return objective.loss(params, batch, Context({}, None, jax.random.key(0), False, None))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A tiny torch model of the task with every tensor random, and our parameters of it."""
    torch.manual_seed(0)
    fields = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=12, **fields)
    model = transformers.BertForQuestionAnswering(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    checkpoint = convert.load(folder)
    return model, checkpoint.params, models.build(checkpoint.config, "question_answering")


def test_loss_and_gradient_are_transformers(reference):
    theirs, params, model = reference
    batch = batch_of()
    objective = question_answering(model)
    value = lambda params: run(objective, params, batch)[0]["question_answering"].value()  # noqa: E731
    loss, gradient = jax.jit(jax.value_and_grad(value))(params)
    # Row by row, so that nothing is padded: transformers lets padding take part in its softmax.
    total = torch.zeros(())
    for row, length in enumerate(LENGTHS):
        cut = {
            name: torch.tensor(batch[name][row : row + 1, :length]).long() for name in batch if batch[name].ndim == 2
        }
        cut.pop("context")
        places = {f"{name}_positions": torch.tensor(batch[name][row : row + 1]).long() for name in ("start", "end")}
        total = total + theirs(**cut, **places).loss / 3
    total.backward()
    np.testing.assert_allclose(loss, total.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient["question_answering"]["kernel"].T, theirs.qa_outputs.weight.grad, atol=1e-5)
    word = gradient["backbone"]["embeddings"]["word"]["embedding"]
    np.testing.assert_allclose(word, theirs.bert.embeddings.word_embeddings.weight.grad, atol=1e-5)


class Given(NamedTuple):
    """A model whose logits are its parameters."""

    init: object = staticmethod(lambda rng, batch: {})
    apply: object = staticmethod(lambda params, batch, *, rng, train: params["logits"])


def given(batch, seed=1):
    return np.random.default_rng(seed).normal(size=(*batch["input_ids"].shape, 2)).astype(np.float32)


def test_accuracy_needs_both_places_and_padding_is_no_place():
    batch = batch_of()
    logits = given(batch) - 5.0
    for row in range(4):
        logits[row, batch["start"][row], 0] = logits[row, batch["end"][row], 1] = 9.0
    logits[2, 8] = 99.0  # beyond the row's end
    logits[1, 2, 1] = 10.0  # a wrong end
    _, (metrics, _) = run(question_answering(Given()), {"logits": logits}, batch)
    accuracy = metrics["question_answering/window_accuracy"]
    assert (float(accuracy.total), float(accuracy.count)) == (2, 3)  # by hand: rows 0 and 2


def test_predictions_are_the_best_places_of_the_context():
    batch = batch_of()
    logits = given(batch)
    objective = question_answering(Given(), n_best=4)
    found = objective.predict({"logits": logits}, batch, Context({}, None, jax.random.key(0), False, None))
    np.testing.assert_allclose(found["null"], logits[:, 0].sum(-1), rtol=1e-6)
    for kind, name in enumerate(("start", "end")):
        for row in range(3):
            places = np.flatnonzero(batch["context"][row])
            order = places[np.argsort(-logits[row, places, kind], kind="stable")][:4]
            expected = np.append(order, np.full(4 - len(order), -1))
            np.testing.assert_array_equal(found[f"{name}_places"][row], expected)
            values = np.append(logits[row, order, kind], np.zeros(4 - len(order)))
            np.testing.assert_allclose(found[f"{name}_logits"][row], values)
        assert (found[f"{name}_places"][3] == -1).all()
    wide = question_answering(Given(), n_best=20).predict(
        {"logits": logits}, batch, Context({}, None, jax.random.key(0), False, None)
    )
    assert wide["start_places"].shape == (4, 20)
    np.testing.assert_array_equal(wide["start_places"][:, :4], found["start_places"])


def test_a_batch_of_padding_alone_is_zero_with_zero_gradient():
    batch = batch_of()
    batch["valid"][:] = False
    objective = question_answering(Given())
    value = lambda params: run(objective, params, batch)[0]["question_answering"].value()  # noqa: E731
    loss, gradient = jax.value_and_grad(value)({"logits": given(batch)})
    assert loss == 0
    assert not gradient["logits"].any()


def test_no_candidates_are_refused():
    with pytest.raises(ValueError, match="n_best is 0, expected at least 1"):
        question_answering(Given(), n_best=0)
