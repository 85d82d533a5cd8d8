"""Blur against scipy, the range of its sigma, and its default kernel."""

import jax
import numpy as np
from scipy import ndimage, stats

from jaxptft import augment
from jaxptft.augment.blur import gaussian


def test_a_blur_is_a_gaussian_filter_with_mirrored_edges(photo):
    x = photo / 255.0
    blurred = jax.jit(gaussian, static_argnums=2)
    for sigma, kernel in [(0.1, 5), (0.8, 5), (2.0, 5), (1.5, 21)]:
        expected = ndimage.gaussian_filter(x, sigma, mode="mirror", axes=(0, 1), radius=kernel // 2)
        np.testing.assert_allclose(blurred(x.astype(np.float32), sigma, kernel), expected, atol=2e-6)


def test_sigma_is_uniform_and_the_chance_is_p(drawn):
    """A line between 0 and 1 blurred by three pixels is e / (1 + 2e) beside it, e = exp(-1 / (2 sigma^2))."""
    edge = np.zeros((4, 6, 1), np.float32)
    edge[:, 3:] = 1.0
    share = drawn(augment.blur(0.4, sigma=(0.5, 2.0), kernel=3), edge, 1500)[:, 1, 2, 0]
    happened = share > 0
    assert stats.binomtest(int(happened.sum()), 1500, 0.4).pvalue > 1e-3
    e = share[happened] / (1 - 2 * share[happened])
    assert stats.kstest(np.sqrt(-0.5 / np.log(e)), stats.uniform(0.5, 1.5).cdf).pvalue > 1e-3


def test_the_default_kernel_is_a_tenth_of_the_height(drawn):
    """Chen et al. 2020, appendix A: 23 pixels at 224; a point spreads just as far."""
    for side, extent in [(224, 23), (32, 3), (28, 3), (8, 1)]:
        point = np.zeros((side, 12, 1), np.float32)
        point[side // 2, 6] = 1.0
        (seen,) = drawn(augment.blur(1.0, sigma=(5.0, 5.0)), point, 1)
        assert np.count_nonzero(seen.any((1, 2))) == extent
