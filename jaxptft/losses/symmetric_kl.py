"""How far two predicted distributions are from each other, whichever comes first.

    ( KL(p || q) + KL(q || p) ) / 2  =  1/2 sum_c (p_c - q_c) (log p_c - log q_c)

The consistency term of R-Drop: Liang et al. 2021, arXiv:2106.14448, equation 3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def symmetric_kl(
    logits: Float[Array, "*batch classes"],
    others: Float[Array, "*batch classes"],
    *,
    valid: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """The mean of the two divergences of each position, in nats; both sides are differentiated.

    Positions where `valid` is False give exactly 0 and send back no gradient. A class whose logit is -inf on both sides
    is impossible and takes no part. Accumulated in float32 for narrower logits.

    Raises:
        ValueError: shapes differ, or logits are not floating.

    >>> one, other = jnp.array([[0.0, 0.0]]), jnp.array([[jnp.log(3.0), 0.0]])
    >>> round(float(symmetric_kl(one, other)[0]), 4)  # (1/2 - 3/4) log(1/2 : 3/4) / 2 + (1/2 - 1/4) log(1/2 : 1/4) / 2
    0.1373
    """
    logits, others = jnp.asarray(logits), jnp.asarray(others)
    for side in (logits, others):
        if side.ndim == 0 or not jnp.issubdtype(side.dtype, jnp.floating):
            raise ValueError(
                f"logits must be floating with classes as the last axis, got {side.dtype} of shape {side.shape}"
            )
    if logits.shape != others.shape:
        raise ValueError(f"both logits must have one shape, got {logits.shape} and {others.shape}")
    if valid is not None and valid.shape != logits.shape[:-1]:
        raise ValueError(f"valid must have shape {logits.shape[:-1]}, one for each position, got {valid.shape}")

    wide = jnp.promote_types(jnp.result_type(logits, others), jnp.float32)
    logs = []
    for side in (logits, others):
        # Selecting before the softmax, not after, is what keeps NaN and inf out of the gradient.
        counted = side.astype(wide) if valid is None else jnp.where(valid[..., None], side.astype(wide), 0.0)
        logs.append(jax.nn.log_softmax(counted, axis=-1))
    one, other = logs
    impossible = (one == -jnp.inf) & (other == -jnp.inf)
    difference = jnp.where(impossible, 0.0, one - other)
    return 0.5 * jnp.sum((jnp.exp(one) - jnp.exp(other)) * difference, axis=-1)
