"""Binary cross-entropy of independent yes-or-no questions, from logits.

    loss = - p * t * log sigmoid(x) - (1 - t) * log sigmoid(-x)

where t is the target and p what a yes weighs, 1 unless given.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


def binary_cross_entropy(
    logits: Float[Array, "*batch labels"],
    targets: Shaped[Array, "*batch labels"],
    *,
    positive_weights: Float[Array, " labels"] | None = None,
    valid: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch labels"]:
    """The loss of every label of every row, in nats; `torch.nn.BCEWithLogitsLoss(reduction="none")`.

    Targets are probabilities, or flags. `positive_weights` is torch's `pos_weight`, one for each label. Rows where
    `valid` is False give exactly 0, and send back exactly no gradient, whatever their logits. A logit of inf costs
    nothing where the target agrees. Narrower logits than float32 are widened to it.

    Raises:
        ValueError: logits that are not floating, targets of another shape, weights that are not one for each label, or
            `valid` that is not bool of one for each row.

    >>> loss = binary_cross_entropy(jnp.array([[0.0, 2.0]]), jnp.array([[1.0, 0.0]]))
    >>> [round(value, 4) for value in loss[0].tolist()]  # log 2, log(1 + exp(2))
    [0.6931, 2.1269]
    """
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    if logits.ndim == 0 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits must be floating with labels as the last axis, got {logits.dtype} of {logits.shape}")
    if targets.shape != logits.shape:
        raise ValueError(f"targets must have the logits' shape {logits.shape}, got {targets.shape}")
    weights = None if positive_weights is None else jnp.asarray(positive_weights, jnp.float32)
    if weights is not None and weights.shape != logits.shape[-1:]:
        wanted = logits.shape[-1:]
        raise ValueError(f"positive_weights must have shape {wanted}, one for each label, got {weights.shape}")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    targets = targets.astype(logits.dtype)
    if valid is not None:
        valid = jnp.asarray(valid)
        if valid.dtype != jnp.bool_ or valid.shape != logits.shape[:-1]:
            raise ValueError(f"valid must be bool of shape {logits.shape[:-1]}, got {valid.dtype} of {valid.shape}")
        # Selecting before the softplus, not after, is what keeps NaN and inf out of the gradient.
        logits = jnp.where(valid[..., None], logits, 0.0)
    yes, no = targets if weights is None else targets * weights, 1.0 - targets
    # 0 * inf is NaN, so an answer that the target rules out is cleared before the product.
    loss = yes * jax.nn.softplus(jnp.where(yes != 0.0, -logits, 0.0))
    loss = loss + no * jax.nn.softplus(jnp.where(no != 0.0, logits, 0.0))
    return loss if valid is None else jnp.where(valid[..., None], loss, 0.0)
