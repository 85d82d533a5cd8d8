"""A few rows of every class."""

import numpy as np
import pytest

from jaxptft.data import check_enough, draw_by_class

LABELS = np.array([2, 0, 1, 0, 2, 1, 2, 0, 1, 2], np.int32)


def test_as_many_of_every_class_class_by_class_and_none_twice():
    drawn = draw_by_class(LABELS, 2, seed=0)
    assert LABELS[drawn].tolist() == [0, 0, 1, 1, 2, 2]
    assert len(set(drawn.tolist())) == 6


def test_the_seed_decides():
    ways = {tuple(draw_by_class(LABELS, 1, seed=seed).tolist()) for seed in range(20)}
    assert len(ways) > 5
    assert draw_by_class(LABELS, 1, seed=3).tolist() == draw_by_class(LABELS, 1, seed=3).tolist()


def test_a_class_with_fewer_is_named():
    draw_by_class(LABELS, 3, seed=0)
    with pytest.raises(ValueError, match="class 0 has 3 training rows, and 4 are asked for; ask fewer"):
        draw_by_class(LABELS, 4, seed=0)
    with pytest.raises(ValueError, match="class 0 has 3 training rows"):
        check_enough(LABELS, 4)
