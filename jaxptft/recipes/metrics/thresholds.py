"""The probability above which a label is said to apply, chosen so that micro F1 is highest.

    F = 2 sum_l TP_l / (sum_l P_l + A)        P: how many are said to have the label, A: how many have one

One threshold for all labels is found by trying every cut of the sorted probabilities. With one for each label, F is
a ratio of sums over labels, and Dinkelbach's method (1967, Management Science 13(7)) is exact: for the best ratio so
far each label takes the cut that maximises 2 TP_l - F P_l, until F rises no more.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class _Cuts(NamedTuple):
    """For every possible number of rows said to apply: the threshold that gives it, and how many are right."""

    thresholds: Float[np.ndarray, " cuts"]
    said: Int[np.ndarray, " cuts"]
    right: Int[np.ndarray, " cuts"]


def best_threshold(probabilities: Float[np.ndarray, "rows labels"], truth: Bool[np.ndarray, "rows labels"]) -> float:
    """The threshold for all labels with the highest micro F1; of several, the nearest to 1/2.

    It is 1/2 where no row has a label. A label applies where its probability is above the threshold.

    >>> best_threshold(np.array([[0.9, 0.6], [0.4, 0.1]]), np.array([[True, True], [True, False]]))
    0.25
    """
    if not truth.any():
        return 0.5
    cuts = _cuts(probabilities.ravel(), truth.ravel())
    return float(cuts.thresholds[_best(cuts, 2 * cuts.right / (cuts.said + truth.sum()))])


def best_thresholds(
    probabilities: Float[np.ndarray, "rows labels"], truth: Bool[np.ndarray, "rows labels"]
) -> Float[np.ndarray, " labels"]:
    """The thresholds, one for each label, with the highest micro F1.

    A label that no row has keeps the one that is best for all labels together.
    """
    common = best_threshold(probabilities, truth)
    thresholds = np.full(truth.shape[1], common)
    known = np.flatnonzero(truth.any(0))
    unknown = np.setdiff1d(np.arange(truth.shape[1]), known)
    cuts = [_cuts(probabilities[:, label], truth[:, label]) for label in known]
    fixed = truth.sum() + (probabilities[:, unknown] > common).sum()
    ratio = -1.0
    while len(known):
        places = [_best(cut, 2 * cut.right - max(ratio, 0.0) * cut.said) for cut in cuts]
        right = sum(int(cut.right[place]) for cut, place in zip(cuts, places, strict=True))
        said = sum(int(cut.said[place]) for cut, place in zip(cuts, places, strict=True))
        found = 2 * right / (said + fixed)
        if found <= ratio:
            break
        ratio = found
        thresholds[known] = [cut.thresholds[place] for cut, place in zip(cuts, places, strict=True)]
    return thresholds


def _cuts(probabilities: Float[np.ndarray, " rows"], truth: Bool[np.ndarray, " rows"]) -> _Cuts:
    order = np.argsort(-probabilities, kind="stable")
    ordered = np.concatenate([[1.0], probabilities[order].astype(np.float64), [0.0]])
    upper, lower = ordered[:-1], ordered[1:]
    middle = (upper + lower) / 2
    # Between neighbouring floats there is no middle, and "above" must leave the lower one out.
    thresholds = np.where(middle < upper, middle, lower)
    right = np.concatenate([[0], np.cumsum(truth[order])])
    possible = lower < upper  # equal probabilities cannot be parted
    possible[0] = True
    return _Cuts(thresholds[possible], np.flatnonzero(possible), right[possible])


def _best(cuts: _Cuts, score: Float[np.ndarray, " cuts"]) -> int:
    highest = np.flatnonzero(score >= score.max() - 1e-12)
    return int(highest[np.argmin(np.abs(cuts.thresholds[highest] - 0.5))])
