"""Pictures from codes, against scipy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import geometric_slerp

from jaxptft import models
from jaxptft.objectives import (
    draw_images,
    interpolate_codes,
    interpolate_images,
    reconstruct_images,
    sample_images,
)

CONFIG = models.ConvConfig(kind="mlp", image_size=(4, 3), widths=(6,), features=5, latent=3)
MEAN, DECODER, GENERATOR = (models.build(CONFIG, task) for task in ("latent_mean", "decoder", "generator"))
IMAGES = np.random.default_rng(0).random((2, 4, 3, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    codes = dict.fromkeys(("features", "noise"), jnp.zeros((1, 3)))
    batch, three = {"image": IMAGES, **codes}, (MEAN, DECODER, GENERATOR)
    made = jax.jit(lambda: [model.init(jax.random.key(0), batch) for model in three])()
    return made[0] | made[1] | made[2]


def test_images_are_drawn_again_and_from_nothing(params):
    mean = MEAN.apply(params, {"image": IMAGES})
    found = reconstruct_images(MEAN, DECODER, params, IMAGES)
    logits = np.asarray(DECODER.apply(params, {"features": mean}), np.float64)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    rng = jax.random.key(4)
    made = sample_images(GENERATOR, params, rng, count=6, size=3)
    assert made.shape == (6, 4, 3, 1)
    assert 0 < made.min() < made.max() < 1
    np.testing.assert_array_equal(made, draw_images(GENERATOR, params, jax.random.normal(rng, (6, 3))))


def test_great_circles_are_scipys_and_lines_are_straight():
    rng = np.random.default_rng(0)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 3, 4))]
    expected = np.stack([geometric_slerp(a, b, np.linspace(0, 1, 5)) for a, b in zip(*unit, strict=True)])
    np.testing.assert_allclose(interpolate_codes(*unit, steps=5), expected, rtol=1e-4, atol=1e-5)
    share = np.linspace(0, 1, 5)[None, :, None]
    expected = unit[0][:, None] * (1 - share) + unit[1][:, None] * share
    np.testing.assert_allclose(interpolate_codes(*unit, steps=5, path="linear"), expected, rtol=1e-5, atol=1e-6)


def test_where_there_is_no_one_circle_it_goes_straight_on():
    first = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 0.0]], np.float32)
    second = np.array([[2.0, 4.0], [-3.0, 0.0], [1.0, 1.0]], np.float32)
    found = interpolate_codes(first, second, steps=3)
    np.testing.assert_allclose(found[:2, 1], [[1.5, 3.0], [0.0, 0.0]], atol=1e-6)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 0], first, atol=1e-6)
    np.testing.assert_allclose(found[:, -1], second, atol=1e-6)


def test_the_images_on_the_way_begin_and_end_with_those_of_the_codes(params):
    first, second = np.random.default_rng(1).normal(size=(2, 4, 3)).astype(np.float32)
    run = jax.jit(interpolate_images, static_argnums=0, static_argnames=("steps", "path"))
    found = run(DECODER, params, first, second, steps=5)
    assert found.shape == (4, 5, 4, 3, 1)
    for place, codes in ((0, first), (-1, second)):
        np.testing.assert_allclose(found[:, place], draw_images(DECODER, params, codes), rtol=1e-5, atol=1e-6)
    straight = run(DECODER, params, first, second, steps=3, path="linear")
    np.testing.assert_allclose(straight[:, 1], draw_images(DECODER, params, (first + second) / 2), rtol=1e-5)


def test_mistakes_are_named():
    rows = np.zeros((2, 3))
    with pytest.raises(ValueError, match="path is 'cubic'; expected 'spherical' or 'linear'"):
        interpolate_codes(rows, rows, steps=3, path="cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps is 1; expected at least 2, the two ends"):
        interpolate_codes(rows, rows, steps=1)
    with pytest.raises(ValueError, match=r"codes have shapes \(2, 3\) and \(2, 4\); expected one, \[pairs, code\]"):
        interpolate_codes(rows, np.zeros((2, 4)), steps=3)
