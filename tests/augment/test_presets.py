"""The published augmentations: shapes and range on colour and grey images, and what can be counted of their tables."""

import numpy as np
import pytest
from scipy import stats

from jaxptft import augment

COUNT = 200


@pytest.fixture(scope="module")
def colour():
    """A square on which grey, cropped, flipped and solarised views can all be told apart."""
    y, x = np.mgrid[:12, :12]
    return np.stack([40 + x * 6, 60 + y, 15 + 0 * x], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def counted(colour, drawn):
    """The views of one image, by the name of the preset."""
    views = {"simclr": augment.simclr(12), "crop_flip": augment.crop_flip(12)}
    return {name: drawn(view, colour, COUNT) for name, view in views.items()}


def test_presets_give_floats_from_0_to_1_of_the_size_for_colour_and_grey(counted, colour, drawn):
    views = {**counted, "grey": drawn(augment.simclr((8, 10), channels=1), colour[..., :1], 3)}
    for name, seen in views.items():
        assert seen.shape[1:] == ((8, 10, 1) if name == "grey" else (12, 12, 3))
        assert seen.dtype == np.float32
        assert 0.0 <= seen.min() < seen.max() <= 1.0
        assert np.abs(np.diff(seen, axis=0)).max((1, 2, 3)).mean() > 0.02


def chance(happened, p):
    return stats.binomtest(int(happened.sum()), COUNT, p).pvalue > 1e-3


def is_grey(seen):
    return np.ptp(seen, axis=-1).max((1, 2)) < 1e-5


def test_a_fifth_is_grey(counted):
    assert chance(is_grey(counted["simclr"]), 0.2)
    assert not is_grey(counted["crop_flip"]).any()


def test_half_are_flipped(counted):
    """Red grows to the right: SimCLR and MAE flip every second image."""
    for name in ("simclr", "crop_flip"):
        growth = np.diff(counted[name].mean((1, 3)), axis=1).sum(1)
        steady = np.abs(growth) > 1e-4  # colours may have been clipped to black or white
        assert stats.binomtest(int((growth[steady] < 0).sum()), int(steady.sum()), 0.5).pvalue > 1e-3


def test_solarised_are_the_second_views_alone_and_only_a_fifth(drawn):
    """Jitter leaves white at 0.6 or more, the least factor of its brightness, which solarising turns to 0.4 or less."""
    white = np.full((8, 8, 1), 255, np.uint8)
    first, second = (drawn(view, white, COUNT) for view in augment.byol(12))
    assert first.min() > 0.59
    assert chance(second.max((1, 2, 3)) < 0.41, 0.2)


def test_the_scale_and_strength_of_simclr_are_its_arguments(colour, drawn):
    """A square crop of the whole area is the image: without distortion, four images are left, flipped and grey."""
    x = colour / 255.0
    grey = np.repeat((x @ [0.2989, 0.587, 0.114])[..., None], 3, -1)
    known = np.stack([x, x[:, ::-1], grey, grey[:, ::-1]])
    seen = drawn(augment.simclr(12, strength=0.0, blurred=False, scale=(1.0, 1.0)), colour, COUNT)
    distance = np.abs(seen[:, None] - known).max((2, 3, 4))
    assert (distance.min(1) < 1e-5).all()
    assert stats.chisquare(np.bincount(distance.argmin(1), minlength=4) / COUNT, [0.4, 0.4, 0.1, 0.1]).statistic < 0.05


def test_moco_is_simclr_with_larger_crops_and_less_jitter_in_another_order(drawn):
    """On white images without colours: brightness within 0.4 of 1 for 0.8 of them, and nothing else to be seen."""
    white = np.full((8, 8, 1), 255, np.uint8)
    seen = drawn(augment.moco_v2(8), white, COUNT)
    assert np.ptp(seen, axis=(1, 2, 3)).max() < 1e-5
    assert seen.shape == (COUNT, 8, 8, 1)
    assert 0.6 - 1e-5 < seen.min() < 0.65
    assert chance(seen[:, 0, 0, 0] < 1 - 1e-5, 0.4)  # half of the factors are above 1, and clipped
