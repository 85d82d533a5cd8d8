"""Linear centred kernel alignment: how alike two representations of the same rows are, whatever their widths.

    CKA(X, Y) = ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F),    the columns of X and Y centred

Kornblith, Norouzi, Lee and Hinton 2019, arXiv:1905.00414, section 3. The numerator is HSIC(XX^T, YY^T) times
(rows - 1)^2, an estimate that is biased upwards: with fewer rows than columns even unrelated features look alike. The
debiased variant puts the unbiased estimator of HSIC in its place (Song et al. 2012, JMLR 13, section 2; as in Nguyen,
Raghu and Kornblith 2021, arXiv:2010.15327), in features rather than kernels:

    ||Y^T X||_F^2 - n / (n - 2) sum_i ||x_i||^2 ||y_i||^2 + ||X||_F^2 ||Y||_F^2 / ((n - 1)(n - 2))
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def linear_cka(
    x: Float[Array, "rows width"],
    y: Float[Array, "rows other_width"],
    *,
    valid: Bool[Array, " rows"] | None = None,
    debiased: bool = False,
) -> Float[Array, ""]:
    """1 where the rows of `x` and `y` are the same up to rotation, reflection, shift and one scale; in float32.

    Between 0 and 1; debiased it is about 0 for unrelated features, and may fall below. Rows that are not valid have no
    influence. 0 where it is not defined: a side on which all rows are the same, or fewer than 2 valid rows (debiased:
    4). NaN where a valid row holds one.

    Raises:
        ValueError: `x` or `y` is not floating [rows, width], they differ in rows, or `valid` is not bool [rows].

    >>> x = jnp.array([[0.0, 1.0], [1.0, 0.0], [3.0, 1.0]])
    >>> round(float(linear_cka(x, 5 * x[:, ::-1])), 6)
    1.0
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    for name, rows in (("x", x), ("y", y)):
        if rows.ndim != 2 or not jnp.issubdtype(rows.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating of shape (rows, width), got {rows.dtype} of shape {rows.shape}")
    if len(x) != len(y):
        raise ValueError(f"x and y must be of the same rows, got {len(x)} and {len(y)}")
    counted = jnp.ones(len(x), bool) if valid is None else jnp.asarray(valid)
    if counted.dtype != jnp.bool_ or counted.shape != (len(x),):
        raise ValueError(f"valid must be bool of shape {(len(x),)}, got {counted.dtype} of shape {counted.shape}")
    x, y = _centred(x, counted), _centred(y, counted)
    n = counted.sum()

    def aligned(a: Array, b: Array) -> Array:
        products = jnp.square(jnp.matmul(a.T, b, precision="highest")).sum()
        if not debiased:
            return products
        first, second = jnp.square(a).sum(1), jnp.square(b).sum(1)
        rows, pairs = jnp.maximum(n - 2, 1), jnp.maximum((n - 1) * (n - 2), 1)
        return products - n / rows * (first * second).sum() + first.sum() * second.sum() / pairs

    squared = aligned(x, x) * aligned(y, y)
    undefined = (squared <= 0) | (n < (4 if debiased else 2))  # not so for NaN, which is to be seen
    return jnp.where(undefined, 0.0, aligned(x, y) / jnp.sqrt(jnp.where(undefined, 1.0, squared)))


def _centred(rows: Float[Array, "rows width"], counted: Bool[Array, " rows"]) -> Float[Array, "rows width"]:
    """Of mean 0 and Frobenius norm 1, so that no square of a square overflows; zeros in rows that do not count."""
    seen = counted[:, None]
    rows = jnp.where(seen, rows.astype(jnp.promote_types(rows.dtype, jnp.float32)), 0.0)
    rows = jnp.where(seen, rows - rows.sum(0) / jnp.maximum(counted.sum(), 1), 0.0)
    squares = jnp.square(rows).sum()
    return rows / jnp.sqrt(jnp.where(squares == 0, 1.0, squares))
