"""Gaussian blur."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxptft.augment.view import Seen, View, as_float, as_range, between, chance, check_probability, draw


def _weights(sigma: Float[Array, ""] | float, kernel: int, side: int) -> Float[Array, "side side"]:
    """What each of the pixels counts in each; those beyond an edge are the ones that mirror them."""
    pixel = np.arange(side)

    def at(distance):
        near = np.abs(distance) <= kernel // 2
        return jnp.where(near, jnp.exp(-(jnp.asarray(distance, jnp.float32) ** 2) / (2.0 * sigma**2)), 0.0)

    inside, before, beyond = pixel - pixel[:, None], -pixel - pixel[:, None], 2 * (side - 1) - pixel - pixel[:, None]
    weights = at(inside) + jnp.where(pixel > 0, at(before), 0.0) + jnp.where(pixel < side - 1, at(beyond), 0.0)
    return weights / at(np.arange(kernel) - kernel // 2).sum()


def gaussian(image: Seen, sigma: Float[Array, ""] | float, kernel: int, drawn: Bool[Array, ""] | bool = True) -> Seen:
    """The image blurred by a Gaussian of `sigma` pixels, cut off outside `kernel` (odd) pixels, edges mirrored.

    Unchanged where `drawn` is False. As a product of matrices it is cheap for every example's own sigma; convolutions,
    as those of `dm_pix`, have a kernel for each under vmap, and are ten times slower on a CPU. These also darken the
    edges, which they pad with black.
    """
    rows, columns = (jnp.where(drawn, _weights(sigma, kernel, side), jnp.eye(side)) for side in image.shape[:2])
    # By default accelerators would round the pixels to bfloat16.
    exact = jax.lax.Precision.HIGHEST
    image = jnp.einsum("hy,yxc->hxc", rows, image, precision=exact)
    return jnp.einsum("wx,hxc->hwc", columns, image, precision=exact)


def blur(p: float = 0.5, *, sigma: tuple[float, float] = (0.1, 2.0), kernel: int | None = None) -> View:
    """With probability p, a Gaussian blur whose sigma is uniform in that range, in pixels.

    `kernel` is its extent in pixels, odd; by default a tenth of the image's height, as in Chen et al. 2020,
    arXiv:2002.05709, appendix A (23 at 224 pixels, 3 at 32, and 1, which blurs nothing, below 20).

    Raises ValueError on other kernels and sigmas that are not 0 < low <= high, and when traced on an image that is too
    small to be mirrored at its edges.
    """
    check_probability(p)
    low, high = as_range("sigma", sigma)
    if kernel is not None and (kernel < 1 or kernel % 2 == 0):
        raise ValueError(f"kernel is {kernel}; expected an odd number of pixels")

    def view(key, image):
        image = as_float(image)
        extent = 2 * (image.shape[0] // 10 // 2) + 1 if kernel is None else kernel
        if extent // 2 >= min(image.shape[:2]):
            raise ValueError(f"a kernel of {extent} pixels is too large for an image of {image.shape[:2]}; lower it")
        whether, width = draw(key, 2)
        return gaussian(image, between(width, low, high), extent, chance(whether, p))

    return view
