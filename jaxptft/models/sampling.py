"""Choosing the next token from logits: the likeliest one, or a draw from what temperature, top-k and top-p leave.

Pure functions on the last axis. A filter puts -inf where a token is out of the draw.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Sampling(NamedTuple):
    """How to draw: temperature first, then top-k, then top-p. temperature 0 takes the likeliest token."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


def with_temperature(logits: Float[Array, "... vocab"], temperature: float) -> Float[Array, "... vocab"]:
    """Logits divided by `temperature`: below 1 the likely tokens get likelier. ValueError unless it is above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0 to draw, got {temperature}")
    return logits / temperature


def keep_top_k(logits: Float[Array, "... vocab"], k: int) -> Float[Array, "... vocab"]:
    """Only the `k` likeliest tokens, and those as likely as the last of them. Source: Fan et al. 2018, section 5.4.

    All tokens where k exceeds the vocabulary; ValueError for a k below 1.
    """
    if k < 1:
        raise ValueError(f"top_k must be at least 1, got {k}")
    least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= least, logits, -jnp.inf)


def keep_top_p(logits: Float[Array, "... vocab"], p: float) -> Float[Array, "... vocab"]:
    """Only the nucleus: the fewest likeliest tokens whose probabilities add up to `p`, and those as likely as the last.

    Source: Holtzman et al. 2020, section 3.1. ValueError unless 0 < p <= 1.
    """
    if not 0 < p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {p}")
    ascending = jnp.sort(logits, axis=-1)
    # Summed from the unlikely end, where small probabilities do not drown in a sum near 1.
    reached = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
    within = (reached > 1 - p).at[..., -1].set(True)
    least = jnp.min(jnp.where(within, ascending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def sample(keys: Key[Array, " batch"], logits: Float[Array, "batch vocab"], sampling: Sampling) -> Int[Array, " batch"]:
    """One token a row, drawn with the row's own key (unused at temperature 0). ValueError for values out of range."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = with_temperature(logits.astype(jnp.float32), sampling.temperature)
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits)
