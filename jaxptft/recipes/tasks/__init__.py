"""What a fine-tuning can be for: one module a task, with `read`, `predict` and `evaluate` (see `contract`)."""

import importlib
from typing import Any, Literal, get_args

TaskName = Literal[
    "classification",
    "multi_label",
    "regression",
    "token_classification",
    "question_answering",
    "multiple_choice",
    "response",
    "image_classification",
]
IMAGE_TASKS = ("image_classification",)
PACKED_TASKS = ("classification", "multi_label", "regression", "token_classification")  # whose texts can share rows
_HEADS = {
    "classification": "classifier",
    "multi_label": "classifier",
    "regression": "classifier",
    "token_classification": "token_classifier",
    "question_answering": "question_answering",
    "multiple_choice": "multiple_choice",
    "response": None,
    "image_classification": "classifier",
}


def head_of(task: str) -> str | None:
    """The key in params of the head that a task has; None for a task that is done with the backbone alone."""
    return _HEADS[task]


def module_of(task: str) -> Any:
    """The module of a task."""
    if task not in get_args(TaskName):
        raise ValueError(f"there is no task {task!r}; expected one of {', '.join(get_args(TaskName))}")
    return importlib.import_module(f"jaxptft.recipes.tasks.{task}")
