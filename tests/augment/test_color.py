"""Colours against Pillow, colorsys and numpy, and what is drawn for them."""

import colorsys
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from jaxptft import augment
from jaxptft.augment.color import Jitter, apply_jitter, jitter_of, luma

KEY = jax.random.key(0)
LUMA = np.array([0.2989, 0.587, 0.114])  # ITU-R 601


def one(*, factors=(1.0, 1.0, 1.0), turn=0.0):
    return Jitter(jnp.asarray(factors, jnp.float32), jnp.float32(turn), jnp.arange(3), jnp.int32(0))


jitter_once = jax.jit(apply_jitter)


@pytest.mark.parametrize(
    "part, pillow", enumerate([ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color])
)
def test_brightness_contrast_and_saturation_are_pillows(photo, part, pillow):
    for factor in (0.0, 0.4, 1.0, 1.7):
        factors = [1.0, 1.0, 1.0]
        factors[part] = factor
        seen = jitter_once(photo / np.float32(255), one(factors=factors))
        expected = pillow(Image.fromarray(photo)).enhance(factor)
        np.testing.assert_allclose(seen * 255, np.asarray(expected), atol=2.0)  # Pillow rounds to bytes


def hue_by_colorsys(image, turn):
    def pixel(rgb):
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)

    return np.array([[pixel(rgb) for rgb in row] for row in image])


def test_the_hue_turns_by_a_share_of_the_circle(photo):
    x = photo / 255.0
    for turn in (-0.5, -0.1, 0.0, 0.25):
        seen = jitter_once(x.astype(np.float32), one(turn=turn))
        np.testing.assert_allclose(seen, hue_by_colorsys(x, turn), atol=2e-6)


def by_hand(x, name, jitter):
    """One part in numpy, by the definitions of torchvision."""
    if name == "hue":
        return hue_by_colorsys(x, jitter["turn"])
    grey = (x @ LUMA)[..., None] if x.shape[-1] == 3 else x
    other = {"brightness": np.zeros(()), "contrast": grey.mean(), "saturation": grey}[name]
    factor = jitter["factors"][["brightness", "contrast", "saturation"].index(name)]
    return np.clip(factor * x + (1 - factor) * other, 0, 1)


def test_every_order_is_the_order_that_it_says(photo):
    """All 24 in one call, each against the parts applied one after another."""
    names, values = ("brightness", "contrast", "saturation"), {"factors": (1.3, 0.5, 1.6), "turn": 0.2}
    x = photo[:5, :5] / 255.0
    orders = [(order, before) for order in itertools.permutations(range(3)) for before in range(4)]
    jitter = Jitter(
        jnp.asarray(values["factors"]),
        jnp.float32(values["turn"]),
        jnp.array([order for order, _ in orders]),
        jnp.array([before for _, before in orders]),
    )
    in_axes = (None, Jitter(None, None, 0, 0))  # type: ignore[arg-type]
    seen = jax.jit(jax.vmap(apply_jitter, in_axes))(x.astype(np.float32), jitter)
    results = set()
    for (order, before), ours in zip(orders, seen, strict=True):
        steps = [names[part] for part in order]
        steps.insert(before, "hue")
        expected = x
        for step in steps:
            expected = by_hand(expected, step, values)
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        results.add(expected.tobytes())
    assert len(results) == 24


def test_grey_images_change_in_brightness_and_contrast_alone(photo):
    x = photo[:5, :5, :1] / 255.0
    jitter = one(factors=(1.2, 0.5, 1.9), turn=0.3)
    expected = by_hand(by_hand(x, "brightness", {"factors": (1.2,)}), "contrast", {"factors": (1.0, 0.5)})
    np.testing.assert_allclose(jitter_once(x.astype(np.float32), jitter), expected, atol=1e-6)
    for view in (augment.color_jitter(saturation=0.9, hue=0.5), augment.grey(1.0)):
        np.testing.assert_allclose(view(KEY, photo[..., :1]), photo[..., :1] / 255.0, atol=1e-6)


def test_amounts_and_orders_are_drawn_as_torchvision_draws_them():
    jitter = jax.vmap(lambda uniform: jitter_of(uniform, (0.4, 1.5, 0.0), 0.1))(jax.random.uniform(KEY, (2000, 8)))
    for column, (low, high) in enumerate([(0.6, 1.4), (0.0, 2.5)]):
        drawn = np.asarray(jitter.factors[:, column])
        assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(jitter.factors[:, 2], 1.0)
    assert stats.kstest(np.asarray(jitter.turn), stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3
    drawn = zip(jitter.order.tolist(), jitter.before.tolist(), strict=True)
    orders = Counter((*order, before) for order, before in drawn)
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3


def test_jitter_of_no_chance_changes_nothing(photo, drawn):
    wide = augment.color_jitter(brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, p=0.0)
    np.testing.assert_allclose(drawn(wide, photo, 1)[0], photo / 255.0, atol=1e-6)


def test_jitter_happens_with_its_probability(photo, drawn):
    seen = drawn(augment.color_jitter(brightness=0.5, p=0.8), photo[:2, :3], 1000)
    changed = np.abs(seen - photo[:2, :3] / 255.0).max((1, 2, 3)) > 1e-6
    assert stats.binomtest(int(changed.sum()), 1000, 0.8).pvalue > 1e-3


def test_grey_is_the_luma_in_every_channel(photo, drawn):
    seen = np.asarray(augment.grey(1.0)(KEY, photo))
    np.testing.assert_allclose(seen, np.repeat((photo / 255.0 @ LUMA)[..., None], 3, -1), atol=1e-6)
    np.testing.assert_allclose(seen[..., 0] * 255, np.asarray(Image.fromarray(photo).convert("L")), atol=1.1)
    assert luma(seen[..., :1]).shape == (12, 16, 1)
    grey = np.ptp(drawn(augment.grey(0.2), photo[:2, 4:6], 1000), axis=-1).max((1, 2)) < 1e-6
    assert stats.binomtest(int(grey.sum()), 1000, 0.2).pvalue > 1e-3


def test_solarising_inverts_what_is_at_least_the_threshold(photo):
    seen = augment.solarise(1.0)(KEY, photo)
    pillow = ImageOps.solarize(Image.fromarray(photo), threshold=128)  # the least byte of at least half of 255
    np.testing.assert_allclose(seen * 255, np.asarray(pillow), atol=1e-4)
    np.testing.assert_allclose(augment.solarise(0.0)(KEY, photo), photo / 255.0, rtol=1e-6)
    values = np.full((1, 2, 1), [[[0.5], [0.49]]], np.float32)
    np.testing.assert_allclose(augment.solarise(1.0)(KEY, values)[0, :, 0], [0.5, 0.49], rtol=1e-6)
    np.testing.assert_allclose(augment.solarise(1.0, threshold=0.2)(KEY, values)[0, :, 0], [0.5, 0.51], rtol=1e-6)
