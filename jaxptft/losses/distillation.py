"""Knowledge distillation: the student's softened distribution pulled towards the teacher's.

    loss = T^2 * KL( softmax(teacher / T) || softmax(student / T) )

Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2. The factor T^2 keeps the size of the gradient when the
temperature changes, so that a weight against the hard-label loss keeps its meaning.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def distillation_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: float = 1.0,
) -> Float[Array, "*batch"]:
    """T^2 times the divergence of the student from the teacher, in nats, one value for each position.

    The teacher is not differentiated. Classes to which the teacher gives probability exactly 0 (logit -inf, or
    underflow) add nothing, to the gradient neither. Accumulated in float32 for narrower logits.

    Raises:
        ValueError: shapes differ, logits are not floating, or temperature is not positive.

    >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[jnp.log(3.0), 0.0]])
    >>> round(float(distillation_kl(student, teacher)[0]), 4)  # 3/4 log(3/4 : 1/2) + 1/4 log(1/4 : 1/2)
    0.1308
    """
    student_logits, teacher_logits = jnp.asarray(student_logits), jnp.asarray(teacher_logits)
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if logits.ndim == 0 or not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ValueError(
                f"{name} must be floating with classes as the last axis, got {logits.dtype} of shape {logits.shape}"
            )
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student and teacher logits must have one shape, got {student_logits.shape} and {teacher_logits.shape}"
        )
    if isinstance(temperature, int | float) and not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")

    wide = jnp.promote_types(jnp.result_type(student_logits, teacher_logits), jnp.float32)
    teacher_log = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(wide) / temperature, axis=-1)
    student_log = jax.nn.log_softmax(student_logits.astype(wide) / temperature, axis=-1)
    probability = jnp.exp(teacher_log)
    # 0 * inf is NaN, so the logarithms are cleared where the probability is 0, before the product.
    difference = jnp.where(probability > 0.0, teacher_log - student_log, 0.0)
    return temperature**2 * jnp.sum(probability * difference, axis=-1)
