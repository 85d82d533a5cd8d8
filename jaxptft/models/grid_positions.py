"""Position tables over a grid of patches: the fixed one of sines and cosines, and a table resized to another grid.

A table has a row for the cls token and then one a patch, row by row of the grid.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Of the cubic convolution kernel; torch's bicubic, jax.image's is -0.5 (Keys 1981).
_CUBIC = -0.75


def sincos_table(grid: tuple[int, int], width: int) -> Float[np.ndarray, "positions width"]:
    """Sine and cosine of the column, then of the row, at width / 4 wavelengths each; zeros for the cls token.

    Source: He et al. 2022, arXiv:2111.06377, appendix A.1, in the order of the released models (columns first);
    wavelengths as in Vaswani et al. 2017, section 3.5. `width` must be a multiple of 4.
    """
    rates = 10000.0 ** -(np.arange(width // 4) / (width // 4))
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [np.outer(axis.reshape(-1), rates) for axis in (columns, rows)]
    table = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
    return np.concatenate([np.zeros((1, width)), table]).astype(np.float32)


def resize_positions(
    table: Float[Array, "positions width"], grid: tuple[int, int], wanted: tuple[int, int]
) -> Float[Array, "places width"]:
    """The table of a `grid` for images of another one, by bicubic interpolation; the cls token's row as it is.

    Equal to torch's `interpolate(mode="bicubic", align_corners=False)`, which Hugging Face's models are resized by.
    """
    if grid == wanted:
        return table
    rows, columns = (bicubic_weights(*sizes) for sizes in zip(grid, wanted, strict=True))
    patches = table[1:].reshape(*grid, -1)
    resized = jnp.einsum("hi,wj,ijd->hwd", rows, columns, patches)
    return jnp.concatenate([table[:1], resized.reshape(-1, table.shape[-1])])


def bicubic_weights(size: int, wanted: int) -> Float[np.ndarray, "wanted size"]:
    """What each of `wanted` points takes of `size` ones on the same stretch; past the ends the last one repeats."""
    weights = np.zeros((wanted, size))
    for place in range(wanted):
        centre = (place + 0.5) * size / wanted - 0.5
        first = math.floor(centre) - 1
        for source in range(first, first + 4):
            weights[place, min(max(source, 0), size - 1)] += _cubic(abs(centre - source))
    return weights.astype(np.float32)


def _cubic(x: float) -> float:
    # Keys 1981, equation 4 (its a).
    if x <= 1:
        return ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    return _CUBIC * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0
