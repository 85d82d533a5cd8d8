"""Regression losses."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def mean_squared_error(
    predictions: Float[Array, " batch *outputs"], targets: Float[Array, " batch *outputs"]
) -> Float[Array, " batch"]:
    """Squared error of each example, averaged over all axes but the first; no factor 1/2.

    Accumulated in float32 for narrower inputs.

    Raises:
        ValueError: shapes differ (nothing is broadcast: [batch, 1] against [batch] would give a batch x batch table).

    >>> mean_squared_error(jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0, 4.0], [3.0, 1.0]])).tolist()
    [2.0, 5.0]
    """
    predictions, targets = jnp.asarray(predictions), jnp.asarray(targets)
    if predictions.ndim == 0 or predictions.shape != targets.shape:
        raise ValueError(
            "predictions and targets must have one shape with the batch first, "
            f"got {predictions.shape} and {targets.shape}"
        )
    wide = jnp.promote_types(jnp.result_type(predictions, targets), jnp.float32)
    errors = optax.losses.squared_error(predictions.astype(wide), targets.astype(wide))
    return jnp.mean(errors.reshape(errors.shape[0], -1), axis=1)
