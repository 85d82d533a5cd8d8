"""How good a classifier is: scikit-learn's numbers, its report as text, and pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Report(NamedTuple):
    """Numbers and text of one evaluation."""

    metrics: dict[str, float]
    text: str
    confusion: Int[np.ndarray, "classes classes"]  # rows: truth, columns: prediction
    names: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics, "confusion": self.confusion.tolist(), "labels": list(self.names)}


def classification_metrics(
    logits: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"]
) -> dict[str, float]:
    """Accuracy and macro F1 as `classification/accuracy` and `classification/macro_f1`, from scikit-learn."""
    from sklearn.metrics import accuracy_score, f1_score

    predicted = logits.argmax(-1)
    options: dict[str, Any] = {"labels": range(logits.shape[-1]), "average": "macro", "zero_division": 0}
    return {
        "classification/accuracy": float(accuracy_score(labels, predicted)),
        "classification/macro_f1": float(f1_score(labels, predicted, **options)),
    }


def classification_report(
    logits: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"], names: Sequence[str]
) -> Report:
    """scikit-learn's classification report and confusion matrix over all classes, also those that no row has."""
    from sklearn.metrics import classification_report as sklearn_report
    from sklearn.metrics import confusion_matrix

    predicted, classes = logits.argmax(-1), range(len(names))
    options: dict[str, Any] = {"labels": classes, "target_names": list(names), "digits": 4, "zero_division": 0}
    text = sklearn_report(labels, predicted, **options)
    confusion = confusion_matrix(labels, predicted, labels=classes)
    return Report(classification_metrics(logits, labels), str(text), confusion, tuple(names))


def confusion_text(report: Report) -> str:
    """The confusion matrix as aligned text, truth in rows."""
    width = max(len(name) for name in [*report.names, *map(str, report.confusion.ravel())]) + 2
    header = "truth \\ predicted".ljust(width + 4) + "".join(name.rjust(width) for name in report.names)
    rows = (
        name.ljust(max(width + 4, 17)) + "".join(str(count).rjust(width) for count in counts)
        for name, counts in zip(report.names, report.confusion, strict=True)
    )
    return "\n".join([header, *rows])


def save_report(folder: Path, reports: Mapping[str, Report], facts: Mapping[str, Any]) -> None:
    """Write report.json, report.txt, and a confusion matrix for each split."""
    body = {**facts, **{split: report.to_dict() for split, report in reports.items()}}
    (folder / "report.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    parts = (f"{split}\n\n{report.text}\n{confusion_text(report)}\n" for split, report in reports.items())
    (folder / "report.txt").write_text("\n".join(parts), encoding="utf-8")
    for split, report in reports.items():
        plot_confusion(folder / f"confusion_{split}.png", report)


def plot_confusion(path: Path, report: Report) -> None:
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    # Hundreds of classes would need more pixels than a picture may have: from some number on, colours must do.
    side, legible = min(3.0 + 0.5 * len(report.names), 20.0), len(report.names) <= 34
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(report.confusion, display_labels=report.names if legible else None)
    display.plot(ax=axes, include_values=legible, colorbar=False, cmap="Blues", xticks_rotation=45)  # pyright: ignore[reportArgumentType]
    if legible:
        for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
            text.set_parse_math(False)  # a class may be called "$\\x$"
    else:
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=150)


def plot_history(path: Path, lines: Sequence[Mapping[str, Any]], monitor: str) -> None:
    """Training loss by step, and the monitored metric of each evaluation beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    loss, metric = figure.subplots(1, 2)
    train = [(line["step"], line["loss"]) for line in lines if line["kind"] == "train" and "loss" in line]
    evaluation = [(line["step"], line[monitor]) for line in lines if line["kind"] == "evaluation" and monitor in line]
    for axes, points, label in ((loss, train, "training loss"), (metric, evaluation, monitor)):
        if points:
            axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 20 else None, markersize=3)
        axes.set_xlabel("optimizer step")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
