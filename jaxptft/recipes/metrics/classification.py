"""How good a classifier is: scikit-learn's numbers, its report and the confusion matrix as text and as a picture."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxptft.recipes.report import Report

_LEGIBLE = 34  # classes in a picture whose numbers and names can be read


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
    return Report(
        metrics=classification_metrics(logits, labels),
        text=f"{text}\n{confusion_text(confusion, names)}",
        details={"confusion": confusion.tolist(), "labels": list(names)},
        pictures={"confusion": partial(plot_confusion, confusion=confusion, names=tuple(names))},
    )


def confusion_text(confusion: Int[np.ndarray, "classes classes"], names: Sequence[str]) -> str:
    """The confusion matrix as aligned text, truth in rows."""
    width = max(len(name) for name in [*names, *map(str, confusion.ravel())]) + 2
    header = "truth \\ predicted".ljust(width + 4) + "".join(name.rjust(width) for name in names)
    rows = (
        name.ljust(max(width + 4, 17)) + "".join(str(count).rjust(width) for count in counts)
        for name, counts in zip(names, confusion, strict=True)
    )
    return "\n".join([header, *rows])


def plot_confusion(path: Path, *, confusion: Int[np.ndarray, "classes classes"], names: Sequence[str]) -> None:
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    # Hundreds of classes would need more pixels than a picture may have: from some number on, colours must do.
    side, legible = min(3.0 + 0.5 * len(names), 20.0), len(names) <= _LEGIBLE
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(confusion, display_labels=names if legible else None)
    display.plot(ax=axes, include_values=legible, colorbar=False, cmap="Blues", xticks_rotation=45)  # pyright: ignore[reportArgumentType]
    if legible:
        for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
            text.set_parse_math(False)  # a class may be called "$\\x$"
    else:
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=150)
