"""Squares cut out: where, how large, and filled with what."""

import jax
import numpy as np
from scipy import stats

from jaxptft import augment


def test_a_square_about_a_uniform_centre_is_filled_and_cut_off_at_the_edges(photo, drawn):
    for length in (3, 4):
        seen = drawn(augment.cutout(length, fill=2.0), photo, 600)
        holes = (seen == 2.0).all(-1)
        np.testing.assert_allclose(seen[~holes], np.broadcast_to(photo / 255.0, seen.shape)[~holes], rtol=1e-6)
        expected = {}  # by hand: every centre, and the hole about it
        for centre in np.ndindex(12, 16):
            hole = np.zeros((12, 16), bool)
            (top, left) = (max(0, at - length // 2) for at in centre)
            hole[top : centre[0] - length // 2 + length, left : centre[1] - length // 2 + length] = True
            expected[hole.tobytes()] = centre
        centres = np.array([expected[hole.tobytes()] for hole in holes])
        for column, side in enumerate((12, 16)):
            assert stats.chisquare(np.bincount(centres[:, column], minlength=side)).pvalue > 1e-3


def test_the_fill_is_one_value_or_one_a_channel_and_the_chance_is_p(photo, drawn):
    seen = drawn(augment.cutout(40, p=0.7, fill=(0.1, 0.2, 0.3)), photo, 1000)
    cut = np.isclose(seen, [0.1, 0.2, 0.3]).all((1, 2, 3))
    np.testing.assert_allclose(seen[~cut], np.broadcast_to(photo / 255.0, seen[~cut].shape), rtol=1e-6)
    assert stats.binomtest(int(cut.sum()), 1000, 0.7).pvalue > 1e-3
    behind = augment.compose(augment.normalise(0.5, 0.5), augment.cutout(40))
    assert not np.asarray(behind(jax.random.key(0), photo)).any()
