"""One number for each text or pair of texts."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxptft import data, models, objectives
from jaxptft.recipes.metrics.regression import regression_metrics, regression_report
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
)
from jaxptft.recipes.tasks.options import refuse_unused
from jaxptft.recipes.tasks.splits import batch_splits

if TYPE_CHECKING:
    from jaxptft.recipes import evaluate as evaluation
    from jaxptft.recipes import finetune
    from jaxptft.recipes import predict as prediction
    from jaxptft.recipes.inference import Opened

Say = Callable[[str], None]


class Regression:
    """Rows with one number each; see `contract.Task`."""

    def __init__(self, config: "finetune.Config", *, tokenizer: Any, devices: int, names: tuple[str, ...], say: Say):
        self.model_task, self.head, self.classes, self.names = "classification", "classifier", 1, names
        self.fields: dict[str, Any] = {"problem_type": "regression"}
        self.monitors = {
            "pearson": ("regression/pearson", True),
            "spearman": ("regression/spearman", True),
            "mse": ("regression/mse", False),
            "loss": ("regression/loss", False),
        }
        refuse_unused(config, "regression")
        tables, origin = read_tables(config, data.Number())
        self.targets = {split: answers_of(table) for split, table in tables.items()}
        held = self.targets["eval"]
        if config.monitor in (None, "pearson", "spearman") and np.all(held == held[0]):
            raise ValueError(
                f"every evaluation row ({origin}) has target {held[0]:g}, and correlations are undefined: "
                "give other rows, or choose --monitor mse"
            )
        self.batches, self.facts = batch_splits(
            config,
            tables,
            tokenizer=tokenizer,
            devices=devices,
            origins={"eval": origin},
            options={split: {"targets": self.targets[split]} for split in tables},
            say=say,
        )
        learnt = self.targets["train"]
        say(f"targets: {learnt.min():g} to {learnt.max():g}, mean {learnt.mean():.4g}, deviation {learnt.std():.4g}")

    def objective(self, model: models.Model) -> objectives.Objective:
        return objectives.regression(model)

    def metrics(self, predictions: Predictions, split: str) -> dict[str, float]:
        return regression_metrics(predictions["logits"][:, 0], self.targets[split])

    def settle(self, predictions: Predictions) -> dict[str, Any]:
        return {}

    def report(self, predictions: Predictions, split: str, settled: Mapping[str, Any]) -> Report:
        return regression_report(predictions["logits"][:, 0], self.targets[split])


def read(
    config: "finetune.Config",
    *,
    tokenizer: Any,
    architecture: Any,
    devices: int,
    checkpoint_names: list[str] | None,
    say: Say,
) -> Regression:
    """Read, check and tokenize the rows of a fine-tuning. A head with one output keeps its name."""
    names = tuple(checkpoint_names or ())
    names = names if len(names) == 1 else ("score",)
    return Regression(config, tokenizer=tokenizer, devices=devices, names=names, say=say)


def _scores(opened: "Opened", table: data.Table, request: Any, say: Say) -> np.ndarray:
    options: dict[str, Any] = {"batch_size": request.batch_size, "max_length": request.max_length, "say": say}
    return logits_of(opened, table, objectives.regression, classes=1, **options)[:, 0]


def answering(opened: "Opened", request: "prediction.Config") -> Answering:
    """`score`."""

    def lines(found: np.ndarray) -> Iterator[dict[str, Any]]:
        return ({"score": score} for score in found[:, 0].tolist())

    return text_answering(opened, request, objectives.regression, lines, classes=1)


def predict(opened: "Opened", request: "prediction.Config", *, say: Say) -> Iterator[dict[str, Any]]:
    """`row` (its line or number in the source), the value of the id column where one is named, and `score`."""
    return predict_texts(answering(opened, request), request, say=say)


def evaluate(opened: "Opened", request: "evaluation.Config", *, say: Say) -> Report:
    """Correlations and errors; each row counts exactly once."""
    table = read_asked(request, target=data.Number())
    predicted = _scores(opened, table, request, say)
    say_rows(table, say)
    return regression_report(predicted, answers_of(table))
