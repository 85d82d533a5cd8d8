"""Replaced-token detection: for every token, was it put there by a generator or does it belong to the text?

    loss_t = - [replaced_t] log sigmoid(logit_t) - [not replaced_t] log sigmoid(-logit_t)

Clark et al. 2020, arXiv:2003.10555, section 3: the discriminator's half of ELECTRA's loss.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def replaced_token_cross_entropy(
    logits: Float[Array, "batch length"],
    replaced: Bool[Array, "batch length"],
    counted: Bool[Array, "batch length"],
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Total binary cross-entropy in nats over the counted tokens of each row, and how many they are.

    A logit above 0 says "replaced". A token that was sampled but equals the original is not replaced. What is not
    counted (padding) has no influence, on the gradient neither, even where its logit is not finite. The loss of a batch
    is `sum(total) / sum(count)`. Accumulated in float32 for narrower logits.

    Raises:
        ValueError: logits that are not floating [batch, length], or masks that are not bool of that shape.

    >>> flags = jnp.array([[True, False, False]]), jnp.array([[True, True, False]])
    >>> total, count = replaced_token_cross_entropy(jnp.array([[0.0, -2.0, 9.0]]), *flags)
    >>> round(float(total[0]), 4), float(count[0])  # log 2 + log(1 + exp(-2))
    (0.8201, 2.0)
    """
    logits, replaced, counted = jnp.asarray(logits), jnp.asarray(replaced), jnp.asarray(counted)
    if logits.ndim != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits must be floating of shape (batch, length), got {logits.dtype} of {logits.shape}")
    for name, mask in (("replaced", replaced), ("counted", counted)):
        if mask.dtype != jnp.bool_ or mask.shape != logits.shape:
            raise ValueError(
                f"{name} must be bool of the logits' shape {logits.shape}, got {mask.dtype} of {mask.shape}"
            )
    # Selecting before the softplus, not after, is what keeps NaN and inf out of the gradient.
    logits = jnp.where(counted, logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), 0.0)
    loss = jnp.where(counted, jax.nn.softplus(jnp.where(replaced, -logits, logits)), 0.0)
    return jnp.sum(loss, axis=1), jnp.sum(counted, axis=1, dtype=jnp.float32)
