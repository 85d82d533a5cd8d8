"""Deep CORAL: the distance between the covariances of two samples.

    loss = ||C_source - C_target||_F^2 / (4 width^2)

Sun and Saenko 2016, arXiv:1607.01719, section 3.1, equations 1 to 3.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def covariance(
    rows: Float[Array, "rows width"], valid: Bool[Array, " rows"] | None = None
) -> Float[Array, "width width"]:
    """The unbiased covariance of the valid rows (divisor n - 1), zeros where there are fewer than two; in float32.

    Raises:
        ValueError: rows that are not floating [rows, width], or a mask that is not bool [rows].

    >>> covariance(jnp.array([[0.0, 0.0], [2.0, 4.0]])).tolist()
    [[2.0, 4.0], [4.0, 8.0]]
    """
    rows = jnp.asarray(rows)
    if rows.ndim != 2 or not jnp.issubdtype(rows.dtype, jnp.floating):
        raise ValueError(f"rows must be floating of shape (rows, width), got {rows.dtype} of shape {rows.shape}")
    counted = jnp.ones(len(rows), bool) if valid is None else jnp.asarray(valid)
    if counted.dtype != jnp.bool_ or counted.shape != (len(rows),):
        raise ValueError(f"valid must be bool of shape {(len(rows),)}, got {counted.dtype} of shape {counted.shape}")
    rows = jnp.where(counted[:, None], rows.astype(jnp.promote_types(rows.dtype, jnp.float32)), 0.0)
    count = counted.sum()
    centred = jnp.where(counted[:, None], rows - rows.sum(0) / jnp.maximum(count, 1), 0.0)
    return jnp.matmul(centred.T, centred, precision="highest") / jnp.maximum(count - 1, 1)


def coral(
    source: Float[Array, "source_rows width"],
    target: Float[Array, "target_rows width"],
    *,
    source_valid: Bool[Array, " source_rows"] | None = None,
    target_valid: Bool[Array, " target_rows"] | None = None,
) -> Float[Array, ""]:
    """The squared Frobenius distance of the samples' covariances over 4 width^2.

    Rows that are not valid have no influence. 0 where a sample has fewer than two valid rows, since it then has no
    covariance. Accumulated in float32.

    Raises:
        ValueError: samples of different widths, or as `covariance` does.

    >>> float(coral(jnp.array([[0.0], [2.0]]), jnp.array([[0.0], [4.0]])))  # (2 - 8)^2 / 4
    9.0
    """
    source, target = jnp.asarray(source), jnp.asarray(target)
    if source.shape[1:] != target.shape[1:]:
        raise ValueError(f"source and target must have one width, got shapes {source.shape} and {target.shape}")
    difference = covariance(source, source_valid) - covariance(target, target_valid)
    counts = [
        len(rows) if valid is None else jnp.asarray(valid).sum()
        for rows, valid in ((source, source_valid), (target, target_valid))
    ]
    distance = jnp.square(difference).sum() / (4 * source.shape[1] ** 2)
    return jnp.where(jnp.minimum(*counts) >= 2, distance, 0.0)
