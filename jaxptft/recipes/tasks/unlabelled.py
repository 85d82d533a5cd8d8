"""Classification whose training rows have no labels: something else teaches, and labelled rows judge."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxptft import data, objectives
from jaxptft.recipes.metrics.classification import classification_metrics, classification_report
from jaxptft.recipes.report import Report
from jaxptft.recipes.tasks.contract import Predictions
from jaxptft.recipes.tasks.labelled_rows import columns_of
from jaxptft.recipes.tasks.options import refuse_unused
from jaxptft.recipes.tasks.splits import batch_splits
from jaxptft.recipes.training import Batches

if TYPE_CHECKING:
    from jaxptft.recipes import finetune

TEXT = (".txt", ".text", ".gz")


class Unlabelled:
    """Rows or lines of text to learn on, rows with one class each to judge by; see `contract.Task`."""

    def __init__(
        self,
        config: "finetune.Config",
        *,
        tokenizer: Any,
        devices: int,
        names: Sequence[str],
        say: Callable[[str], None],
    ):
        self.model_task = "classification"
        self.head: str | None = "classifier"
        self.fields: dict[str, Any] = {"problem_type": "single_label_classification"}
        self.monitors = {
            "accuracy": ("classification/accuracy", True),
            "macro_f1": ("classification/macro_f1", True),
            "loss": ("classification/loss", False),
        }
        refuse_unused(config, "classification")
        self.names: tuple[str, ...] | None = tuple(names)
        self.classes: int | None = len(names)
        tables = {"train": _read_training(config)}
        for split, source in (("eval", config.eval), ("test", config.test)):
            if source is not None:
                tables[split] = data.read_table(
                    source,
                    columns=columns_of(config.columns),
                    names=names,
                    on_bad_row=config.on_bad_row,
                    split=data.pick_split(source, "test" if split == "test" else None),
                )
        self.labels = {split: table.labels for split, table in tables.items() if table.labels is not None}
        self.batches: dict[str, Batches] = {}
        batches, self.facts = batch_splits(
            config,
            tables,
            tokenizer=tokenizer,
            devices=devices,
            origins={},
            options={
                split: {"labels": self.labels[split], "classes": len(names)} if split in self.labels else {}
                for split in tables
            },
            say=say,
        )
        self.batches.update(batches)
        say(f"classes: {', '.join(names)}; the training rows are unlabelled")

    def objective(self, model: objectives.Model) -> objectives.Objective:
        """Nothing is learnt of a batch without labels."""
        judged = objectives.classification(model)

        def loss(params, batch, context):
            return judged.loss(params, batch, context) if "label" in batch else ({}, ({}, context.state))

        return judged._replace(loss=loss)

    def metrics(self, predictions: Predictions, split: str) -> dict[str, float]:
        return classification_metrics(predictions["logits"], np.asarray(self.labels[split]))

    def settle(self, predictions: Predictions) -> dict[str, Any]:
        return {}

    def report(self, predictions: Predictions, split: str, settled: Mapping[str, Any]) -> Report:
        return classification_report(predictions["logits"], np.asarray(self.labels[split]), self.names or ())


def _read_training(config: "finetune.Config") -> data.Table:
    """The texts of a table, or the lines of text files."""
    if Path(config.train).suffix in TEXT:
        skip: Any = "skip" if config.on_bad_row == "skip" else "error"
        lines = list(data.read_corpus(config.train, documents="line", on_bad_document=skip))
        return data.make_table(lines, source=config.train, on_bad_row=config.on_bad_row)
    return data.read_table(
        config.train,
        columns=columns_of(config.columns),
        labelled=False,
        on_bad_row=config.on_bad_row,
        split=data.pick_split(config.train, "train"),
    )
