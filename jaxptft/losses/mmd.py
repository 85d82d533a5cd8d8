"""Squared maximum mean discrepancy: how far apart two samples are, in a kernel's feature space.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)        k(x, y) = sum_m exp(-||x - y||^2 / (2 m s))   or   <x, y>

Gretton et al. 2012, "A Kernel Two-Sample Test" (JMLR 13), lemma 6: the unbiased U-statistic (equation 3) leaves out the
pairs of a row with itself, the biased V-statistic (equation 5) keeps them. s is a squared bandwidth, by default the
median of the squared distances between the rows of both samples (section 8); several multiples m of it in one kernel
are Long et al. 2015 (arXiv:1502.02791, section 4.1).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)


def squared_mmd(
    source: Float[Array, "source_rows width"],
    target: Float[Array, "target_rows width"],
    *,
    source_valid: Bool[Array, " source_rows"] | None = None,
    target_valid: Bool[Array, " target_rows"] | None = None,
    squared_bandwidth: float | Float[Array, ""] | None = None,
    multiples: Sequence[float] = MULTIPLES,
    unbiased: bool = True,
) -> Float[Array, ""]:
    """MMD^2 under a sum of RBF kernels, one for each of `multiples` of the squared bandwidth s.

    `squared_bandwidth` None is `median_squared_distance` of both samples together; it is not differentiated. Rows that
    are not valid have no influence, on the gradient neither. Unbiased, it can be negative, and is 0 where a sample has
    fewer than two valid rows; biased, it is never negative, and 0 where a sample has none. Accumulated in float32.

    Raises:
        ValueError: shapes or dtypes that do not fit, no multiples, or a bandwidth or multiple that is not positive.

    >>> source, target = jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [1.0]])
    >>> round(float(squared_mmd(source, target, squared_bandwidth=0.5, multiples=(1.0,))), 4)  # exp(-1) - 1
    -0.6321
    """
    rows, split, valid = _pooled(source, target, source_valid, target_valid)
    if not multiples or not all(multiple > 0 for multiple in multiples):
        raise ValueError(f"multiples must be positive, and at least one, got {tuple(multiples)}")
    if isinstance(squared_bandwidth, int | float) and not squared_bandwidth > 0:
        raise ValueError(f"squared_bandwidth must be positive, got {squared_bandwidth}")
    distances = _squared_distances(rows, valid)
    if squared_bandwidth is None:
        squared_bandwidth = _median(jax.lax.stop_gradient(distances), valid)
    # Where all rows are one point, every distance is 0 and any bandwidth will do.
    scale = jax.lax.stop_gradient(jnp.where(squared_bandwidth > 0, squared_bandwidth, 1.0))
    kernel = sum(jnp.exp(-distances / (2.0 * multiple * scale)) for multiple in multiples)
    return _discrepancy(jnp.asarray(kernel), split, valid, unbiased)


def linear_mmd(
    source: Float[Array, "source_rows width"],
    target: Float[Array, "target_rows width"],
    *,
    source_valid: Bool[Array, " source_rows"] | None = None,
    target_valid: Bool[Array, " target_rows"] | None = None,
    unbiased: bool = True,
) -> Float[Array, ""]:
    """MMD^2 under the kernel <x, y>: the squared distance of the two means (biased: of those of the samples).

    All else as in `squared_mmd`.

    >>> float(linear_mmd(jnp.array([[0.0], [2.0]]), jnp.array([[3.0], [5.0]]), unbiased=False))  # (1 - 4)^2
    9.0
    """
    rows, split, valid = _pooled(source, target, source_valid, target_valid)
    # Both samples moved alike: the discrepancy stays, and small differences of large features keep their digits.
    rows = jnp.where(valid[:, None], rows - _center(rows, valid), 0.0)
    return _discrepancy(jnp.matmul(rows, rows.T, precision="highest"), split, valid, unbiased)


def median_squared_distance(
    rows: Float[Array, "rows width"], valid: Bool[Array, " rows"] | None = None
) -> Float[Array, ""]:
    """The median of ||x - y||^2 over the pairs of two valid rows; 0 without any. Not differentiated.

    >>> float(median_squared_distance(jnp.array([[0.0], [1.0], [3.0]])))  # of 1, 4 and 9
    4.0
    """
    rows, _, valid = _pooled(rows, rows[:0], valid, None)
    return _median(jax.lax.stop_gradient(_squared_distances(rows, valid)), valid)


def _pooled(source, target, source_valid, target_valid) -> tuple[Array, int, Array]:
    """Both samples in float32 below each other (rows that are not valid as zeros), where they part, and what counts."""
    source, target = jnp.asarray(source), jnp.asarray(target)
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(
            f"source and target must be [rows, width] of one width, got shapes {source.shape} and {target.shape}"
        )
    if not all(jnp.issubdtype(sample.dtype, jnp.floating) for sample in (source, target)):
        raise ValueError(f"source and target must be floating, got {source.dtype} and {target.dtype}")
    masks = []
    for name, sample, valid in (("source", source, source_valid), ("target", target, target_valid)):
        mask = jnp.ones(len(sample), bool) if valid is None else jnp.asarray(valid)
        if mask.dtype != jnp.bool_ or mask.shape != (len(sample),):
            raise ValueError(
                f"{name}_valid must be bool of shape {(len(sample),)}, got {mask.dtype} of shape {mask.shape}"
            )
        masks.append(mask)
    wide = jnp.promote_types(jnp.result_type(source, target), jnp.float32)
    valid = jnp.concatenate(masks)
    rows = jnp.where(valid[:, None], jnp.concatenate([source.astype(wide), target.astype(wide)]), 0.0)
    return rows, len(source), valid


def _center(rows: Array, valid: Array) -> Array:
    return jax.lax.stop_gradient(rows.sum(0) / jnp.maximum(valid.sum(), 1))


def _squared_distances(rows: Array, valid: Array) -> Float[Array, "rows rows"]:
    # |x|^2 + |y|^2 - 2 xy of centred rows: a table of differences would be [rows, rows, width].
    rows = jnp.where(valid[:, None], rows - _center(rows, valid), 0.0)
    squares = jnp.square(rows).sum(1)
    distances = squares[:, None] + squares - 2.0 * jnp.matmul(rows, rows.T, precision="highest")
    return jnp.where(jnp.eye(len(rows), dtype=bool), 0.0, jnp.maximum(distances, 0.0))


def _median(distances: Array, valid: Array) -> Float[Array, ""]:
    pairs = valid[:, None] & valid & ~jnp.eye(len(valid), dtype=bool)
    # Every pair is there twice, which leaves the median where it is; pairs that do not count sort behind.
    ordered = jnp.sort(jnp.where(pairs, distances, jnp.inf).reshape(-1))
    half = pairs.sum() // 2
    return jnp.where(half > 0, 0.5 * (ordered[jnp.maximum(half - 1, 0)] + ordered[half]), 0.0)


def _discrepancy(kernel: Array, split: int, valid: Array, unbiased: bool) -> Float[Array, ""]:
    is_source = jnp.arange(len(valid)) < split
    of_source, of_target = (valid & is_source).astype(kernel.dtype), (valid & ~is_source).astype(kernel.dtype)

    def within(members):
        count, pairs = members.sum(), members[:, None] * members
        if not unbiased:
            return (kernel * pairs).sum() / jnp.maximum(count * count, 1.0)
        apart = pairs * (1.0 - jnp.eye(len(members), dtype=kernel.dtype))
        return (kernel * apart).sum() / jnp.maximum(count * (count - 1.0), 1.0)

    across = (kernel * (of_source[:, None] * of_target)).sum() / jnp.maximum(of_source.sum() * of_target.sum(), 1.0)
    enough = jnp.minimum(of_source.sum(), of_target.sum()) >= (2 if unbiased else 1)
    return jnp.where(enough, within(of_source) + within(of_target) - 2.0 * across, 0.0)
