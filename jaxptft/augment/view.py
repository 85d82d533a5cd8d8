"""Views: random functions of one image, composed.

A view is `(key, image) -> image` for one example [height, width, channels], channels last, of 1 (grey) or 3 (RGB)
channels. Images that come in are uint8 from 0 to 255 or floats from 0 to 1; out go floats from 0 to 1, until
`normalise`. All views can be traced by `jit` and `vmap` them over keys and images; sizes are fixed when they are made.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

Image = UInt8[Array, "height width channels"] | Float[Array, "height width channels"]
Seen = Float[Array, "height width channels"]
View = Callable[[PRNGKeyArray, Image], Seen]


def as_float(image: Image) -> Seen:
    """The image in float32, uint8 from 0 to 255 as values from 0 to 1.

    Raises ValueError where it is not [height, width, channels] with 1 or 3 channels, TypeError on other integers.
    """
    image = jnp.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"an image has shape {image.shape}; expected [height, width, channels] with 1 or 3 channels")
    if image.dtype == jnp.uint8:
        return image.astype(jnp.float32) / 255.0
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(f"an image is {image.dtype}; expected uint8 from 0 to 255, or floats from 0 to 1")
    return image.astype(jnp.float32)


def as_size(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width); one number for both. Raises ValueError below 1 pixel."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise ValueError(f"size is {size!r}; expected pixels, one number or (height, width), each at least 1")
    return pair[0], pair[1]


def as_range(name: str, bounds: Sequence[float]) -> tuple[float, float]:
    """(low, high). Raises ValueError where they are not two numbers above 0 in order."""
    pair = tuple(bounds)
    if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
        raise ValueError(f"{name} is {bounds!r}; expected (low, high) with 0 < low <= high")
    return pair[0], pair[1]


def check_probability(p: float) -> float:
    """`p` itself. Raises ValueError outside [0, 1]."""
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p!r}; expected a probability from 0 to 1")
    return p


def draw(key: PRNGKeyArray, count: int) -> Float[Array, " {count}"]:
    """All that a view draws, uniform in [0, 1): in one call, because each takes its time to compile."""
    return jax.random.uniform(key, (count,))


def chance(uniform: Float[Array, ""], p: float) -> Bool[Array, ""]:
    """True with probability p; never at 0, always at 1."""
    return uniform < p


def between(uniform: Float[Array, "*shape"], low: float | Array, high: float | Array) -> Float[Array, "*shape"]:
    """Uniform in [low, high)."""
    return low + uniform * (high - low)


def below(uniform: Float[Array, ""], count: int | Array) -> Int[Array, ""]:
    """One of 0 to count - 1, each alike."""
    return jnp.minimum((uniform * count).astype(jnp.int32), jnp.asarray(count, jnp.int32) - 1)


def to_float() -> View:
    """The image itself, as floats from 0 to 1."""
    return lambda key, image: as_float(image)


def compose(*views: View) -> View:
    """The views one after another, each with a key of its own.

    >>> view = compose(to_float(), lambda key, image: image + 1)
    >>> view(jax.random.key(0), jnp.full((1, 1, 1), 255, jnp.uint8)).item()
    2.0
    """

    def view(key, image):
        image = as_float(image)
        for own, step in zip(jax.random.split(key, max(len(views), 1)), views, strict=False):
            image = step(own, image)
        return image

    return view


def normalise(mean: float | Sequence[float], std: float | Sequence[float]) -> View:
    """(image - mean) / std, each one number for all channels or one a channel.

    Raises ValueError on a std that is not above 0, and when traced where the image has another number of channels.
    """
    centre, spread = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if centre.ndim > 1 or spread.ndim > 1 or not bool((spread > 0).all()):
        raise ValueError(f"mean is {mean!r} and std {std!r}; expected a number, or one a channel, and std above 0")

    def view(key, image):
        image = as_float(image)
        for name, values in (("mean", centre), ("std", spread)):
            if values.size not in (1, image.shape[-1]):
                raise ValueError(f"{name} has {values.size} values for an image of {image.shape[-1]} channels")
        return (image - centre) / spread

    return view
