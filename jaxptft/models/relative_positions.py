"""Biases of attention by the distance of two patches, with a cls token before them.

Bao et al. 2022, "BEiT" (arXiv:2106.08254, appendix A), after Raffel et al. 2020 and Liu et al. 2021, as Hugging Face's
checkpoints compute it: a number for each head and each distance in rows and columns, and three more, from the cls token
to a patch, from a patch to the cls token, and from the cls token to itself.
"""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_OF_CLS = 3


def distances(grid: tuple[int, int]) -> int:
    """How many biases a head has."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + _OF_CLS


@cache
def distance_index(grid: tuple[int, int]) -> Int[np.ndarray, "places places"]:
    """Which bias stands between a query and a key, both numbered with the cls token first and then row by row."""
    rows, columns = grid
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")).reshape(2, -1)
    down, across = places[:, :, None] - places[:, None, :] + np.array([rows - 1, columns - 1])[:, None, None]
    index = np.empty((rows * columns + 1,) * 2, np.int32)
    last = distances(grid)
    index[1:, 1:] = down * (2 * columns - 1) + across
    index[0, :], index[:, 0], index[0, 0] = last - 3, last - 2, last - 1
    return index


def resize_biases(
    table: Float[Array, "distances heads"], grid: tuple[int, int], wanted: tuple[int, int]
) -> Float[Array, "distances_wanted heads"]:
    """The table of a `grid` for images of another one, by bilinear interpolation; the cls token's rows as they are.

    A table of a grid that is no square is interpolated even for its own: Hugging Face's models read it with rows and
    columns exchanged.
    """
    if grid == wanted and grid[0] == grid[1]:
        return table
    (down, across), heads = ((2 * side - 1 for side in grid), table.shape[1])
    shape = tuple(2 * side - 1 for side in wanted)
    of_patches = table[:-_OF_CLS].reshape(across, down, heads)
    resized = jax.image.resize(of_patches, (*shape, heads), "linear", antialias=False)
    return jnp.concatenate([resized.reshape(-1, heads), table[-_OF_CLS:]])


class RelativePositions(nn.Module):
    """The trained biases of a grid, for images of `window` patches downwards and across."""

    grid: tuple[int, int]
    heads: int

    @nn.compact
    def __call__(self, window: tuple[int, int]) -> Float[Array, "heads places places"]:
        table = self.param("table", nn.initializers.zeros, (distances(self.grid), self.heads), jnp.float32)
        return resize_biases(table, self.grid, window)[distance_index(window)].transpose(2, 0, 1)
