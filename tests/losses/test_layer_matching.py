"""Losses of inner layers against restatements in torch, text by text on what is left without padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft import losses

LENGTHS = (5, 2, 1, 0)
MASK = np.arange(5) < np.array(LENGTHS)[:, None]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


STUDENT, TEACHER, WIDE = normal(4, 5, 6), normal(4, 5, 6), normal(4, 5, 8)
PROJECTION = normal(6, 8)
STUDENT_SCORES, TEACHER_SCORES = 3 * normal(4, 2, 5, 5), 3 * normal(4, 2, 5, 5)
STUDENT_HEADS, TEACHER_HEADS = normal(4, 5, 2, 6), normal(4, 5, 4, 4)


def torch_mse(student, teacher, length, projection=None):
    student = student[:length] if projection is None else student[:length] @ projection
    return torch.nn.functional.mse_loss(student, teacher[:length])


def torch_cosine(student, teacher, length, projection=None):
    student = student[:length] if projection is None else student[:length] @ projection
    ones = torch.ones(length)
    return torch.nn.functional.cosine_embedding_loss(student, teacher[:length], ones)  # DistilBERT's own


def torch_attention_mse(student, teacher, length):
    return torch.nn.functional.mse_loss(student[:, :length, :length], teacher[:, :length, :length])


def kl(student_logits, teacher_logits):
    return torch.nn.functional.kl_div(
        student_logits.log_softmax(-1), teacher_logits.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)


def torch_attention_kl(student, teacher, length):
    return kl(*(scores[:, :length, :length] for scores in (student, teacher))).mean()


def torch_relation(student, teacher, length, heads):
    """MiniLMv2, equations 3 to 5, with the heads cut as the paper's figure 1 shows."""

    def relation(x):
        x = x[:length].reshape(length, heads, -1).transpose(0, 1)
        return x @ x.transpose(1, 2) / x.shape[-1] ** 0.5

    return kl(relation(student), relation(teacher)).mean()


def probabilities(scores: np.ndarray) -> jax.Array:
    return jax.nn.softmax(jnp.where(MASK[:, None, None], scores, -1e30), axis=-1)


def on_probabilities(student, teacher, mask):
    return losses.attention_kl(probabilities(student), probabilities(teacher), mask)


