"""Crops and resizing against Pillow and torch, and their distribution against the algorithm of torchvision."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from jaxptft import augment
from jaxptft.augment.geometry import Box, crop_and_resize, draw_box

KEY = jax.random.key(0)
BOXES = np.array([[0, 0, 12, 16], [3, 2, 7, 11], [11, 15, 1, 1], [4, 0, 5, 16], [1, 5, 3, 2]])


def by_torch(image, size, method):
    tensor = torch.tensor(image / 255.0, dtype=torch.float32).permute(2, 0, 1)[None]
    mode = {"linear": "bilinear", "cubic": "bicubic"}[method]
    resized = torch.nn.functional.interpolate(tensor, size, mode=mode, antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).clip(0, 1).numpy()


@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_a_crop_is_cut_out_first_and_resized_then(photo, method):
    """Of the boxes some grow, some shrink, and some do both; torch antialiases as Pillow does."""
    size = (6, 9)
    resized = jax.vmap(lambda box: crop_and_resize(jnp.asarray(photo) / 255.0, Box(*box), size, method))
    ours = jax.jit(resized)(jnp.asarray(BOXES))
    for seen, (top, left, height, width) in zip(ours, BOXES, strict=True):
        cut = photo[top : top + height, left : left + width]
        np.testing.assert_allclose(seen, by_torch(cut, size, method), atol=2e-6)
        if method == "linear":  # the cubic one of Pillow clips between rows and columns too
            pillow = np.asarray(Image.fromarray(cut).resize(size[::-1], Image.Resampling.BILINEAR))
            np.testing.assert_allclose(seen * 255, pillow, atol=1.5)  # it rounds to bytes twice


@pytest.mark.parametrize("size", [(5, 20), (12, 16)])
def test_resize_sees_the_whole_image(photo, drawn, size):
    for method in ("linear", "cubic"):
        (seen,) = drawn(augment.resize(size, method=method), photo, 1)
        np.testing.assert_allclose(seen, by_torch(photo, size, method), atol=2e-6)
    if size == photo.shape[:2]:
        np.testing.assert_allclose(seen, photo / 255.0, atol=1e-6)


def test_a_whole_square_crop_is_the_image_itself(photo, drawn):
    square = photo[:, :12]
    whole = augment.random_resized_crop(12, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    np.testing.assert_allclose(drawn(whole, square, 1)[0], square / 255.0, atol=1e-6)


def torchvision_boxes(rng, height, width, scale, ratio, count):
    """torchvision.transforms.RandomResizedCrop.get_params, in numpy."""
    boxes = []
    for _ in range(count):
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                boxes.append((rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w))
                break
        else:
            w, h = width, height
            if width / height < ratio[0]:
                h = round(width / ratio[0])
            elif width / height > ratio[1]:
                w = round(height * ratio[1])
            boxes.append(((height - h) // 2, (width - w) // 2, h, w))
    return np.array(boxes)


@pytest.mark.parametrize("shape", [(64, 64), (40, 120), (20, 200), (200, 20)])
def test_boxes_are_distributed_as_in_torchvision(shape):
    """The last two find no box in many of their tries, and fall back to the middle of the image."""
    scale, ratio, count = (0.08, 1.0), (3 / 4, 4 / 3), 1500
    keys = jax.random.split(KEY, count)
    ours = jax.jit(jax.vmap(lambda key: jnp.stack(draw_box(key, *shape, scale, ratio))))(keys)
    ours, theirs = np.asarray(ours), torchvision_boxes(np.random.default_rng(1), *shape, scale, ratio, count)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= shape).all()
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    assert stats.ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3
    middle = torchvision_boxes(np.random.default_rng(0), *shape, (1.0, 1.0), (5.0, 5.0), 1)  # never fits
    np.testing.assert_array_equal(jnp.stack(draw_box(KEY, *shape, (1.0, 1.0), (5.0, 5.0))), middle[0])


def test_the_area_lies_in_its_range():
    """On a square, boxes of at most 3/4 of the area and up to 4/3 to a side always fit: no try fails."""
    keys = jax.random.split(KEY, 2000)
    boxes = jax.jit(jax.vmap(lambda key: jnp.stack(draw_box(key, 400, 400, (0.2, 0.75), (3 / 4, 4 / 3)))))(keys)
    share = np.asarray(boxes[:, 2] * boxes[:, 3]) / 400**2
    assert stats.kstest(share, stats.uniform(0.2, 0.55).cdf).pvalue > 1e-3
    ratio = np.log(np.asarray(boxes[:, 3] / boxes[:, 2]))
    assert stats.kstest(ratio, stats.uniform(np.log(3 / 4), 2 * np.log(4 / 3)).cdf).pvalue > 1e-3


def test_a_random_crop_is_a_window_of_the_padded_image(photo, drawn):
    size, padding = (9, 11), 2
    padded = np.pad(photo, ((2, 2), (2, 2), (0, 0))) / 255.0
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    seen = drawn(augment.random_crop(size, padding=padding), photo, 400)
    distance = np.abs(seen[:, None, None] - windows[None]).max((-3, -2, -1))
    assert (distance.min((1, 2)) < 1e-6).all()
    where = distance.reshape(400, -1).argmin(1)
    assert stats.chisquare(np.bincount(where, minlength=8 * 10)).pvalue > 1e-3  # 12 + 4 - 9 + 1 by 16 + 4 - 11 + 1


def test_flips_happen_with_their_probability(photo, drawn):
    x = photo / 255.0
    np.testing.assert_allclose(augment.flip(1.0)(KEY, photo), x[:, ::-1], rtol=1e-6)
    np.testing.assert_allclose(augment.flip(0.0)(KEY, photo), x, rtol=1e-6)
    seen = drawn(augment.flip(0.3), photo[:2, :2], 1000)
    flipped = np.isclose(seen, x[:2, 1::-1], atol=1e-6).all((1, 2, 3))
    assert stats.binomtest(int(flipped.sum()), 1000, 0.3).pvalue > 1e-3
