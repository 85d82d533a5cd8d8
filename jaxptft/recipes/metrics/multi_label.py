"""How good label sets are: micro and macro F1, and how many rows are right in every label, by scikit-learn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from jaxptft.recipes.metrics.thresholds import best_threshold, best_thresholds
from jaxptft.recipes.report import Report


def probabilities_of(logits: Float[np.ndarray, "rows labels"]) -> Float[np.ndarray, "rows labels"]:
    """Of each label, in float64."""
    from scipy.special import expit

    return expit(np.asarray(logits, np.float64))


def settle_thresholds(
    logits: Float[np.ndarray, "rows labels"],
    truth: Bool[np.ndarray, "rows labels"],
    names: Sequence[str],
    *,
    each: bool,
) -> dict[str, Any]:
    """The thresholds with the highest micro F1: {"threshold": t}, or with `each` {"thresholds": {name: t}}."""
    probabilities = probabilities_of(logits)
    if not each:
        return {"threshold": best_threshold(probabilities, truth)}
    return {"thresholds": dict(zip(names, best_thresholds(probabilities, truth).tolist(), strict=True))}


def thresholds_of(settled: Mapping[str, Any], names: Sequence[str]) -> Float[np.ndarray, " labels"]:
    """What `settle_thresholds` found, in the order of the names; 1/2 where nothing was settled."""
    each = settled.get("thresholds", {})
    return np.array([each.get(name, settled.get("threshold", 0.5)) for name in names], np.float64)


def multi_label_metrics(
    logits: Float[np.ndarray, "rows labels"], truth: Bool[np.ndarray, "rows labels"], thresholds: ArrayLike
) -> dict[str, float]:
    """`multi_label/micro_f1`, `multi_label/macro_f1` (over all labels) and `multi_label/subset_accuracy`."""
    from sklearn.metrics import accuracy_score, f1_score

    said = probabilities_of(logits) > thresholds
    f1 = {average: f1_score(truth, said, average=average, zero_division=0) for average in ("micro", "macro")}  # pyright: ignore[reportArgumentType]
    return {
        "multi_label/micro_f1": float(f1["micro"]),
        "multi_label/macro_f1": float(f1["macro"]),
        "multi_label/subset_accuracy": float(accuracy_score(truth, said)),
    }


def multi_label_report(
    logits: Float[np.ndarray, "rows labels"],
    truth: Bool[np.ndarray, "rows labels"],
    names: Sequence[str],
    settled: Mapping[str, Any],
) -> Report:
    """The metrics at the settled thresholds, and scikit-learn's report for each label."""
    from sklearn.metrics import classification_report

    thresholds = thresholds_of(settled, names)
    said = probabilities_of(logits) > thresholds
    options: dict[str, Any] = {
        "target_names": list(names),
        "labels": range(len(names)),
        "digits": 4,
        "zero_division": 0,
    }
    text = classification_report(truth, said, **options)
    metrics = multi_label_metrics(logits, truth, thresholds)
    if "thresholds" in settled:
        above = "thresholds: " + ", ".join(f"{name} {t:.4f}" for name, t in zip(names, thresholds, strict=True))
    else:
        above = f"threshold: {thresholds[0]:.4f}"
    subset = f"all labels right in {metrics['multi_label/subset_accuracy']:.4f} of the rows"
    details = {"labels": list(names), "thresholds": dict(zip(names, thresholds.tolist(), strict=True))}
    return Report(metrics, f"{text}\n{subset}\n{above}", details)
