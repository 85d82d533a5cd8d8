"""Distillation of answers' places and of responses' tokens, against torch with gradients."""

import jax
import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from jaxptft import models, objectives

LENGTHS = (6, 3, 5)  # of the rows that are valid; a fourth is padding
VALID = np.array([True, True, True, False])
MASK = (np.arange(6) < np.array([*LENGTHS, 0])[:, None]).astype(np.int32)
BATCH = {
    "input_ids": np.random.default_rng(0).integers(1, 9, (4, 6)).astype(np.int32) * MASK,
    "attention_mask": MASK,
    "token_type_ids": MASK * (np.arange(6) >= 2),  # the context, or the response
    "ids": np.array([3, 4, 5, -1], np.int32),
    "valid": VALID,
}
GIVEN = models.Model(lambda rng, batch: {}, lambda params, batch, *, rng=None, train=False: params["logits"])
TEMPERATURE = 3.0


def given(outputs, seed):
    return {"logits": np.random.default_rng(seed).normal(0, 2, (4, 6, outputs)).astype(np.float32)}


def ours(read, student, teacher, batch):
    """The loss and its gradient by the student's logits, with the teacher at hand and with its logits in the batch."""
    options = {"read": read, "temperature": TEMPERATURE, "soft": 0.5}
    live = objectives.distillation(GIVEN, GIVEN, teacher_params=teacher, **options)
    kept = objectives.distillation(GIVEN, **options)
    for objective, rows in ((live, batch), (kept, batch | {"teacher_logits": teacher["logits"]})):
        context = objectives.Context({}, objective.constants, jax.random.key(0), True, None)

        def loss(params, objective=objective, rows=rows, context=context):
            return objectives.total_loss(objective.loss(params, rows, context)[0])

        value, gradient = jax.value_and_grad(loss)(student)
        yield float(value), gradient["logits"], objective.loss(student, rows, context)[1][0]


def divergence(student, teacher):
    """Hinton et al. 2015: T^2 KL of the softened distributions along the last axis, summed over the others."""
    logs = [log_softmax(logits / TEMPERATURE, -1) for logits in (student, teacher)]
    return TEMPERATURE**2 * kl_div(*logs, log_target=True, reduction="sum")


def test_answers_are_two_distributions_over_the_tokens_of_a_row():
    student, teacher = given(2, 1), given(2, 2)
    theirs, taught = torch.tensor(student["logits"], requires_grad=True), torch.tensor(teacher["logits"])
    rows = [divergence(theirs[row, :end].T, taught[row, :end].T) for row, end in enumerate(LENGTHS)]
    expected = 0.5 * sum(rows) / 6  # 3 windows, of which each has a start and an end
    expected.backward()
    for loss, gradient, metrics in ours(objectives.answer_places, student, teacher, BATCH):
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        np.testing.assert_allclose(gradient, theirs.grad, atol=1e-6)
        assert not gradient[MASK == 0].any()
        # The likeliest places of both models that are the same, by numpy.
        held = [np.where(MASK[:3, :, None] > 0, logits["logits"][:3], -np.inf) for logits in (student, teacher)]
        same = held[0].argmax(1) == held[1].argmax(1)
        assert tuple(map(float, metrics["distillation/agreement"])) == (same.sum(), 6)


def test_of_responses_the_tokens_that_are_predicted_count_and_those_of_the_prompt_do_not():
    student, teacher = given(9, 1), given(9, 2)
    theirs, taught = torch.tensor(student["logits"], requires_grad=True), torch.tensor(teacher["logits"])
    # Position 1 predicts the first token of the response, and the last but one of a row its last.
    rows = [divergence(theirs[row, 1 : end - 1], taught[row, 1 : end - 1]) for row, end in enumerate(LENGTHS)]
    expected = 0.5 * sum(rows) / sum(end - 2 for end in LENGTHS)
    expected.backward()
    for loss, gradient, metrics in ours(objectives.response_tokens, student, teacher, BATCH):
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        np.testing.assert_allclose(gradient, theirs.grad, atol=1e-6)
        assert float(metrics["distillation/agreement"].count) == 8


def test_rows_of_padding_alone_are_zero_with_zero_gradient():
    batch = BATCH | {"valid": np.zeros(4, bool), "attention_mask": np.zeros_like(MASK)}
    for loss, gradient, _ in ours(objectives.answer_places, given(2, 1), given(2, 2), batch):
        assert loss == 0
        assert not np.asarray(gradient).any()


def test_two_ways_to_say_which_places_count_are_refused():
    table = objectives.TokenTable(4, np.arange(9) < 5, np.ones(9, bool))
    with pytest.raises(ValueError, match="both read and tokens say which places count; give one"):
        objectives.distillation(GIVEN, read=objectives.answer_places, tokens=table)
