"""Pictures from codes: images drawn again, drawn from nothing, and drawn on the way from one code to another.

All take models that draw logits of pixels, as the objectives here do, and give images from 0 to 1.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxptft.objectives.contract import Model, Params
from jaxptft.objectives.views import Images


def draw_images(decoder: Model, params: Params, codes: Float[Array, "batch code"]) -> Images:
    """The images of codes, which `decoder` reads as `features` or as `noise`."""
    return jax.nn.sigmoid(decoder.apply(params, {"features": codes, "noise": codes}))


def reconstruct_images(encoder: Model, decoder: Model, params: Params, images: Images) -> Images:
    """Images, floats as the encoder reads them, drawn again from its codes.

    Of a variational autoencoder `encoder` is that of the codes' means, the encoder and its head in one.
    """
    return draw_images(decoder, params, encoder.apply(params, {"image": images}))


def sample_images(decoder: Model, params: Params, rng: PRNGKeyArray, *, count: int, size: int) -> Images:
    """`count` images drawn from standard normal codes of `size` numbers."""
    return draw_images(decoder, params, jax.random.normal(rng, (count, size)))


def interpolate_codes(
    first: Float[Array, "pairs code"],
    second: Float[Array, "pairs code"],
    *,
    steps: int,
    path: Literal["spherical", "linear"] = "spherical",
) -> Float[Array, "pairs steps code"]:
    """Codes at equal distances from `first` to `second`, both included.

    "spherical" goes along a great circle, on which the codes keep the length that normal numbers have (White 2016,
    arXiv:1609.04468, section 2.1); straight on where the two point the same way, or opposite ways. "linear" goes
    straight on, and so through codes that are shorter than any sample.

    Raises ValueError on another path, fewer than two steps, or codes that are not of one shape [pairs, code].
    """
    if path not in ("spherical", "linear"):
        raise ValueError(f"path is {path!r}; expected 'spherical' or 'linear'")
    if steps < 2:
        raise ValueError(f"steps is {steps}; expected at least 2, the two ends")
    first, second = (jnp.asarray(rows, jnp.float32) for rows in (first, second))
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"the codes have shapes {first.shape} and {second.shape}; expected one, [pairs, code]")
    share = jnp.linspace(0.0, 1.0, steps)[None, :, None]
    weights = (1.0 - share, share)
    if path == "spherical":
        lengths = jnp.linalg.norm(first, axis=1) * jnp.linalg.norm(second, axis=1)
        cosine = (first * second).sum(axis=1) / jnp.where(lengths > 0, lengths, 1.0)
        angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))[:, None, None]
        sine = jnp.sin(angle)
        bent = sine > 1e-4
        weights = tuple(
            jnp.where(bent, jnp.sin(weight * angle) / jnp.where(bent, sine, 1.0), weight) for weight in weights
        )
    return weights[0] * first[:, None] + weights[1] * second[:, None]


def interpolate_images(
    decoder: Model,
    params: Params,
    first: Float[Array, "pairs code"],
    second: Float[Array, "pairs code"],
    *,
    steps: int,
    path: Literal["spherical", "linear"] = "spherical",
) -> Float[Array, "pairs steps height width channels"]:
    """The images of `interpolate_codes`."""
    codes = interpolate_codes(first, second, steps=steps, path=path)
    images = draw_images(decoder, params, codes.reshape(-1, codes.shape[-1]))
    return images.reshape(*codes.shape[:2], *images.shape[1:])
