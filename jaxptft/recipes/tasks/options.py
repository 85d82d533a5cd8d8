"""Values of a Config that a task has no use for: refused, rather than read past."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxptft.recipes import evaluate, finetune, predict

_TEXTS = ("classification", "multi_label", "regression")  # tasks with one answer for a whole text, or pair of texts
_CLASSES = ("classification", "multi_label", "token_classification", "image_classification")
_SOFTMAX = ("classification", "image_classification", "token_classification", "question_answering", "multiple_choice")
_READING = (*_TEXTS, "token_classification", "question_answering", "multiple_choice", "response")
_OF_TASKS: Mapping[str, Sequence[str]] = {
    "label_smoothing": _SOFTMAX,
    "class_weights": _CLASSES,
    "weights_by_class": _CLASSES,
    "sampling": ("classification", "multi_label", "image_classification"),
    "max_length": _READING,
    "length_buckets": _READING,
    "max_new_tokens": ("response",),
    "images": ("image_classification",),
    "columns.image": ("image_classification",),
    "augment": _TEXTS,
    "labels": ("multi_label",),
    "tags": ("token_classification",),
    "answers": ("question_answering",),
    "response": ("response",),
    "settled.threshold": ("multi_label", "question_answering"),
    "columns.text": _TEXTS,
    "columns.pair": _TEXTS,
    "columns.label": (*_TEXTS, "multiple_choice", "image_classification"),
    "columns.tokens": ("token_classification",),
    "columns.tags": ("token_classification",),
    "columns.question": ("question_answering", "multiple_choice"),
    "columns.context": ("question_answering", "multiple_choice"),
    "columns.answers": ("question_answering",),
    "columns.choices": ("multiple_choice",),
    "columns.prompt": ("response",),
    "columns.response": ("response",),
}


def refuse_unused(config: "finetune.Config | evaluate.Config | predict.Config", task: str) -> None:
    """Raise ValueError where a value that only other tasks have a use for is not its default.

    The config is one of `finetune`, or of `evaluate` or `predict`, which have some of these values alone.
    """
    for key, tasks in _OF_TASKS.items():
        first, _, rest = key.partition(".")
        if task in tasks or not hasattr(config, first):
            continue
        group: Any = getattr(config, first) if rest else config
        name = rest or first
        value = getattr(group, name)
        if value != type(group).model_fields[name].get_default(call_default_factory=True):
            raise ValueError(f"{key} is {_shown(value)}, and {task} has no use for it; leave it out")


def chosen_weights(config: "finetune.Config", names: Sequence[str], kind: str) -> list[float] | None:
    """`weights_by_class` in the order of the names, which are of `kind` (classes, labels, tags); None where none are.

    Raises ValueError for a name that is none of them, a negative weight, and where `class_weights` is given too.
    """
    if not config.weights_by_class:
        return None
    if config.class_weights != "none":
        raise ValueError("both class_weights and weights_by_class are given; give one")
    if negative := [name for name, weight in config.weights_by_class.items() if weight < 0]:
        weight = config.weights_by_class[negative[0]]
        raise ValueError(f"weights_by_class has {weight} for {negative[0]!r}; expected 0 or more")
    if unknown := sorted(set(config.weights_by_class) - set(names)):
        raise ValueError(f"weights_by_class names {unknown[0]!r}; expected {kind}: {', '.join(names)}")
    return [config.weights_by_class.get(name, 1.0) for name in names]


def balanced_classes(counts: Sequence[int]) -> list[float]:
    """What each class weighs, by how often it comes, for all to weigh the same; their mean over the examples is 1.

    >>> balanced_classes([1, 3])
    [2.0, 0.6666666666666666]
    """
    return [float(sum(counts) / (len(counts) * max(count, 1))) for count in counts]


def _shown(value: Any) -> str:
    """A value, or of a group what is not as usual."""
    if not hasattr(value, "model_dump"):
        return repr(value)
    return ", ".join(f"{name}={entry!r}" for name, entry in value.model_dump(exclude_defaults=True).items())
