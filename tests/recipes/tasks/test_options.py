"""Values that a task has no use for, and what classes weigh."""

from typing import get_args

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from jaxptft.recipes import evaluate
from jaxptft.recipes.finetune import Config
from jaxptft.recipes.tasks import IMAGE_TASKS, TaskName, module_of
from jaxptft.recipes.tasks.options import _OF_TASKS, balanced_classes, chosen_weights, refuse_unused

TASKS = get_args(TaskName)


def config(**changes):
    return Config(model="m", train="t", out="o", **changes)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_refuses_what_is_of_others_before_it_reads(task):
    role = "text" if task == "response" else "prompt"
    source = "folder" if task in IMAGE_TASKS else "tokenizer"
    names = {source: None, "architecture": None, "devices": 1, "checkpoint_names": None}
    with pytest.raises(ValueError, match=f"columns.{role} is 'x', and {task} has no use for it; leave it out"):
        module_of(task).read(config(task=task, columns={role: "x"}), **names, say=print)
    refuse_unused(config(task=task), task)  # nothing was asked for


@pytest.mark.parametrize(
    "task, changes, expected",
    [
        ("response", {"augment": {"swap": 0.5}}, "augment is swap=0.5, and response has no use for it"),
        ("response", {"class_weights": "balanced"}, "class_weights is 'balanced', and response has no use for it"),
        ("classification", {"answers": {"n_best": 3}}, "answers is n_best=3, and classification has no use for it"),
        ("multi_label", {"label_smoothing": 0.1}, "label_smoothing is 0.1, and multi_label has no use for it"),
        ("question_answering", {"tags": {"scheme": "IOB2"}}, "tags is scheme='IOB2', and question_answering has"),
    ],
)
def test_options(task, changes, expected):
    with pytest.raises(ValueError, match=expected):
        refuse_unused(config(**changes), task)


def test_evaluation_refuses_what_it_has():
    refuse_unused(evaluate.Config(model="m", data="d"), "response")
    with pytest.raises(ValueError, match="tags is scheme='IOB1', and classification has no use for it"):
        refuse_unused(evaluate.Config(model="m", data="d", tags={"scheme": "IOB1"}), "classification")


def test_every_column_is_of_some_task_and_every_task_is_known():
    roles = {f"columns.{role}" for role in type(config().columns).model_fields}
    assert roles == {key for key in _OF_TASKS if key.startswith("columns.")}
    assert {task for tasks in _OF_TASKS.values() for task in tasks} == set(TASKS)


def test_weights_are_in_the_order_of_the_names():
    assert chosen_weights(config(), ["a", "b"], "classes") is None
    assert chosen_weights(config(weights_by_class={"b": 0.5}), ["a", "b"], "classes") == [1.0, 0.5]
    with pytest.raises(ValueError, match="weights_by_class names 'c'; expected classes: a, b"):
        chosen_weights(config(weights_by_class={"c": 2.0}), ["a", "b"], "classes")
    with pytest.raises(ValueError, match=r"weights_by_class has -1\.0 for 'a'; expected 0 or more"):
        chosen_weights(config(weights_by_class={"a": -1.0}), ["a", "b"], "classes")
    with pytest.raises(ValueError, match="both class_weights and weights_by_class are given; give one"):
        chosen_weights(config(weights_by_class={"a": 2.0}, class_weights="balanced"), ["a", "b"], "classes")


def test_balanced_weights_are_scikit_learns():
    labels = np.repeat([0, 1, 2], [1, 5, 3])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced_classes(np.bincount(labels).tolist()), expected)
