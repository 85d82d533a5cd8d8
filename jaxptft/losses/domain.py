"""Telling two domains apart, and the gradient that unlearns it: the parts of domain-adversarial training.

    loss = - d log sigmoid(logit) - (1 - d) log sigmoid(-logit)        d = 1 in the target domain
    reverse_gradient(x, s) = x          d reverse_gradient / dx = - s

Ganin et al. 2016, arXiv:1505.07818, sections 4.1 and 4.2 (equations 10 and 18).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def domain_cross_entropy(
    logits: Float[Array, " batch"],
    is_target: Bool[Array, " batch"] | bool,
    *,
    valid: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Binary cross-entropy in nats, one value a row; a logit above 0 says "target".

    Rows that are not valid give exactly 0 and send back no gradient. Accumulated in float32 for narrower logits.

    Raises:
        ValueError: logits that are not floating [batch], or masks that are not bool of that shape.

    >>> [round(loss, 4) for loss in domain_cross_entropy(jnp.array([0.0, 2.0]), True).tolist()]
    [0.6931, 0.1269]
    """
    logits, is_target = jnp.asarray(logits), jnp.asarray(is_target)
    if logits.ndim != 1 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits must be floating of shape (batch,), got {logits.dtype} of shape {logits.shape}")
    counted = jnp.ones(logits.shape, bool) if valid is None else jnp.asarray(valid)
    for name, mask, shapes in (("is_target", is_target, ((), logits.shape)), ("valid", counted, (logits.shape,))):
        if mask.dtype != jnp.bool_ or mask.shape not in shapes:
            raise ValueError(f"{name} must be bool of the logits' shape {logits.shape}, got {mask.dtype} {mask.shape}")
    # Selecting before the softplus, not after, is what keeps NaN and inf out of the gradient.
    logits = jnp.where(counted, logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), 0.0)
    return jnp.where(counted, jax.nn.softplus(jnp.where(is_target, -logits, logits)), 0.0)


@jax.custom_vjp
def reverse_gradient(x: Float[Array, "*shape"], strength: float | Float[Array, ""]) -> Float[Array, "*shape"]:
    """`x` as it is; on the way back its gradient comes times `-strength`, which may be traced and gets none itself.

    >>> jax.grad(lambda x: 3.0 * reverse_gradient(x, 0.5))(1.0).item()
    -1.5
    """
    return x


def _forward(x, strength):
    return x, strength


def _backward(strength, gradient):
    return (-jnp.asarray(strength, gradient.dtype) * gradient, jnp.zeros_like(jnp.asarray(strength)))


reverse_gradient.defvjp(_forward, _backward)
