"""Thresholds against trying every one, by brute force over scikit-learn's micro F1."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import f1_score

from jaxptft.recipes.metrics.thresholds import best_threshold, best_thresholds


def candidates(values):
    distinct = np.unique(values)
    return [0.0, *((distinct[1:] + distinct[:-1]) / 2), 1.0]


@pytest.mark.parametrize("seed", range(12))
def test_one_threshold_is_the_best_there_is(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.integers(1, 12, (15, 3)) / 12  # with ties
    truth = rng.random((15, 3)) < probabilities * rng.random()
    truth[0, 0] = True
    found = f1_score(truth, probabilities > best_threshold(probabilities, truth), average="micro", zero_division=0)
    tried = [f1_score(truth, probabilities > t, average="micro", zero_division=0) for t in candidates(probabilities)]
    assert found == pytest.approx(max(tried))


@pytest.mark.parametrize("seed", range(12))
def test_a_threshold_for_each_label_is_the_best_combination_there_is(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.integers(1, 8, (8, 3)) / 8
    truth = rng.random((8, 3)) < 0.35
    truth[0] = True
    found = f1_score(truth, probabilities > best_thresholds(probabilities, truth), average="micro", zero_division=0)
    every = itertools.product(*(candidates(probabilities[:, label]) for label in range(3)))
    highest = 0.0
    for thresholds in every:  # F1 = 2 TP / (said + true), as scikit-learn's micro average
        said = probabilities > np.array(thresholds)
        highest = max(highest, 2 * (said & truth).sum() / (said.sum() + truth.sum()))
    assert found == pytest.approx(highest)


def test_of_equally_good_thresholds_the_nearest_to_a_half_is_taken():
    probabilities, truth = np.array([[0.9], [0.8], [0.1], [0.05]]), np.array([[True], [True], [False], [False]])
    assert best_threshold(probabilities, truth) == pytest.approx(0.45)  # between 0.8 and 0.1
    everything = np.ones((4, 1), bool)
    assert best_threshold(probabilities, everything) == pytest.approx(0.025)  # below the lowest, above 0


def test_labels_that_no_row_has():
    probabilities = np.array([[0.9, 0.8], [0.6, 0.7], [0.2, 0.1]])
    nobody = np.zeros((3, 2), bool)
    assert best_threshold(probabilities, nobody) == 0.5
    np.testing.assert_array_equal(best_thresholds(probabilities, nobody), [0.5, 0.5])
    truth = np.array([[True, False], [True, False], [False, False]])
    common = best_threshold(probabilities, truth)
    each = best_thresholds(probabilities, truth)
    assert each[1] == common
    assert 0.2 < each[0] < 0.6


def test_neighbouring_floats_are_parted():
    low = 0.3
    high = np.nextafter(low, 1)
    threshold = best_threshold(np.array([[high], [low]]), np.array([[True], [False]]))
    assert (high > threshold, low > threshold) == (True, False)
    assert best_threshold(np.array([[1.0], [0.0]]), np.array([[True], [False]])) == 0.5
