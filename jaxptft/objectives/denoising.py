"""Denoising autoencoders: images are drawn as they were, from codes of what noise has left of them.

Vincent et al. 2008, "Extracting and composing robust features with denoising autoencoders"; Vincent et al. 2010,
"Stacked denoising autoencoders", section 4.1, for the kinds of noise. Noise is a view: it is drawn for each example by
its id. A share of pixels is spoilt one by one, each with that probability; the papers take just so many of each image.
"""

import jax
import jax.numpy as jnp

from jaxptft.objectives.autoencoder import Likelihood, autoencoding
from jaxptft.objectives.contract import Model, Objective
from jaxptft.objectives.views import View, unchanged


def masking_noise(share: float) -> View:
    """A share of an image's numbers is 0. Raises ValueError outside [0, 1]."""
    _check_share(share)
    return lambda key, image: jnp.where(jax.random.uniform(key, image.shape) < share, 0.0, unchanged(key, image))


def salt_and_pepper_noise(share: float) -> View:
    """A share of an image's numbers is 0 or 1, each as likely. Raises ValueError outside [0, 1]."""
    _check_share(share)

    def view(key, image):
        draw = jax.random.uniform(key, image.shape)
        return jnp.where(draw < share, (draw < share / 2).astype(jnp.float32), unchanged(key, image))

    return view


def gaussian_noise(deviation: float) -> View:
    """Normal noise of this deviation is added; numbers may leave 0 to 1. Raises ValueError below 0."""
    if not deviation >= 0:
        raise ValueError(f"deviation is {deviation!r}; expected at least 0, in units of an image from 0 to 1")
    return lambda key, image: unchanged(key, image) + deviation * jax.random.normal(key, image.shape)


def denoising(
    encoder: Model,
    decoder: Model,
    *,
    noise: View,
    likelihood: Likelihood = "gaussian",
    view: View = unchanged,
    plain: View = unchanged,
) -> Objective:
    """As `autoencoder`, but that the encoder sees the images through `noise`, on top of `view` or `plain`.

    Evaluation spoils images as well: with one key, always alike. Metrics: `denoising/pixel_error`, and
    `denoising/spoilt_error`, that of the spoilt images themselves. Predictions: `features`, of images without noise.
    """
    options = {"likelihood": likelihood, "view": view, "plain": plain}
    return autoencoding("denoising", encoder, decoder, spoil=noise, **options)


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share!r}; expected a share of the pixels from 0 to 1")
