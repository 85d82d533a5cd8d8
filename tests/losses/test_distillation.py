import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import torch

from jaxptft.losses import distillation_kl


def _logits(scale=1.0, shape=(2, 3, 7)):
    rng = np.random.default_rng(0)
    return (scale * rng.normal(size=(2, *shape))).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_equals_torch(temperature, scale):
    student, teacher = _logits(scale)
    upstream = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
    value, pullback = jax.vjp(lambda x: distillation_kl(x, teacher, temperature=temperature), student)
    leaf = torch.tensor(student, requires_grad=True)
    expected = temperature**2 * torch.nn.functional.kl_div(
        torch.log_softmax(leaf / temperature, dim=-1),
        torch.log_softmax(torch.tensor(teacher) / temperature, dim=-1),
        reduction="none",
        log_target=True,
    ).sum(dim=-1)
    (expected * torch.tensor(upstream)).sum().backward()
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pullback(upstream)[0], leaf.grad, rtol=1e-5, atol=1e-6)


def test_equals_relative_entropy_of_scipy():
    student, teacher = _logits()
    expected = scipy.special.rel_entr(scipy.special.softmax(teacher, -1), scipy.special.softmax(student, -1)).sum(-1)
    np.testing.assert_allclose(distillation_kl(student, teacher), expected, rtol=1e-5, atol=1e-6)


def test_equal_logits_have_no_loss_and_no_gradient():
    student, _ = _logits()
    loss, gradient = jax.value_and_grad(lambda x: distillation_kl(x, student, temperature=2.0).sum())(student)
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_the_teacher_gets_no_gradient():
    student, teacher = _logits()
    np.testing.assert_array_equal(
        jax.grad(lambda t: distillation_kl(student, t).sum())(teacher), np.zeros_like(teacher)
    )


@pytest.mark.parametrize("student_logit", [0.7, -np.inf])
@pytest.mark.parametrize("teacher_logit", [-np.inf, -1e4])
def test_teacher_probability_zero_adds_nothing(student_logit, teacher_logit):
    """scipy.special.rel_entr(0, q) is 0, for q = 0 too; the gradient is softmax(student) - softmax(teacher)."""
    student = np.array([[0.3, student_logit, -1.0]], np.float32)
    teacher = np.array([[1.0, teacher_logit, 0.0]], np.float32)
    loss, gradient = jax.value_and_grad(lambda x: distillation_kl(x, teacher)[0])(student)
    p, q = scipy.special.softmax(teacher, -1), scipy.special.softmax(student, -1)
    np.testing.assert_allclose(loss, scipy.special.rel_entr(p, q).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, q - p, rtol=1e-5, atol=1e-6)


def test_student_that_excludes_what_the_teacher_expects_is_infinite():
    """scipy.special.rel_entr(p, 0) is inf."""
    assert distillation_kl(jnp.array([0.0, -jnp.inf]), jnp.array([0.0, 0.0])) == jnp.inf


def test_bfloat16_is_accumulated_in_float32():
    """Against the float32 result on the same rounded logits."""
    student, teacher = (jnp.asarray(x, jnp.bfloat16) for x in _logits(shape=(2, 512)))
    loss = distillation_kl(student, teacher)
    assert loss.dtype == jnp.float32
    wide = distillation_kl(student.astype(jnp.float32), teacher.astype(jnp.float32))
    np.testing.assert_allclose(loss, wide, rtol=1e-6)


@pytest.mark.parametrize(
    "student, teacher, temperature, message",
    [
        (jnp.zeros((2, 3)), jnp.zeros((2, 4)), 1.0, r"must have one shape, got \(2, 3\) and \(2, 4\)"),
        (jnp.zeros((2, 3), int), jnp.zeros((2, 3)), 1.0, "student_logits must be floating .* got int32"),
        (jnp.zeros((2, 3)), jnp.zeros(()), 1.0, r"teacher_logits must be floating .* of shape \(\)"),
        (jnp.zeros((2, 3)), jnp.zeros((2, 3)), 0.0, "temperature must be positive, got 0.0"),
        (jnp.zeros((2, 3)), jnp.zeros((2, 3)), float("nan"), "temperature must be positive, got nan"),
    ],
)
def test_errors(student, teacher, temperature, message):
    with pytest.raises(ValueError, match=message):
        distillation_kl(student, teacher, temperature=temperature)
