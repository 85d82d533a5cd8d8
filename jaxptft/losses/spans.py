"""Where a span begins and where it ends: one softmax each over the positions of a row (Devlin et al. 2019, 4.2)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from jaxptft.losses.cross_entropy import cross_entropy


def span_cross_entropy(
    start_logits: Float[Array, "batch length"],
    end_logits: Float[Array, "batch length"],
    start: Integer[Array, " batch"],
    end: Integer[Array, " batch"],
    *,
    label_smoothing: float = 0.0,
    inside: Bool[Array, "batch length"] | None = None,
    valid: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """The mean of the cross-entropies of `start` and of `end`, in nats, unreduced.

    Positions where `inside` is False are impossible (infinite loss if they are the answer); rows where `valid` is False
    give 0 and no gradient. A start or end outside the row gives NaN.

    >>> logits = jnp.array([[0.0, 0.0, 9.0]])
    >>> inside = jnp.array([[True, True, False]])
    >>> loss = span_cross_entropy(logits, logits, jnp.array([0]), jnp.array([1]), inside=inside)
    >>> round(float(loss[0]), 4)
    0.6931
    """
    if inside is not None:
        start_logits = jnp.where(inside, start_logits, -jnp.inf)
        end_logits = jnp.where(inside, end_logits, -jnp.inf)
    first = cross_entropy(start_logits, start, label_smoothing=label_smoothing, valid=valid)
    last = cross_entropy(end_logits, end, label_smoothing=label_smoothing, valid=valid)
    return (first + last) / 2
