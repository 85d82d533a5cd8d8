"""One class for each text or pair of texts."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxptft import data, models, objectives
from jaxptft.recipes.metrics.classification import classification_metrics, classification_report
from jaxptft.recipes.report import Report
from jaxptft.recipes.tasks.answering import Answering
from jaxptft.recipes.tasks.contract import Predictions
from jaxptft.recipes.tasks.labelled_rows import (
    answers_of,
    logits_of,
    predict_texts,
    read_asked,
    read_tables,
    say_rows,
    text_answering,
    training_options,
)
from jaxptft.recipes.tasks.options import balanced_classes, chosen_weights, refuse_unused
from jaxptft.recipes.tasks.splits import batch_splits

if TYPE_CHECKING:
    from jaxptft.recipes import evaluate as evaluation
    from jaxptft.recipes import finetune
    from jaxptft.recipes import predict as prediction
    from jaxptft.recipes.inference import Opened

Say = Callable[[str], None]


class Classification:
    """Rows with one class each; see `contract.Task`."""

    def __init__(self, config: "finetune.Config", *, tokenizer: Any, devices: int, say: Say):
        self.model_task, self.head = "classification", "classifier"
        self.fields: dict[str, Any] = {"problem_type": "single_label_classification"}
        self.monitors = {
            "accuracy": ("classification/accuracy", True),
            "macro_f1": ("classification/macro_f1", True),
            "loss": ("classification/loss", False),
        }
        refuse_unused(config, "classification")
        tables, origin = read_tables(config, data.OneClass())
        self.names: tuple[str, ...] = tables["train"].names
        self.classes = len(self.names)
        self.labels = {split: answers_of(table) for split, table in tables.items()}
        self.batches, self.facts = batch_splits(
            config,
            tables,
            tokenizer=tokenizer,
            devices=devices,
            origins={"eval": origin},
            options=self._batch_options(config),
            say=say,
        )
        say(f"classes: {', '.join(self.names)}")
        self._smoothing, self._weights = config.label_smoothing, self._class_weights(config)

    def _batch_options(self, config: "finetune.Config") -> dict[str, dict[str, Any]]:
        options: dict[str, dict[str, Any]] = {
            split: {"labels": labels, "classes": self.classes} for split, labels in self.labels.items()
        }
        options["train"] |= training_options(config, self.labels["train"])
        return options

    def _class_weights(self, config: "finetune.Config") -> list[float] | None:
        given = chosen_weights(config, self.names, "classes")
        if given is not None or config.class_weights == "none":
            return given
        return balanced_classes(np.bincount(self.labels["train"], minlength=self.classes).tolist())

    def objective(self, model: models.Model) -> objectives.Objective:
        return objectives.classification(model, label_smoothing=self._smoothing, class_weights=self._weights)

    def metrics(self, predictions: Predictions, split: str) -> dict[str, float]:
        return classification_metrics(predictions["logits"], self.labels[split])

    def settle(self, predictions: Predictions) -> dict[str, Any]:
        return {}

    def report(self, predictions: Predictions, split: str, settled: Mapping[str, Any]) -> Report:
        return classification_report(predictions["logits"], self.labels[split], self.names)


def read(
    config: "finetune.Config",
    *,
    tokenizer: Any,
    architecture: Any,
    devices: int,
    checkpoint_names: list[str] | None,
    say: Say,
) -> Classification:
    """Read, check and tokenize the rows of a fine-tuning."""
    return Classification(config, tokenizer=tokenizer, devices=devices, say=say)


def logits(
    opened: "Opened",
    table: data.Table,
    *,
    batch_size: int = 64,
    max_length: int | None = None,
    say: Say = print,
) -> np.ndarray:
    """The logits of each row [rows, classes], in the order of the rows."""
    options: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length, "say": say}
    return logits_of(opened, table, objectives.classification, classes=len(opened.names), **options)


def answering(opened: "Opened", request: "prediction.Config") -> Answering:
    """`label`, and `probabilities` by class."""
    from scipy.special import softmax

    def lines(found: np.ndarray) -> Iterator[dict[str, Any]]:
        for values in softmax(found.astype("float64"), axis=-1):
            by_name = {name: round(float(p), 6) for name, p in zip(opened.names, values, strict=True)}
            yield {"label": opened.names[int(values.argmax())], "probabilities": by_name}

    return text_answering(opened, request, objectives.classification, lines, classes=len(opened.names))


def predict(opened: "Opened", request: "prediction.Config", *, say: Say) -> Iterator[dict[str, Any]]:
    """`row` (its line or number in the source), the value of the id column where one is named, and what `answering`
    says of it."""
    return predict_texts(answering(opened, request), request, say=say)


def evaluate(opened: "Opened", request: "evaluation.Config", *, say: Say) -> Report:
    """Accuracy, F1 and the confusion matrix; each row counts exactly once."""
    table = read_asked(request, target=data.OneClass(), names=opened.names)
    found = logits(opened, table, batch_size=request.batch_size, max_length=request.max_length, say=say)
    say_rows(table, say)
    return classification_report(found, answers_of(table), opened.names)
