"""What changes the values of pixels: brightness, contrast, saturation, hue, grey, solarising.

The four parts of colour jitter are torchvision's and Pillow's, and so those of most published runs: brightness,
contrast and saturation blend the image with black, with the mean of its grey version, and with its grey version; hue
turns the colour circle. `dm_pix` (and TensorFlow) adds to the brightness, takes the mean of each channel, and scales
the saturation of HSV; only its hue is the same, and used.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxptft.augment.view import Seen, View, as_float, below, between, chance, check_probability, draw


class Jitter(NamedTuple):
    """What one image's colours are changed by."""

    factors: Float[Array, "3"]  # of brightness, contrast, saturation
    turn: Float[Array, ""]  # of the hue
    order: Int[Array, "3"]  # of brightness, contrast, saturation
    before: Int[Array, ""]  # how many of them come before the hue


LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, to torchvision's digits


def luma(image: Seen) -> Float[Array, "height width 1"]:
    """The grey version; of a grey image, itself."""
    if image.shape[-1] == 1:
        return image
    # dm_pix has it as a matrix product, which accelerators round to bfloat16 by default and do not fuse.
    return sum((weight * image[..., i : i + 1] for i, weight in enumerate(LUMA)), start=jnp.zeros(()))


def _blend(image: Seen, part: Int[Array, ""], factor: Float[Array, ""]) -> Seen:
    """Part 0 is brightness, 1 contrast, 2 saturation; nothing changes at factor 1."""
    grey = luma(image)
    other = jnp.where(part == 2, grey, jnp.where(part == 1, grey.mean(), 0.0))
    return jnp.clip(other + factor * (image - other), 0.0, 1.0)


def apply_jitter(image: Seen, jitter: Jitter) -> Seen:
    """The image with its colours changed, in the order of the jitter. Grey images have neither saturation nor hue."""

    def blends(image, active):
        for step in range(3):
            part = jitter.order[step]
            image = _blend(image, part, jnp.where(active(step), jitter.factors[part], 1.0))
        return image

    if image.shape[-1] == 1:
        return blends(image, lambda step: True)
    # A switch over the order would run all four parts in each place under vmap: this runs the hue, the dearest, once.
    image = blends(image, lambda step: step < jitter.before)
    import dm_pix  # here: it takes long to import, and texts need none of it

    image = jnp.clip(dm_pix.adjust_hue(image, jitter.turn), 0.0, 1.0)
    return blends(image, lambda step: step >= jitter.before)


def jitter_of(uniform: Float[Array, "8"], widths: tuple[float, float, float], hue: float) -> Jitter:
    """Factors uniform in [max(0, 1 - width), 1 + width], a turn uniform in [-hue, hue], one of the 24 orders."""
    width = jnp.asarray(widths, jnp.float32)
    return Jitter(
        between(uniform[:3], jnp.maximum(0.0, 1.0 - width), 1.0 + width),
        between(uniform[3], -hue, hue),
        jnp.argsort(uniform[4:7]),
        below(uniform[7], 4),
    )


def color_jitter(
    *, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0, p: float = 1.0
) -> View:
    """With probability p, brightness, contrast, saturation and hue changed by random amounts in a random order.

    The first three are multiplied by a factor up to that far from 1, never below 0; the hue is turned by up to that
    share of the colour circle. Each result is clipped to [0, 1]. Grey images change in brightness and contrast alone.

    Raises ValueError on negative widths, a hue above 0.5, or p outside [0, 1].
    """
    widths = (brightness, contrast, saturation)
    if min(*widths, hue) < 0 or hue > 0.5:
        raise ValueError(f"the widths are {widths} and hue {hue}; expected at least 0, and hue at most 0.5")
    check_probability(p)

    def view(key, image):
        image = as_float(image)
        uniform = draw(key, 9)
        jitter, drawn = jitter_of(uniform[1:], widths, hue), chance(uniform[0], p)
        # Choosing the amounts, not the image, spares that the image is computed for both sides of the choice.
        factors, turn = jnp.where(drawn, jitter.factors, 1.0), jnp.where(drawn, jitter.turn, 0.0)
        return apply_jitter(image, jitter._replace(factors=factors, turn=turn))

    return view


def grey(p: float = 0.2) -> View:
    """With probability p, all channels replaced by the image's grey version; grey images stay as they are."""
    check_probability(p)

    def view(key, image):
        image = as_float(image)
        if image.shape[-1] == 1:
            return image
        mixing = jnp.where(chance(draw(key, 1)[0], p), jnp.asarray(LUMA)[:, None], jnp.eye(3))
        return jnp.einsum("hwc,cd->hwd", image, mixing, precision=jax.lax.Precision.HIGHEST)

    return view


def solarise(p: float = 0.2, *, threshold: float = 0.5) -> View:
    """With probability p, values of at least the threshold inverted: v becomes 1 - v."""
    check_probability(p)

    def view(key, image):
        image = as_float(image)
        import dm_pix  # here: it takes long to import, and texts need none of it

        return jnp.where(chance(draw(key, 1)[0], p), dm_pix.solarize(image, threshold), image)

    return view
