"""Sampling weights with which every class is seen equally often."""

import numpy as np
from jaxtyping import Bool, Float, Int


def balanced_weights(
    labels: Int[np.ndarray, " rows"] | Bool[np.ndarray, "rows labels"],
) -> Float[np.ndarray, " rows"]:
    """For each row, one over the number of rows with its class.

    Rows of label sets weigh as their rarest label; those without any label count as a class of their own.

    Raises:
      ValueError: the labels are numbers, which have no classes.

    >>> balanced_weights(np.array([0, 0, 0, 1])).round(3).tolist()
    [0.333, 0.333, 0.333, 1.0]
    >>> balanced_weights(np.array([[True, False], [True, True], [False, False]])).tolist()
    [0.5, 1.0, 1.0]
    """
    labels = np.asarray(labels)
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        return 1.0 / np.bincount(labels)[labels]
    if labels.ndim == 2 and labels.dtype.kind == "b":
        each = 1.0 / np.maximum(labels.sum(0), 1)
        none = ~labels.any(1)
        rarest = np.max(np.where(labels, each, 0.0), axis=1, initial=0.0)
        return np.where(none, 1.0 / max(int(none.sum()), 1), rarest)
    raise ValueError(f"labels are {labels.dtype} of shape {labels.shape}; balancing needs classes or label sets")
