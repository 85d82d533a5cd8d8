"""Block-wise masks: how large their blocks are, and what they make together, against a loop in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft.objectives.block_masking import ATTEMPTS, block_masks, draw_block, plan_blocks
from jaxptft.objectives.views import example_keys

IDS = jnp.arange(100, 160)


@pytest.mark.parametrize(
    "grid, ratio, smallest, count",
    [((14, 14), 0.4, None, 78), ((7, 7), 0.4, None, 19), ((4, 9), 0.9, 1, 32), ((2, 2), 0.5, None, 2)],
)
def test_masks_are_the_union_of_the_blocks_drawn(grid, ratio, smallest, count):
    """The last block is cut row by row; the numbers drawn are the same, all else is numpy."""
    blocks = plan_blocks(grid, ratio, smallest=smallest)
    masks = np.asarray(block_masks(jax.random.key(0), IDS, grid, blocks)).reshape(-1, *grid)
    draw = jax.jit(lambda uniform, most: draw_block(uniform, grid, most, blocks))
    for key, mask in zip(example_keys(jax.random.key(0), IDS[:6]), masks, strict=False):
        expected = np.zeros(grid, bool)
        for uniform in jax.random.uniform(key, (ATTEMPTS, 4)):
            left = count - expected.sum()
            top, start, height, width = (int(part) for part in draw(uniform, left))
            places = [(row, column) for row in range(top, top + height) for column in range(start, start + width)]
            new = [place for place in places if not expected[place]][:left]
            for place in new:
                expected[place] = True
            if expected.sum() == count:
                break
        np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(masks.sum((1, 2)), count)
    if grid != (2, 2):
        assert len(np.unique(masks.reshape(len(IDS), -1), axis=0)) > 0.8 * len(IDS)


def test_blocks_are_as_large_and_as_square_as_the_paper_has_them():
    """From 16 patches on; the ratio of the sides is from 0.3 to its inverse but for whole numbers of patches."""
    blocks = plan_blocks((14, 14), 0.4)
    uniform = jax.random.uniform(jax.random.key(1), (2000, 4))
    drawn = jax.vmap(lambda numbers: draw_block(numbers, (14, 14), 60, blocks))(uniform)
    top, left, height, width = (np.asarray(part) for part in drawn)
    area = height * width
    size = 16 + np.asarray(uniform[:, 0]) * 44
    assert (area >= np.floor(size)).all()
    assert (area < size + height).all()  # what rounding up adds: less than one column
    ratio = np.exp(np.log(0.3) * (1 - 2 * np.asarray(uniform[:, 1])))
    ideal = np.sqrt(size * ratio)
    assert (np.abs(height - ideal) <= 1).all()
    assert 0.4 < (ratio > 1)[height > width].sum() / len(ratio) < 0.5  # either way alike
    assert ((top >= 0) & (left >= 0) & (top + height <= 14) & (left + width <= 14)).all()
    for place, side in ((top, height), (left, width)):
        assert set(place[side == 5]) == set(range(10))  # every place there is


def test_masks_go_by_the_id_and_the_key():
    grid, blocks = (7, 7), plan_blocks((7, 7), 0.4)
    masks = block_masks(jax.random.key(0), IDS, grid, blocks)
    np.testing.assert_array_equal(block_masks(jax.random.key(0), IDS[::-1], grid, blocks), masks[::-1])
    np.testing.assert_array_equal(block_masks(jax.random.key(0), IDS[7:9], grid, blocks), masks[7:9])
    assert (np.asarray(block_masks(jax.random.key(1), IDS, grid, blocks)) != masks).any(1).mean() > 0.95


def test_what_hides_nothing_or_all_is_refused():
    with pytest.raises(ValueError, match=r"mask_ratio 0.2 hides 0 of 4 patches; expected some"):
        plan_blocks((2, 2), 0.2)
    with pytest.raises(ValueError, match="smallest is 20; expected a block of 1 to 19 patches"):
        plan_blocks((7, 7), 0.4, smallest=20)
