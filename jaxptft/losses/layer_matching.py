"""A student's inner layers pulled towards a teacher's: hidden states, attention, and relations between tokens.

Jiao et al. 2020, TinyBERT (arXiv:1909.10351), equations 7 to 9; Sanh et al. 2019, DistilBERT (arXiv:1910.01108),
section 3 (cosine); Sun et al. 2020, MobileBERT (arXiv:2004.02984), section 3.2 (attention); Wang et al. 2020, MiniLM
(arXiv:2002.10957), section 3, and 2021, MiniLMv2 (arXiv:2012.15828), section 3.

Every function gives one value a text: the mean over its real tokens, those where `mask` is True (or not 0), and over
heads and widths; 0 for a text without any. The teacher is never differentiated. All is accumulated in float32.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

Mask = Bool[Array, "batch length"] | Integer[Array, "batch length"]


def hidden_mse(
    student: Float[Array, "batch length width"],
    teacher: Float[Array, "batch length teacher_width"],
    mask: Mask,
    projection: Float[Array, "width teacher_width"] | None = None,
) -> Float[Array, " batch"]:
    """Squared difference of the hidden states (TinyBERT, equation 8), the student's first projected where it is given.

    Raises ValueError where widths differ without a projection, or other shapes do not fit.

    >>> states = jnp.array([[[1.0, 2.0], [9.0, 9.0]]])
    >>> hidden_mse(states, jnp.zeros((1, 2, 2)), jnp.array([[True, False]])).tolist()  # (1 + 4) / 2
    [2.5]
    """
    student, teacher, mask = _states(student, teacher, mask, projection)
    return _mean(jnp.square(student - teacher).mean(-1), mask)


def hidden_cosine(
    student: Float[Array, "batch length width"],
    teacher: Float[Array, "batch length teacher_width"],
    mask: Mask,
    projection: Float[Array, "width teacher_width"] | None = None,
) -> Float[Array, " batch"]:
    """1 - cosine of the hidden states of each token (DistilBERT); arguments and errors are those of `hidden_mse`."""
    student, teacher, mask = _states(student, teacher, mask, projection)
    # As torch's cosine_similarity: the length is floored, so that a state of zeros has a cosine of 0 and a gradient.
    lengths = [jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1), 1e-16)) for x in (student, teacher)]
    return _mean(1.0 - (student * teacher).sum(-1) / (lengths[0] * lengths[1]), mask)


def attention_mse(
    student: Float[Array, "batch heads length length"], teacher: Float[Array, "batch heads length length"], mask: Mask
) -> Float[Array, " batch"]:
    """Squared difference of attention, averaged over heads and pairs of real tokens.

    TinyBERT (equation 7) takes the scores before the softmax, which it found to be learnt faster.

    Raises ValueError where shapes do not fit: student and teacher must have as many heads.
    """
    student, teacher, mask = _attention(student, teacher, mask)
    pairs = mask[:, :, None] & mask[:, None, :]
    squares = jnp.square(student - teacher).mean(1)
    total = jnp.where(pairs, squares, 0.0).sum((1, 2))
    return total / jnp.maximum(pairs.sum((1, 2)), 1)


def attention_kl(
    student: Float[Array, "batch heads length length"], teacher: Float[Array, "batch heads length length"], mask: Mask
) -> Float[Array, " batch"]:
    """KL(teacher || student) of what each real query attends to, in nats, averaged over heads and queries.

    Probabilities after the softmax (MobileBERT; MiniLM, equation 5, on the last layer). What the student gives
    probability 0 counts as the smallest normal number.

    Raises ValueError where shapes do not fit: student and teacher must have as many heads.
    """
    student, teacher, mask = _attention(student, teacher, mask)
    smallest = jnp.finfo(jnp.float32).tiny
    # With a floor under both logarithms, a probability of 0 times its own is 0 and not NaN.
    logs = [jnp.log(jnp.maximum(x, smallest)) for x in (teacher, student)]
    return _mean((teacher * (logs[0] - logs[1])).sum(-1).mean(1), mask)


def relation_kl(
    student: Float[Array, "batch length heads head_width"],
    teacher: Float[Array, "batch length teacher_heads teacher_head_width"],
    mask: Mask,
    *,
    relation_heads: int | None = None,
) -> Float[Array, " batch"]:
    """KL(teacher || student) of softmax(x x^T / sqrt(d)) over the real tokens, averaged over heads and tokens.

    x are values (MiniLM, equation 6), or queries, keys and values one after another (MiniLMv2, equation 5); d is the
    width of a relation head. The heads are joined and cut anew into `relation_heads` (None: they stay as they are and
    must be as many), so that widths and heads of the two may differ.

    Raises ValueError where shapes do not fit, or a width is no multiple of `relation_heads`.
    """
    student, teacher = jnp.asarray(student), jnp.asarray(teacher)
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            "student and teacher must be [batch, length, heads, head_width] of one batch and length, "
            f"got {student.shape} and {teacher.shape}"
        )
    if relation_heads is None and student.shape[2] != teacher.shape[2]:
        raise ValueError(
            f"student and teacher have {student.shape[2]} and {teacher.shape[2]} heads; pass relation_heads"
        )
    seen = _seen(mask, student.shape[:2])
    ours, theirs = (
        _relation_logs(x.astype(jnp.float32), seen, relation_heads) for x in (student, jax.lax.stop_gradient(teacher))
    )
    # Logarithms of unseen keys are so low that their probability is exactly 0, and they are equal in both.
    divergence = jnp.where(seen[:, None, None], jnp.exp(theirs) * (theirs - ours), 0.0).sum(-1)
    return _mean(divergence.mean(1), seen)


def _relation_logs(
    x: Float[Array, "batch length heads head_width"], seen: Bool[Array, "batch length"], heads: int | None
) -> Float[Array, "batch relation_heads length length"]:
    if heads is not None:
        width = x.shape[2] * x.shape[3]
        if heads < 1 or width % heads:
            raise ValueError(f"relation_heads is {heads}, which does not divide the width {width}")
        x = x.reshape(*x.shape[:2], heads, -1)
    scores = jnp.einsum("bqhd,bkhd->bhqk", x, x) / math.sqrt(x.shape[-1])
    return jax.nn.log_softmax(jnp.where(seen[:, None, None], scores, -0.7 * jnp.finfo(jnp.float32).max), axis=-1)


def _states(student, teacher, mask, projection):
    student, teacher = jnp.asarray(student).astype(jnp.float32), jnp.asarray(teacher).astype(jnp.float32)
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            "student and teacher must be [batch, length, width] of one batch and length, "
            f"got {student.shape} and {teacher.shape}"
        )
    if projection is not None:
        if projection.shape != (student.shape[-1], teacher.shape[-1]):
            raise ValueError(
                f"projection must be {(student.shape[-1], teacher.shape[-1])}, the student's width to the teacher's, "
                f"got {projection.shape}"
            )
        student = student @ projection.astype(jnp.float32)
    elif student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"student and teacher have widths {student.shape[-1]} and {teacher.shape[-1]}; pass a projection"
        )
    return student, jax.lax.stop_gradient(teacher), _seen(mask, student.shape[:2])


def _attention(student, teacher, mask):
    student, teacher = jnp.asarray(student).astype(jnp.float32), jnp.asarray(teacher).astype(jnp.float32)
    if student.ndim != 4 or student.shape != teacher.shape:
        raise ValueError(
            "student and teacher must be [batch, heads, length, length] of one shape, "
            f"got {student.shape} and {teacher.shape}"
        )
    return student, jax.lax.stop_gradient(teacher), _seen(mask, (student.shape[0], student.shape[2]))


def _seen(mask, shape: tuple[int, ...]) -> Bool[Array, "batch length"]:
    mask = jnp.asarray(mask)
    if mask.shape != tuple(shape):
        raise ValueError(f"mask must be {tuple(shape)}, the batch and its tokens, got {mask.shape}")
    return mask.astype(bool)


def _mean(values: Float[Array, "batch length"], seen: Bool[Array, "batch length"]) -> Float[Array, " batch"]:
    # What stands at padding may be anything, so it is cleared rather than multiplied by 0.
    return jnp.where(seen, values, 0.0).sum(-1) / jnp.maximum(seen.sum(-1), 1)
