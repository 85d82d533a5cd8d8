"""Any number of labels for each text or pair of texts."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxptft import data, models, objectives
from jaxptft.recipes.metrics.multi_label import (
    multi_label_metrics,
    multi_label_report,
    probabilities_of,
    settle_thresholds,
    thresholds_of,
)
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
from jaxptft.recipes.tasks.options import chosen_weights, refuse_unused
from jaxptft.recipes.tasks.settings import MultiLabel
from jaxptft.recipes.tasks.splits import batch_splits

if TYPE_CHECKING:
    from jaxptft.recipes import evaluate as evaluation
    from jaxptft.recipes import finetune
    from jaxptft.recipes import predict as prediction
    from jaxptft.recipes.inference import Opened

Say = Callable[[str], None]


class MultiLabelTask:
    """Rows with any number of labels; see `contract.Task`.

    While the model learns, its metrics are those at the thresholds that are best for what it predicts: what it would
    come to if it were kept.
    """

    def __init__(self, config: "finetune.Config", *, tokenizer: Any, devices: int, say: Say):
        self.model_task, self.head = "classification", "classifier"
        self.fields: dict[str, Any] = {"problem_type": "multi_label_classification"}
        self.monitors = {
            "micro_f1": ("multi_label/micro_f1", True),
            "macro_f1": ("multi_label/macro_f1", True),
            "subset_accuracy": ("multi_label/subset_accuracy", True),
            "loss": ("multi_label/loss", False),
        }
        refuse_unused(config, "multi_label")
        tables, origin = read_tables(config, target_of(config.labels))
        self.names: tuple[str, ...] = tables["train"].names
        self.classes = len(self.names)
        self.truth = {split: answers_of(table) for split, table in tables.items()}
        options: dict[str, dict[str, Any]] = {split: {"targets": truth} for split, truth in self.truth.items()}
        options["train"] |= training_options(config, self.truth["train"])
        self.batches, self.facts = batch_splits(
            config,
            tables,
            tokenizer=tokenizer,
            devices=devices,
            origins={"eval": origin},
            options=options,
            say=say,
        )
        say(f"labels: {', '.join(self.names)}; {self.truth['train'].sum(1).mean():.2f} a row")
        self._each = config.labels.threshold == "each"
        self._weights = self._positive_weights(config)

    def _positive_weights(self, config: "finetune.Config") -> list[float] | None:
        """Given by label, or balanced: as if half of the training rows had each label, of those that some rows have and
        others have not."""
        given = chosen_weights(config, self.names, "labels")
        if given is not None or config.class_weights == "none":
            return given
        rows, having = len(self.truth["train"]), self.truth["train"].sum(0).tolist()
        return [(rows - count) / count if 0 < count < rows else 1.0 for count in having]

    def objective(self, model: models.Model) -> objectives.Objective:
        return objectives.multi_label(model, positive_weights=self._weights)

    def metrics(self, predictions: Predictions, split: str) -> dict[str, float]:
        logits, truth = predictions["logits"], self.truth[split]
        settled = settle_thresholds(logits, truth, self.names, each=self._each)
        return multi_label_metrics(logits, truth, thresholds_of(settled, self.names))

    def settle(self, predictions: Predictions) -> dict[str, Any]:
        return settle_thresholds(predictions["logits"], self.truth["eval"], self.names, each=self._each)

    def report(self, predictions: Predictions, split: str, settled: Mapping[str, Any]) -> Report:
        return multi_label_report(predictions["logits"], self.truth[split], self.names, settled)


def read(
    config: "finetune.Config",
    *,
    tokenizer: Any,
    architecture: Any,
    devices: int,
    checkpoint_names: list[str] | None,
    say: Say,
) -> MultiLabelTask:
    """Read, check and tokenize the rows of a fine-tuning."""
    return MultiLabelTask(config, tokenizer=tokenizer, devices=devices, say=say)


def target_of(labels: MultiLabel) -> data.LabelSet:
    """How the labels of a row are read."""
    return data.LabelSet(columns=labels.columns, delimiter=labels.delimiter)


def _check_labels(opened: "Opened") -> None:
    if len(opened.names) < 2:
        raise ValueError(f"{opened.source} has {len(opened.names)} label; multi_label needs two")


def _logits(opened: "Opened", table: data.Table, request: Any, say: Say) -> np.ndarray:
    _check_labels(opened)
    options: dict[str, Any] = {"batch_size": request.batch_size, "max_length": request.max_length, "say": say}
    return logits_of(opened, table, objectives.multi_label, classes=len(opened.names), **options)


def _settled(opened: "Opened", request: Any) -> Mapping[str, Any]:
    """The model's thresholds, or the one that is asked for."""
    asked = request.settled.threshold
    if asked is None:
        return opened.settled
    if not 0 <= asked <= 1:
        raise ValueError(f"settled.threshold is {asked}; multi_label has probabilities above it: give one from 0 to 1")
    return {"threshold": asked}


def answering(opened: "Opened", request: "prediction.Config") -> Answering:
    """`labels` (those whose probability is above the model's threshold), and `probabilities` by label."""
    _check_labels(opened)
    thresholds = thresholds_of(_settled(opened, request), opened.names)

    def lines(found: np.ndarray) -> Iterator[dict[str, Any]]:
        for values in probabilities_of(found):
            applying = [name for name, above in zip(opened.names, values > thresholds, strict=True) if above]
            by_name = {name: round(float(p), 6) for name, p in zip(opened.names, values, strict=True)}
            yield {"labels": applying, "probabilities": by_name}

    return text_answering(opened, request, objectives.multi_label, lines, classes=len(opened.names))


def predict(opened: "Opened", request: "prediction.Config", *, say: Say) -> Iterator[dict[str, Any]]:
    """`row` (its line or number in the source), the value of the id column where one is named, and what `answering`
    says of it."""
    return predict_texts(answering(opened, request), request, say=say)


def evaluate(opened: "Opened", request: "evaluation.Config", *, say: Say) -> Report:
    """F1 at the model's own thresholds, or the one that is asked for; each row counts exactly once."""
    settled = _settled(opened, request)
    table = read_asked(request, target=target_of(request.labels), names=opened.names)
    logits = _logits(opened, table, request, say)
    say_rows(table, say)
    return multi_label_report(logits, answers_of(table), opened.names, settled)
