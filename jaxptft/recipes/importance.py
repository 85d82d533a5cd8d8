"""Importance weighting: source rows that look like the target's count more.

    w(x) = p(target | x) / p(source | x) * n_source / n_target

is the ratio of the target's density to the source's (Shimodaira 2000, section 2; Bickel et al. 2009, JMLR 10, section
4), with the probabilities of a logistic regression on frozen features. It corrects a shift of the texts alone, and only
where the source has texts like the target's: see `effective_rows`.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxptft import objectives, train
from jaxptft.data.cache import fingerprint


class Importance(NamedTuple):
    """What each source row counts, and how far that can be trusted."""

    weights: Float[np.ndarray, " rows"]  # float32, their mean 1
    separation: float  # area under the ROC curve of the domain classifier; 0.5: the domains look alike
    effective_rows: float  # (sum w)^2 / sum w^2; few mean that the domains hardly overlap


def importance_weights(
    source: Float[np.ndarray, "source_rows width"],
    target: Float[np.ndarray, "target_rows width"],
    *,
    clip: float = 10.0,
    strength: float = 1.0,
    folds: int = 5,
    seed: int = 0,
) -> Importance:
    """The weights of the source's rows, clipped from above and then divided by their mean.

    Each row is judged by a classifier that did not learn from it (one of `folds`): on its own rows, one of many
    features would tell the domains apart whether they differ or not. `strength` is the inverse of the L2 penalty on the
    standardised features (scikit-learn's C).

    Raises ValueError for features of different widths or that are not finite, a `clip` below 1, and fewer rows than
    `folds` in a domain.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(f"features must be [rows, width] of one width, got shapes {source.shape} and {target.shape}")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("the features hold NaN or infinity; the model's weights are broken")
    if clip < 1:
        raise ValueError(f"clip is {clip}; expected at least 1, the mean of the weights")
    if folds < 2 or min(len(source), len(target)) < folds:
        raise ValueError(
            f"{len(source)} source and {len(target)} target rows do not make {folds} folds; give more rows, or from 2 "
            "folds on fewer"
        )
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = np.concatenate([source, target])
    is_target = np.arange(len(rows)) >= len(source)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    log_odds = cross_val_predict(classifier, rows, is_target, cv=parts, method="decision_function")
    log_ratio = log_odds[: len(source)] + np.log(len(source) / len(target))
    weights = np.exp(np.minimum(log_ratio, np.log(clip)))
    weights /= weights.mean()
    return Importance(
        weights.astype(np.float32),
        separation=float(roc_auc_score(is_target, log_odds)),
        effective_rows=float(weights.sum() ** 2 / np.square(weights).sum()),
    )


def features_of_rows(
    features: objectives.Model,
    params: objectives.Params,
    batches: Iterable[objectives.Batch],
    *,
    place: Callable[[objectives.Batch], objectives.Batch] = lambda batch: batch,
) -> Float[np.ndarray, "rows width"]:
    """What `features` (`models.pooled(config)`) gives for each valid row, dropout off, in the order of the ids.

    `batches` are those of one epoch, each row once; `place` puts one on the devices. Raises as `train.evaluate` does.
    """

    def predict(params, batch, context):
        return {"features": features.apply(params, batch, rng=None, train=False)}

    reading = objectives.lift(lambda params, batch, context: {}, init=features.init, predict=predict)
    evaluator = train.make_evaluator(reading, labelled=False)
    return train.evaluate(evaluator, params, {}, None, batches, place=place).predictions["features"]


class Weighted:
    """Batches with `weight` float32 [batch], what each row counts; `weights` are in the order of the rows' ids."""

    def __init__(self, batches: Any, weights: Float[np.ndarray, " rows"]):
        weights = np.asarray(weights, np.float32)
        if weights.shape != (len(batches.tokenized),):
            raise ValueError(f"weights have shape {weights.shape} for {len(batches.tokenized)} rows; give one a row")
        self._batches, self._weights = batches, weights
        self.tokenized, self.steps_per_epoch = batches.tokenized, batches.steps_per_epoch

    @property
    def content(self) -> str:
        """SHA-256 of the rows alone."""
        return self._batches.content

    @property
    def fingerprint(self) -> str:
        return fingerprint(["weighted 1", self._batches.fingerprint, self._weights.astype("<f4").tobytes()])

    def batch_at(self, step: int) -> dict[str, Any]:
        batch = self._batches.batch_at(step)
        ids = batch["ids"]
        return {**batch, "weight": np.where(ids >= 0, self._weights[np.maximum(ids, 0)], np.float32(0))}
