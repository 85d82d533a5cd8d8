"""Block-wise masking: rectangles of patches are hidden until a share of the image is.

Bao et al. 2022, "BEiT", arXiv:2106.08254, section 2.3 and algorithm 1. A block covers from 16 patches to as many as are
still to be hidden, and is as tall for its width as a number from 0.3 to 1 / 0.3 says, either alike. Here the last block
is cut where the share is reached, row by row, so that all images hide equally many patches, as the released code nearly
does; and for other grids than the paper's 14 x 14 the smallest block is the same part of the image.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxptft.objectives.views import example_keys

ATTEMPTS = 64
"""Blocks at most; the last one is the whole image, which ends what chance has not."""


class Blocks(NamedTuple):
    """What is hidden of each image: `count` patches, in blocks of at least `smallest` and of an aspect ratio."""

    count: int
    smallest: int
    aspect: tuple[float, float] = (0.3, 1 / 0.3)


class Block(NamedTuple):
    """A rectangle of patches."""

    top: Int[Array, ""]
    left: Int[Array, ""]
    height: Int[Array, ""]
    width: Int[Array, ""]


def plan_blocks(grid: tuple[int, int], mask_ratio: float, *, smallest: int | None = None) -> Blocks:
    """What hides `mask_ratio` of a grid, rounded down; by default the smallest block is 16 of 196 patches.

    Raises ValueError where none would be hidden or all, or the smallest block is larger than what is.

    >>> plan_blocks((14, 14), 0.4)[:2], plan_blocks((7, 7), 0.4)[:2]
    ((78, 16), (19, 4))
    """
    patches = grid[0] * grid[1]
    count = int(patches * mask_ratio)
    if not 0 < count < patches:
        raise ValueError(
            f"mask_ratio {mask_ratio} hides {count} of {patches} patches; expected some, and some seen: change it, or "
            "give smaller patches"
        )
    smallest = min(max(1, round(patches * 16 / 196)), count) if smallest is None else smallest
    if not 1 <= smallest <= count:
        raise ValueError(f"smallest is {smallest}; expected a block of 1 to {count} patches, as many as are hidden")
    return Blocks(count, smallest)


def draw_block(uniform: Float[Array, " 4"], grid: tuple[int, int], most: Int[Array, ""] | int, blocks: Blocks) -> Block:
    """A block of `blocks.smallest` to `most` patches, or a few more where its sides are rounded up to whole ones.

    `uniform` holds four numbers from 0 to 1: its size, its ratio of height to width, and where it is.
    """
    rows, columns = grid
    size = blocks.smallest + uniform[0] * jnp.maximum(most - blocks.smallest, 0)
    low, high = (math.log(ratio) for ratio in blocks.aspect)
    ratio = jnp.exp(low + uniform[1] * (high - low))
    tall = jnp.clip(jnp.round(jnp.sqrt(size * ratio)), jnp.ceil(size / columns), rows)
    wide = jnp.clip(jnp.ceil(size / tall), 1, columns)
    height, width = tall.astype(jnp.int32), wide.astype(jnp.int32)
    top = (uniform[2] * (rows - height + 1)).astype(jnp.int32)
    left = (uniform[3] * (columns - width + 1)).astype(jnp.int32)
    return Block(jnp.minimum(top, rows - height), jnp.minimum(left, columns - width), height, width)


def block_mask(key: PRNGKeyArray, grid: tuple[int, int], blocks: Blocks) -> Bool[Array, "rows columns"]:
    """Which patches of one image are hidden: exactly `blocks.count`."""
    rows, columns = jnp.arange(grid[0])[:, None], jnp.arange(grid[1])[None]
    uniform = jax.random.uniform(key, (ATTEMPTS, 4))

    def add(attempt, mask):
        left = blocks.count - mask.sum()
        block = draw_block(uniform[attempt], grid, left, blocks)
        inside = (rows >= block.top) & (rows < block.top + block.height)
        inside &= (columns >= block.left) & (columns < block.left + block.width)
        new = (inside | (attempt == ATTEMPTS - 1)) & ~mask
        return mask | (new & (jnp.cumsum(new.reshape(-1)).reshape(grid) <= left))

    # A fixed number of rounds, of which those behind the last block change nothing: the devices need not agree when to
    # end, and a round costs next to nothing.
    return jax.lax.fori_loop(0, ATTEMPTS, add, jnp.zeros(grid, bool))


@partial(jax.jit, static_argnames=("grid", "blocks"))
def block_masks(
    rng: PRNGKeyArray, ids: Int[Array, " batch"], grid: tuple[int, int], blocks: Blocks
) -> Bool[Array, "batch patches"]:
    """Which patches of each image are hidden, by its id, row by row of the grid."""
    masks = jax.vmap(lambda key: block_mask(key, grid, blocks))(example_keys(rng, ids))
    return masks.reshape(len(ids), -1)
