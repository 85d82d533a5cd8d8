"""Small images of all kinds of content, and views drawn many times in one compilation."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def photo():
    """uint8 [12, 16, 3]: smooth colours, sharp edges, noise, and pixels that are black, white and grey."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:12, :16]
    image = np.stack([x * 15, y * 20, 255 - x * 9], -1) + rng.integers(-30, 30, (12, 16, 3))
    image[3:6, 4:9] = 255 - image[3:6, 4:9]
    image[0, :4] = [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0]]
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def drawn():
    """`drawn(view, image, count)`: the view of one image under that many keys."""

    def draw(view, image, count):
        quick = jax.jit(jax.vmap(view, (0, None)), compiler_options={"xla_backend_optimization_level": 0})
        return np.asarray(quick(jax.random.split(jax.random.key(0), count), image))

    return draw
