"""The divergence of categorical distributions from the uniform one: what a discrete code costs.

    KL(q || uniform) = sum_k q_k log q_k + log K

Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation" (arXiv:2102.12092, section 2.1).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def uniform_kl(logits: Float[Array, "batch *places classes"]) -> Float[Array, " batch"]:
    """The divergence of each place's softmax, averaged over the places of each row, in nats, in float32.

    Raises:
        ValueError: logits without a batch and classes, or not floating.

    >>> uniform_kl(jnp.zeros((1, 2, 4))).tolist()
    [0.0]
    """
    logits = jnp.asarray(logits)
    if logits.ndim < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits are {logits.dtype} of shape {logits.shape}; expected floats [batch, ..., classes]")
    log_q = jax.nn.log_softmax(logits.astype(jnp.float32))
    each = (jnp.exp(log_q) * log_q).sum(-1) + math.log(logits.shape[-1])
    return each.reshape(len(logits), -1).mean(axis=1)
