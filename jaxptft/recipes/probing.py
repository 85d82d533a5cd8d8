"""How much of a label can be read off frozen features: a linear classifier on them, and their nearest neighbours.

The linear probe is the usual measure of a representation (Alain and Bengio 2016, arXiv:1610.01644); nearest neighbours,
weighted as in Wu et al. 2018 (arXiv:1805.01978, section 3.4), have nothing to tune and nothing to train.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxptft.data import draw_by_class

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # inverse of the L2 penalty, scikit-learn's C
_BLOCK = 1024  # queries whose similarities are held at once


class Features(NamedTuple):
    """One vector a row, and the row's class."""

    vectors: Float[np.ndarray, "rows width"]
    labels: Int[np.ndarray, " rows"]


class LinearProbe(NamedTuple):
    """Accuracy of the linear classifier on the test rows, and the strength chosen for it."""

    accuracy: float
    strength: float


def linear_probe(
    train: Features,
    test: Features,
    *,
    validation: Features | None = None,
    strengths: Sequence[float] = STRENGTHS,
    iterations: int = 300,
    seed: int = 0,
) -> LinearProbe:
    """Multinomial logistic regression on standardised features, its penalty chosen on `validation`.

    Without validation rows a fifth of the training rows, of every class alike, serve for the choice, and the
    classifier is then fitted to all of them.

    Raises ValueError for features of different widths or that are not finite, fewer than two classes, and no strengths.
    """
    check(train, test, *([] if validation is None else [validation]))
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths are {tuple(strengths)}; expected one positive number or more")
    if len(np.unique(train.labels)) < 2:
        raise ValueError("the training rows have one class; a probe tells at least two apart")
    best = strengths[0]
    if len(strengths) > 1:
        fitted, judged = (train, validation) if validation is not None else _fifth(train, seed)
        scores = [_fit(fitted, strength, iterations).score(*judged) for strength in strengths]
        best = strengths[int(np.argmax(scores))]
    return LinearProbe(float(_fit(train, best, iterations).score(*test)), best)


def nearest_neighbours(train: Features, test: Features, *, k: int = 20, temperature: float = 0.07) -> float:
    """Accuracy on the test rows of the vote of each one's `k` most similar training rows by cosine.

    A neighbour of similarity s votes with exp(s / temperature). With fewer than k training rows all of them vote.

    Raises ValueError for features of different widths or that are not finite, and k or a temperature not above 0.
    """
    check(train, test)
    if k < 1 or not temperature > 0:
        raise ValueError(f"k is {k} and temperature {temperature}; expected both above 0")
    k, classes = min(k, len(train.labels)), int(train.labels.max()) + 1
    known, asked = _unit(train.vectors), _unit(test.vectors)
    right = 0
    for start in range(0, len(asked), _BLOCK):
        similarity = asked[start : start + _BLOCK] @ known.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(similarity, nearest, 1) - 1.0) / temperature)  # at most 1, so no overflow
        votes = np.zeros((len(nearest), classes))
        np.add.at(votes, (np.arange(len(nearest))[:, None], train.labels[nearest]), weight)
        right += int((votes.argmax(1) == test.labels[start : start + _BLOCK]).sum())
    return right / len(asked)


def draw(features: Features, a_class: int, seed: int) -> Features:
    """So many rows of every class, drawn by `seed`. Raises ValueError, naming the class, where one has fewer."""
    chosen = np.sort(draw_by_class(features.labels, a_class, seed=seed))
    return Features(features.vectors[chosen], features.labels[chosen])


def check(*parts: Features) -> None:
    """ValueError where the vectors are not finite, not of one width, or not one for every label."""
    widths = {part.vectors.shape[1:] for part in parts}
    if len(widths) > 1 or any(part.vectors.ndim != 2 for part in parts):
        raise ValueError(f"features must be [rows, width] of one width, got {[p.vectors.shape for p in parts]}")
    for part in parts:
        if len(part.vectors) != len(part.labels) or not len(part.labels):
            raise ValueError(f"{len(part.vectors)} vectors and {len(part.labels)} labels; expected one each a row")
        if not np.isfinite(part.vectors).all():
            raise ValueError("the features hold NaN or infinity; the model's weights are broken")


def _fifth(train: Features, seed: int) -> tuple[Features, Features]:
    from sklearn.model_selection import train_test_split

    smallest = np.unique(train.labels, return_counts=True)[1].min()
    alike = train.labels if smallest > 1 else None
    share = max(0.2, len(np.unique(train.labels)) / len(train.labels)) if alike is not None else 0.2
    rows = np.arange(len(train.labels))
    if share >= 0.5 or len(rows) < 5:  # too few rows to set any aside: each is judged by what it was fitted to
        return train, train
    kept, judged = train_test_split(rows, test_size=share, stratify=alike, random_state=seed)
    if len(np.unique(train.labels[kept])) < 2:
        return train, train
    return Features(train.vectors[kept], train.labels[kept]), Features(train.vectors[judged], train.labels[judged])


def _fit(train: Features, strength: float, iterations: int):
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what is left of the way changes no third digit
        return classifier.fit(*train)


def _unit(vectors: Float[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows width"]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
