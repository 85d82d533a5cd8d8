"""One class for each text or pair of texts."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxptft import data, models, objectives
from jaxptft.recipes.metrics.classification import classification_metrics, classification_report
from jaxptft.recipes.report import Report
from jaxptft.recipes.tasks.contract import Predictions
from jaxptft.recipes.tasks.settings import Columns
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
        columns = columns_of(config.columns)
        sources = data.read_training_data(
            config.train, config.eval, columns=columns, seed=config.seed, on_bad_row=config.on_bad_row
        )
        self.names: tuple[str, ...] = sources.train.names
        self.classes = len(self.names)
        tables = {"train": sources.train, "eval": sources.evaluation}
        if config.test is not None:
            tables["test"] = data.read_table(
                config.test,
                columns=columns,
                names=self.names,
                on_bad_row=config.on_bad_row,
                split=data.pick_split(config.test, "test"),
            )
        self.labels = {split: _labels(table) for split, table in tables.items()}
        self.batches, self.facts = batch_splits(
            config,
            tables,
            tokenizer=tokenizer,
            devices=devices,
            origins={"eval": sources.origin},
            options=self._batch_options(config),
            say=say,
        )
        say(f"classes: {', '.join(self.names)}")
        self._smoothing, self._weights = config.label_smoothing, self._class_weights(config)

    def _batch_options(self, config: "finetune.Config") -> dict[str, dict[str, Any]]:
        options: dict[str, dict[str, Any]] = {
            split: {"labels": labels, "classes": self.classes} for split, labels in self.labels.items()
        }
        if config.sampling == "balanced":
            options["train"]["weights"] = data.balanced_weights(self.labels["train"])
        return options

    def _class_weights(self, config: "finetune.Config") -> list[float] | None:
        if config.weights_by_class:
            if config.class_weights != "none":
                raise ValueError("both class_weights and weights_by_class are given; give one")
            if unknown := sorted(set(config.weights_by_class) - set(self.names)):
                raise ValueError(f"weights_by_class names {unknown[0]!r}; expected classes: {', '.join(self.names)}")
            return [config.weights_by_class.get(name, 1.0) for name in self.names]
        if config.class_weights == "none":
            return None
        counts = np.bincount(self.labels["train"], minlength=self.classes)
        return [float(counts.sum() / (len(counts) * max(count, 1))) for count in counts]

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


def columns_of(columns: Columns, id: str | None = None) -> data.Columns:
    return data.Columns(columns.text, columns.pair, columns.label, id=id)


def row_namer(table: data.Table) -> Callable[[int], str]:
    """Words for an example's number: its place in the source."""
    return lambda index: f"{table.source}, row {table.rows[index]}"


def _labels(table: data.Table) -> np.ndarray:
    assert table.labels is not None
    return table.labels


def logits(
    opened: "Opened",
    table: data.Table,
    *,
    batch_size: int = 64,
    max_length: int | None = None,
    say: Say = print,
) -> np.ndarray:
    """The logits of each row [rows, classes], in the order of the rows."""
    model = opened.model("classification", classes=len(opened.names))
    batches = opened.batches(table, batch_size=batch_size, max_length=max_length, say=say)
    found = opened.predictions(objectives.classification(model), batches, name_row=row_namer(table))
    return found["logits"]


def predict(opened: "Opened", request: "prediction.Config", *, say: Say) -> Iterator[dict[str, Any]]:
    """`row` (its line or number in the source), the value of the id column where one is named, `label`, and
    `probabilities` by class."""
    from scipy.special import softmax

    table = data.read_table(
        request.data,
        columns=columns_of(request.columns, request.id),
        labelled=False,
        on_bad_row=request.on_bad_row,
        split=data.pick_split(request.data, request.split),
    )
    found = logits(opened, table, batch_size=request.batch_size, max_length=request.max_length, say=say)
    probabilities = softmax(found.astype("float64"), axis=-1)
    if table.report.skipped:
        say(f"{table.report.skipped} bad rows skipped")
    keys = table.keys or [None] * len(table)
    for row, key, values in zip(table.rows.tolist(), keys, probabilities, strict=True):
        by_name = {name: round(float(p), 6) for name, p in zip(opened.names, values, strict=True)}
        line = {"row": row} | ({} if key is None else {"id": key})
        yield line | {"label": opened.names[int(values.argmax())], "probabilities": by_name}


def evaluate(opened: "Opened", request: "evaluation.Config", *, say: Say) -> Report:
    """Accuracy, F1 and the confusion matrix; each row counts exactly once."""
    table = data.read_table(
        request.data,
        columns=columns_of(request.columns),
        names=opened.names,
        on_bad_row=request.on_bad_row,
        split=data.pick_split(request.data, request.split),
    )
    found = logits(opened, table, batch_size=request.batch_size, max_length=request.max_length, say=say)
    report = classification_report(found, _labels(table), opened.names)
    skipped = f", {table.report.skipped} skipped" if table.report.skipped else ""
    say(f"{len(table)} rows from {table.source}{skipped}")
    return report
