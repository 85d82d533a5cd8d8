"""Composition, the range of images, normalisation, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft import augment
from jaxptft.augment.view import as_size

KEY = jax.random.key(0)


def test_bytes_become_floats_from_0_to_1_and_floats_stay(photo):
    seen = augment.to_float()(KEY, photo)
    assert seen.dtype == jnp.float32
    np.testing.assert_allclose(seen, photo / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(augment.to_float()(KEY, seen), seen)
    np.testing.assert_array_equal(augment.compose()(KEY, photo), seen)


def test_views_follow_one_another_each_with_a_key_of_its_own(photo):
    keys = []

    def record(key, image):
        keys.append(jax.random.key_data(key).tolist())
        return image * 2 + 1

    seen = augment.compose(record, record)(KEY, photo)
    np.testing.assert_allclose(seen, (photo / 255.0 * 2 + 1) * 2 + 1, rtol=1e-6)
    assert keys[0] != keys[1]


def test_normalise_is_per_channel_or_for_all(photo):
    x = photo / 255.0
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    np.testing.assert_allclose(augment.normalise(mean, std)(KEY, photo), (x - mean) / std, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(augment.normalise(0.5, 0.25)(KEY, photo), (x - 0.5) / 0.25, rtol=1e-5, atol=1e-6)
    plain = augment.plain(mean=mean, std=std)
    np.testing.assert_array_equal(plain(KEY, photo), plain(jax.random.key(9), photo))
    np.testing.assert_allclose(plain(KEY, photo), (x - mean) / std, rtol=1e-4, atol=1e-6)


def test_what_is_no_image_is_refused(photo):
    view = augment.to_float()
    with pytest.raises(ValueError, match=r"shape \(12, 16\); expected \[height, width, channels\] with 1 or 3"):
        view(KEY, photo[..., 0])
    with pytest.raises(ValueError, match=r"shape \(12, 16, 4\)"):
        view(KEY, np.zeros((12, 16, 4), np.uint8))
    with pytest.raises(TypeError, match="int32; expected uint8 from 0 to 255, or floats"):
        view(KEY, photo.astype(np.int32))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: augment.normalise(0.0, 0.0), "std above 0"),
        (lambda: augment.normalise([[0.0]], 1.0), "expected a number, or one a channel"),
        (lambda: augment.flip(1.5), "p is 1.5; expected a probability"),
        (lambda: augment.resize(0), "size is 0; expected pixels"),
        (lambda: augment.resize((4, 4, 4)), r"one number or \(height, width\)"),
        (lambda: augment.random_resized_crop(4, scale=(0.5, 1.5)), "expected shares of the image's area, at most 1"),
        (lambda: augment.random_resized_crop(4, ratio=(2.0, 1.0)), "ratio is .* 0 < low <= high"),
        (lambda: augment.random_resized_crop(4, scale=(0.0, 1.0)), "scale is .* 0 < low <= high"),
        (lambda: augment.resize(4, method="lanczos"), "method is 'lanczos'; expected 'linear' or 'cubic'"),
        (lambda: augment.random_crop(4, padding=-1), "padding is -1; expected pixels, at least 0"),
        (lambda: augment.color_jitter(contrast=-0.1), "expected at least 0, and hue at most 0.5"),
        (lambda: augment.color_jitter(hue=0.6), "hue 0.6; expected at least 0, and hue at most 0.5"),
        (lambda: augment.blur(kernel=4), "kernel is 4; expected an odd number"),
        (lambda: augment.blur(sigma=(0.0, 1.0)), "sigma is .* 0 < low <= high"),
        (lambda: augment.cutout(0), "length is 0; expected at least 1 pixel"),
        (lambda: augment.simclr(8, channels=2), "channels is 2 .* expected 1 or 3"),
        (lambda: augment.simclr(8, strength=-1.0), "strength -1.0; expected 1 or 3, and at least 0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_views_refuse_images_that_do_not_fit_them(photo):
    for view, message in [
        (augment.normalise((0.5, 0.5), 1.0), "mean has 2 values for an image of 3 channels"),
        (augment.random_crop(13), r"a crop of \(13, 13\) does not fit an image of \(12, 16\)"),
        (augment.random_crop((4, 17)), r"a crop of \(4, 17\) does not fit"),
        (augment.blur(kernel=25), "a kernel of 25 pixels is too large"),
        (augment.cutout(2, fill=(0.1, 0.2)), "fill has 2 values for an image of 3 channels"),
    ]:
        with pytest.raises(ValueError, match=message):
            view(KEY, photo)


def test_a_size_is_one_number_or_height_and_width():
    assert as_size(5) == (5, 5)
    assert as_size([3, 4]) == (3, 4)
