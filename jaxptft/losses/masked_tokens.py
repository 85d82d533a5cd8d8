"""The masked language model's loss: cross-entropy over the positions chosen for prediction, and nowhere else.

Devlin et al. 2019, arXiv:1810.04805, section 3.1. Totals and counts are kept apart, so that the mean over all chosen
tokens stays exact however a batch is split: sequences differ in how many tokens they had chosen.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from jaxptft.losses.cross_entropy import cross_entropy


def masked_token_cross_entropy(
    logits: Float[Array, "batch positions vocab"],
    labels: Integer[Array, "batch positions"],
    chosen: Bool[Array, "batch positions"],
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Total cross-entropy in nats over the chosen positions of each example, and how many they were.

    `positions` is either every token of the row or the gathered positions of a fixed capacity, with `chosen` False in
    the unused places. The loss of a batch is `sum(total) / sum(count)`. Only `chosen` decides what counts: any label,
    token 0 included, can be chosen, and labels elsewhere are never read.

    Raises:
        ValueError: shapes that do not fit, or `chosen` is not bool.

    >>> logits = jnp.zeros((1, 3, 4))
    >>> total, count = masked_token_cross_entropy(logits, jnp.array([[0, 3, -1]]), jnp.array([[True, True, False]]))
    >>> round(float(total[0]), 4), float(count[0])
    (2.7726, 2.0)
    """
    logits, labels, chosen = jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(chosen)
    if logits.ndim != 3:
        raise ValueError(f"logits must have shape (batch, positions, vocab), got {logits.shape}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integer token ids, got {labels.dtype}")
    if chosen.dtype != jnp.bool_ or chosen.shape != labels.shape:
        raise ValueError(
            f"chosen must be bool of the labels' shape {labels.shape}, got {chosen.dtype} of shape {chosen.shape}"
        )
    loss = cross_entropy(logits, labels, valid=chosen)
    return jnp.sum(loss, axis=1), jnp.sum(chosen, axis=1, dtype=jnp.float32)
