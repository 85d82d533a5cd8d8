"""The discrete autoencoder's two uses. Its numbers are compared with torch's in tests/objectives/test_dvae.py."""

import jax
import jax.numpy as jnp
import pytest

from jaxptft import models


@pytest.mark.parametrize(
    "patch, factors, widths",
    [(1, (), (16,)), (4, (2, 2), (8, 16)), (6, (2, 3), (8, 16)), (16, (2, 2, 2, 2), (8, 8, 8, 16))],
)
def test_an_image_becomes_a_grid_of_words_and_back(patch, factors, widths):
    config = models.DvaeConfig(patch_size=patch, channels=1, vocab_size=7, width=16, blocks=1)
    assert (config.factors, config.widths) == (factors, widths)
    model = models.dvae(config)
    image = jnp.zeros((2, 3 * patch, 2 * patch, 1))
    params = jax.eval_shape(model.init, jax.random.key(0), {"image": image.astype(jnp.uint8)})
    assert params.keys() == {"backbone", "decoder"}
    logits = jax.eval_shape(model.apply, params, {"image": image})
    assert (logits.shape, logits.dtype) == ((2, 3, 2, 7), jnp.float32)
    drawn = jax.eval_shape(model.apply, params, {"words": logits})
    assert (drawn.shape, drawn.dtype) == (image.shape, jnp.float32)


def test_mistakes_are_named():
    model = models.dvae(models.DvaeConfig(patch_size=2, channels=1, vocab_size=7, width=8))
    params = jax.eval_shape(model.init, jax.random.key(0), {"image": jnp.zeros((1, 4, 4, 1))})
    for batch, message in [
        ({"words": jnp.zeros((1, 2, 2, 6))}, r"words have shape \(1, 2, 2, 6\); expected weights \[batch, .* 7\]"),
        ({"image": jnp.zeros((1, 5, 4, 1))}, "images of 5 x 4 pixels are no whole number of patches of 2 x 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.apply, params, batch)
    with pytest.raises(ValueError, match=r"DvaeConfig.vocab_size must be an integer of at least 2, got 1"):
        models.DvaeConfig(vocab_size=1)
