"""What GLUE's tasks are: their columns, their kind, and how each is scored (Wang et al. 2019, arXiv:1804.07461)."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

_POSITIVE = ("1", "equivalent", "duplicate")  # what the class is called that F1 is of


class GlueTask(NamedTuple):
    """What a task's columns are called, and what it is scored by."""

    text: str
    pair: str | None
    labels: tuple[str, ...]  # the hub's name for the column, and those of the benchmark's own files
    scores: tuple[str, ...]
    kind: Literal["classification", "regression"] = "classification"
    splits: tuple[str, ...] = ("validation",)


TASKS = {
    "cola": GlueTask("sentence", None, ("label",), ("matthews",)),
    "sst2": GlueTask("sentence", None, ("label",), ("accuracy",)),
    "mrpc": GlueTask("sentence1", "sentence2", ("label",), ("accuracy", "f1")),
    "stsb": GlueTask("sentence1", "sentence2", ("label", "score"), ("pearson", "spearman"), "regression"),
    "qqp": GlueTask("question1", "question2", ("label", "is_duplicate"), ("accuracy", "f1")),
    "mnli": GlueTask(
        "premise",
        "hypothesis",
        ("label", "gold_label"),
        ("accuracy",),
        splits=("validation_matched", "validation_mismatched"),
    ),
    "qnli": GlueTask("question", "sentence", ("label",), ("accuracy",)),
    "rte": GlueTask("sentence1", "sentence2", ("label",), ("accuracy",)),
    "wnli": GlueTask("sentence1", "sentence2", ("label",), ("accuracy",)),
}


def score_of(score: str, report: Mapping[str, Any]) -> float:
    """One score of a split, by scikit-learn from the confusion matrix where the report has only that."""
    import numpy as np
    from sklearn.metrics import f1_score, matthews_corrcoef

    for kind in ("classification", "regression"):
        if f"{kind}/{score}" in report["metrics"]:
            return float(report["metrics"][f"{kind}/{score}"])
    if "confusion" not in report:
        return 0.0  # a correlation that is undefined: every prediction is one number
    truth, said = np.indices((len(report["labels"]),) * 2).reshape(2, -1)
    counts = np.asarray(report["confusion"]).ravel()
    if score == "matthews":
        return float(matthews_corrcoef(truth, said, sample_weight=counts))
    positive = next((place for place, label in enumerate(report["labels"]) if label in _POSITIVE), 1)
    return float(np.asarray(f1_score(truth == positive, said == positive, sample_weight=counts, zero_division=0)))  # pyright: ignore[reportArgumentType]
