"""A few rows of every class, for learning from few labels."""

import numpy as np
from jaxtyping import Int

Labels = Int[np.ndarray, " rows"]


def draw_by_class(labels: Labels, a_class: int, *, seed: int) -> Int[np.ndarray, " drawn"]:
    """The positions of so many rows of every class, class by class, drawn without replacement.

    Raises ValueError, naming the class, where one has fewer.

    >>> labels = np.array([0, 1, 0, 1, 1])
    >>> labels[draw_by_class(labels, 2, seed=0)].tolist()
    [0, 0, 1, 1]
    """
    check_enough(labels, a_class)
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.choice(np.flatnonzero(labels == label), a_class, replace=False) for label in np.unique(labels)]
    )


def check_enough(labels: Labels, a_class: int) -> None:
    """ValueError, naming the class, where one has fewer rows than are asked for."""
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count < a_class:
            raise ValueError(f"class {label} has {count} training rows, and {a_class} are asked for; ask fewer")
