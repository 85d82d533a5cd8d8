"""The causal language model's loss: each token predicted from what precedes it in the same text.

    loss_t = - log softmax(logits_t)[token_(t+1)]

Radford et al. 2018 ("Improving language understanding by generative pre-training"), equation 1. Several texts may
share a row: the last token of one never predicts the first of the next, and padding neither predicts nor is predicted.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from jaxptft.losses.cross_entropy import cross_entropy


def next_tokens(
    tokens: Integer[Array, "batch length"], segments: Integer[Array, "batch length"]
) -> tuple[Integer[Array, "batch length"], Bool[Array, "batch length"]]:
    """The token each position is to predict, and whether there is one: the next token of the same text.

    `segments` numbers the texts of a row from 1 and is 0 at padding; an attention mask is the case of one text.

    Raises:
        ValueError: tokens that are no integers [batch, length], or segments of another shape.

    >>> targets, predicted = next_tokens(jnp.array([[5, 6, 7, 8, 0]]), jnp.array([[1, 1, 2, 2, 0]]))
    >>> targets.tolist(), predicted.tolist()
    ([[6, 7, 8, 0, 0]], [[True, False, True, False, False]])
    """
    tokens, segments = jnp.asarray(tokens), jnp.asarray(segments)
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers of shape (batch, length), got {tokens.dtype} of {tokens.shape}")
    if segments.shape != tokens.shape or not jnp.issubdtype(segments.dtype, jnp.integer):
        raise ValueError(
            f"segments must be integers of the tokens' shape {tokens.shape}, 0 at padding, "
            f"got {segments.dtype} of {segments.shape}"
        )
    ahead = ((0, 0), (0, 1))
    following = jnp.pad(segments[:, 1:], ahead)
    return jnp.pad(tokens[:, 1:], ahead), (segments > 0) & (segments == following)


def next_token_cross_entropy(
    logits: Float[Array, "batch length vocab"],
    tokens: Integer[Array, "batch length"],
    segments: Integer[Array, "batch length"],
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Total cross-entropy in nats over the predicted tokens of each row, and how many they are.

    The shift by one is made here: `logits` at a position are those computed from `tokens` up to and with that position.
    `segments` is as in `next_tokens`. The loss of a batch is `sum(total) / sum(count)`.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    >>> total, count = next_token_cross_entropy(jnp.zeros((1, 3, 4)), jnp.array([[1, 2, 0]]), jnp.array([[1, 1, 0]]))
    >>> round(float(total[0]), 4), float(count[0])
    (1.3863, 1.0)
    """
    logits = jnp.asarray(logits)
    if logits.ndim != 3:
        raise ValueError(f"logits must have shape (batch, length, vocab), got {logits.shape}")
    targets, predicted = next_tokens(tokens, segments)
    loss = cross_entropy(logits, targets, valid=predicted)
    return jnp.sum(loss, axis=1), jnp.sum(predicted, axis=1, dtype=jnp.float32)
