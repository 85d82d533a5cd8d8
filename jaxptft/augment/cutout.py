"""Squares cut out of images."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxptft.augment.view import View, as_float, below, chance, check_probability, draw


def cutout(length: int, *, p: float = 1.0, fill: float | Sequence[float] = 0.0) -> View:
    """With probability p, a square of `length` pixels filled (DeVries and Taylor 2017, arXiv:1708.04552).

    Its centre is uniform over the pixels, so that it may lie partly outside. `fill` is one value or one a channel, of
    the image as it is there: 0 is black, and the mean once behind `normalise`, as in the paper.

    Raises ValueError on a length below 1, and when traced on a fill for another number of channels.
    """
    check_probability(p)
    if length < 1:
        raise ValueError(f"length is {length}; expected at least 1 pixel")
    value = np.asarray(fill, np.float32)

    def view(key, image):
        image = as_float(image)
        height, width, channels = image.shape
        if value.size not in (1, channels):
            raise ValueError(f"fill has {value.size} values for an image of {channels} channels")
        whether, row, column = draw(key, 3)
        top, left = below(row, height) - length // 2, below(column, width) - length // 2
        y, x = jnp.arange(height)[:, None], jnp.arange(width)
        inside = (y >= top) & (y < top + length) & (x >= left) & (x < left + length)
        return jnp.where(inside[..., None] & chance(whether, p), value, image)

    return view
