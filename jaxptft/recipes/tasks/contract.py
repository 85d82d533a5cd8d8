"""What `finetune`, `predict` and `evaluate` ask of a task.

A task's module has these functions:

    read(config, *, tokenizer, architecture, devices, checkpoint_names, say) -> Task
    predict(opened, request, *, say) -> Iterator[dict]     unlabelled rows -> one JSON-able line each, in their order
    evaluate(opened, request, *, say) -> Report            labelled rows -> how good the model is on them
    answering(opened, request) -> Answering                how `predict` answers rows, and whoever serves the model

Tasks of images and of responses have no `answering`.

A task of images gets the model's `folder`, which says how images are read, in place of a tokenizer.

`devices` is what a batch must be a multiple of; `checkpoint_names` are the outputs that an imported head has, in order;
`opened` is an `inference.Opened`, `request` the Config of `predict` or `evaluate`.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from jaxptft.objectives import Model, Objective
from jaxptft.recipes.report import Report
from jaxptft.recipes.training import Batches

Predictions = Mapping[str, np.ndarray]


class Task(Protocol):
    """One fine-tuning's data, and what is made of a model's predictions on them."""

    model_task: str  # of `models.build`
    head: str | None  # its key in params; None where the model has no parameters beside the backbone
    classes: int | None  # outputs of the head; None where it has no free size
    names: tuple[str, ...] | None  # of the outputs, for config.json's id2label
    fields: dict[str, Any]  # further fields of config.json
    batches: dict[str, Batches]  # "train", "eval" and, if given, "test"
    facts: dict[str, dict[str, Any]]  # for report.json: fact -> split -> value
    monitors: dict[str, tuple[str, bool]]  # what --monitor may name -> (metric, higher is better); the first by default

    def objective(self, model: Model) -> Objective:
        """What is minimised."""
        ...

    def metrics(self, predictions: Predictions, split: str) -> dict[str, float]:
        """Numbers beyond those of the objective; predictions are in the order of the examples' ids."""
        ...

    def settle(self, predictions: Predictions) -> dict[str, Any]:
        """What the best model's predictions on the evaluation rows decide (a threshold): kept with the model."""
        ...

    def report(self, predictions: Predictions, split: str, settled: Mapping[str, Any]) -> Report:
        """How good the best model is on a split."""
        ...