CASES = {
    "hidden_mse": (losses.hidden_mse, torch_mse, (STUDENT, TEACHER), {}),
    "hidden_mse_projected": (losses.hidden_mse, torch_mse, (STUDENT, WIDE), {"projection": PROJECTION}),
    "hidden_cosine": (losses.hidden_cosine, torch_cosine, (STUDENT, TEACHER), {}),
    "hidden_cosine_projected": (losses.hidden_cosine, torch_cosine, (STUDENT, WIDE), {"projection": PROJECTION}),
    "attention_mse": (losses.attention_mse, torch_attention_mse, (STUDENT_SCORES, TEACHER_SCORES), {}),
    "attention_kl": (on_probabilities, torch_attention_kl, (STUDENT_SCORES, TEACHER_SCORES), {}),
    "relations": (losses.relation_kl, torch_relation, (STUDENT_HEADS, TEACHER_HEADS), {"relation_heads": 4}),
    "relations_by_head": (losses.relation_kl, torch_relation, (STUDENT_HEADS, normal(4, 5, 2, 3)), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_torch_with_gradients(name):
    ours, theirs, (student, teacher), options = CASES[name]
    learnt = {"student": student} | ({"projection": PROJECTION} if "projection" in options else {})
    fixed = {key: value for key, value in options.items() if key not in learnt}
    upstream = normal(4)

    def weighed(learnt):
        rest = {key: value for key, value in learnt.items() if key != "student"}
        each = ours(learnt["student"], teacher, MASK, **rest, **fixed)
        return (each * upstream).sum(), each

    (_, each), gradients = jax.value_and_grad(weighed, has_aux=True)(learnt)
    leaves = {key: torch.tensor(value, requires_grad=True) for key, value in learnt.items()}
    rest = {key: value for key, value in leaves.items() if key != "student"}
    if "relation" in name:
        rest = {"heads": fixed.get("relation_heads", 2)}
    expected = [
        theirs(leaves["student"][row], torch.tensor(teacher[row]), length, **rest) if length else torch.tensor(0.0)
        for row, length in enumerate(LENGTHS)
    ]
    (torch.stack(expected) * torch.tensor(upstream)).sum().backward()
    np.testing.assert_allclose(each, torch.stack(expected).detach(), rtol=2e-5, atol=1e-6)
    for key, leaf in leaves.items():
        np.testing.assert_allclose(gradients[key], leaf.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_neither_padding_nor_the_teacher_takes_part(name):
    """NaN wherever a token is not real changes nothing, and the teacher's gradient is exactly 0."""
    ours, _, (student, teacher), options = CASES[name]
    if name == "attention_kl":
        ours, (student, teacher) = losses.attention_kl, (probabilities(STUDENT_SCORES), probabilities(TEACHER_SCORES))

    def spoiled(x):
        x = jnp.asarray(x)
        if "attention" in name:  # a query that is padding; as a key it has probability 0, or a score nobody reads
            return jnp.where(MASK[:, None, :, None], x, jnp.nan)
        return jnp.where(MASK.reshape(*MASK.shape, *(1,) * (x.ndim - 2)), x, jnp.nan)

    plain = ours(student, teacher, MASK, **options)
    np.testing.assert_array_equal(ours(spoiled(student), spoiled(teacher), MASK.astype(np.int32), **options), plain)
    assert plain[3] == 0
    gradient = jax.grad(lambda teacher: ours(student, teacher, MASK, **options).sum())(jnp.asarray(teacher))
    np.testing.assert_array_equal(gradient, np.zeros_like(teacher))


def test_what_the_student_never_attends_to_costs_a_finite_amount():
    """Hand computation: 1/2 log(1/2) + 1/2 log(1/2 : tiny), with a finite gradient."""
    student, teacher = jnp.array([[[[1.0, 0.0]]]]).repeat(2, 2), jnp.full((1, 1, 2, 2), 0.5)
    value, gradient = jax.value_and_grad(lambda x: losses.attention_kl(x, teacher, jnp.ones((1, 2)))[0])(student)
    tiny = np.finfo(np.float32).tiny
    np.testing.assert_allclose(value, 0.5 * np.log(0.5) + 0.5 * (np.log(0.5) - np.log(tiny)), rtol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: losses.hidden_mse(STUDENT, WIDE, MASK), "have widths 6 and 8; pass a projection"),
        (lambda: losses.hidden_cosine(STUDENT, WIDE, MASK, PROJECTION.T), r"projection must be \(6, 8\), .* \(8, 6\)"),
        (lambda: losses.hidden_mse(STUDENT, TEACHER[:, :3], MASK), r"of one batch and length, got \(4, 5, 6\)"),
        (lambda: losses.hidden_mse(STUDENT, TEACHER, MASK[:2]), r"mask must be \(4, 5\), .* got \(2, 5\)"),
        (lambda: losses.attention_mse(STUDENT_SCORES, TEACHER_SCORES[:, :1], MASK), "of one shape, got"),
        (lambda: losses.attention_kl(STUDENT_SCORES[0], TEACHER_SCORES[0], MASK), r"must be \[batch, heads, length"),
        (lambda: losses.relation_kl(STUDENT_HEADS, TEACHER_HEADS, MASK), "2 and 4 heads; pass relation_heads"),
        (lambda: losses.relation_kl(STUDENT_HEADS, TEACHER_HEADS, MASK, relation_heads=5), "divide the width 12"),
        (lambda: losses.relation_kl(STUDENT, TEACHER, MASK), r"must be \[batch, length, heads, head_width\]"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
