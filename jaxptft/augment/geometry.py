"""Which part of an image is seen, and how large: crops, resizing, flips.

A crop is resized by weights over the pixels of the crop alone, so that what `random_resized_crop` gives is the crop
cut out first and resized then, as Pillow and torch do; the box may be traced and the size of the result is fixed.
Resizing widens its kernel where it makes an image smaller (antialiasing).
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxptft.augment.view import (
    Seen,
    View,
    as_float,
    as_range,
    as_size,
    below,
    between,
    chance,
    check_probability,
    draw,
)

Method = Literal["linear", "cubic"]
_TRIES = 10  # of torchvision's RandomResizedCrop


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: Int[Array, ""]
    left: Int[Array, ""]
    height: Int[Array, ""]
    width: Int[Array, ""]


def _kernel(x: Float[Array, "size side"], method: Method) -> Float[Array, "size side"]:
    if method == "linear":
        return jnp.maximum(0.0, 1.0 - x)
    near = ((1.5 * x - 2.5) * x) * x + 1.0  # Keys 1981 with a = -1/2
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return jnp.where(x < 1.0, near, jnp.where(x < 2.0, far, 0.0))


def _weights(
    start: Int[Array, ""], length: Int[Array, ""], side: int, size: int, method: Method
) -> Float[Array, "size side"]:
    """What each of `side` pixels counts in each of `size`, made of those from `start` to `start + length`."""
    step = length / size
    centre = start + (jnp.arange(size) + 0.5) * step - 0.5
    pixel = jnp.arange(side)
    weights = _kernel(jnp.abs(pixel - centre[:, None]) / jnp.maximum(step, 1.0), method)
    weights = jnp.where((pixel >= start) & (pixel < start + length), weights, 0.0)
    return weights / weights.sum(1, keepdims=True)


def crop_and_resize(image: Seen, box: Box, size: tuple[int, int], method: Method = "linear") -> Seen:
    """The part of the image in the box, resized with antialiasing; what a cubic kernel overshoots is clipped."""
    rows = _weights(box.top, box.height, image.shape[0], size[0], method)
    columns = _weights(box.left, box.width, image.shape[1], size[1], method)
    # By default accelerators would round the pixels to bfloat16.
    exact = jax.lax.Precision.HIGHEST
    image = jnp.einsum("hy,yxc->hxc", rows, image, precision=exact)
    image = jnp.einsum("wx,hxc->hwc", columns, image, precision=exact)
    return jnp.clip(image, 0.0, 1.0)


def draw_box(key: PRNGKeyArray, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """A box as torchvision's RandomResizedCrop draws it.

    Its share of the image's area is uniform in `scale`, the logarithm of width / height in `ratio`, its place uniform.
    The first of ten tries that lies in the image is taken, else the largest box about the centre whose ratio is within
    bounds.
    """
    uniform = draw(key, 2 * _TRIES + 2)
    areas, ratios, (top, left) = uniform[:_TRIES], uniform[_TRIES:-2], uniform[-2:]
    area = height * width * between(areas, *scale)
    aspect = jnp.exp(between(ratios, math.log(ratio[0]), math.log(ratio[1])))
    widths = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    heights = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first, found = jnp.argmax(fits), fits.any()

    whole_height, whole_width = height, width
    if width / height < ratio[0]:
        whole_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        whole_width = max(1, round(height * ratio[1]))
    box_height = jnp.where(found, heights[first], whole_height)
    box_width = jnp.where(found, widths[first], whole_width)
    return Box(
        jnp.where(found, below(top, height - box_height + 1), (height - whole_height) // 2),
        jnp.where(found, below(left, width - box_width + 1), (width - whole_width) // 2),
        box_height,
        box_width,
    )


def random_resized_crop(
    size: int | Sequence[int],
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    method: Method = "linear",
) -> View:
    """A random part of the image, resized to `size` (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    `scale` bounds the part's share of the area, `ratio` its width / height; see `draw_box`.

    Raises ValueError on a size below 1, bounds that are not 0 < low <= high, shares above 1, or another method.
    """
    size, scale, ratio, method = as_size(size), as_range("scale", scale), as_range("ratio", ratio), _check(method)
    if scale[1] > 1:
        raise ValueError(f"scale is {scale}; expected shares of the image's area, at most 1")

    def view(key, image):
        image = as_float(image)
        box = draw_box(key, image.shape[0], image.shape[1], scale, ratio)
        return crop_and_resize(image, box, size, method)

    return view


def resize(size: int | Sequence[int], *, method: Method = "linear") -> View:
    """The whole image at `size`, its proportions changed where the size has others."""
    size, method = as_size(size), _check(method)

    def view(key, image):
        image = as_float(image)
        return jnp.clip(jax.image.resize(image, (*size, image.shape[-1]), method), 0.0, 1.0)

    return view


def random_crop(size: int | Sequence[int], *, padding: int = 0) -> View:
    """A part of the image, its place uniform, after `padding` pixels of black on each side.

    Raises ValueError on a negative padding, and when traced on an image that is smaller than the crop.
    """
    size = as_size(size)
    if padding < 0:
        raise ValueError(f"padding is {padding}; expected pixels, at least 0")

    def view(key, image):
        image = jnp.pad(as_float(image), ((padding, padding), (padding, padding), (0, 0)))
        if image.shape[0] < size[0] or image.shape[1] < size[1]:
            raise ValueError(
                f"a crop of {size} does not fit an image of {image.shape[:2]}, padding included; resize it first"
            )
        import dm_pix  # here: it takes long to import, and texts need none of it

        return jnp.asarray(dm_pix.random_crop(key, image, (*size, image.shape[-1])))

    return view


def center_crop(size: int | Sequence[int]) -> View:
    """The middle of the image; ValueError, when traced, on an image that is smaller."""
    size = as_size(size)

    def view(key, image):
        image = as_float(image)
        if image.shape[0] < size[0] or image.shape[1] < size[1]:
            raise ValueError(f"a crop of {size} does not fit an image of {image.shape[:2]}; resize it first")
        import dm_pix  # here: it takes long to import, and texts need none of it

        return jnp.asarray(dm_pix.center_crop(image, *size))

    return view


def flip(p: float = 0.5) -> View:
    """Left and right exchanged, with probability p."""
    check_probability(p)

    def view(key, image):
        image = as_float(image)
        import dm_pix  # here: it takes long to import, and texts need none of it

        return jnp.where(chance(draw(key, 1)[0], p), dm_pix.flip_left_right(image), image)

    return view


def _check(method: str) -> Method:
    if method not in ("linear", "cubic"):
        raise ValueError(f"method is {method!r}; expected 'linear' or 'cubic'")
    return method
