"""Values that differ between runs of one program: its arguments, where the others are a part of it.

Runs whose configs differ in these alone (and in seed, folder and test rows) compile their steps and evaluations once.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from jaxptft import train
from jaxptft.models.layers import TracedRate, rate_threshold
from jaxptft.recipes.settings import nearest

DIALS = ("learning_rate", "dropout", "l2_to_pretrained", "optimizer.weight_decay")
"""The keys of a config that are dials."""

_OWN = ("out", "seed", "test", "resume", "overwrite")  # what a run has for itself, and no program knows


class Dials(NamedTuple):
    """The dials of one run, as a step takes them."""

    learning_rate: Float[Array, ""] | np.float32
    weight_decay: Float[Array, ""] | np.float32
    l2_to_pretrained: Float[Array, ""] | np.float32
    dropout: Int[Array, ""] | np.int32  # of 2**16 draws, how many drop an element; unused where the model's own stay


class Program:
    """What runs of one program share: parts that the first of them makes.

    `beside`, where there is one, is where runs in threads of their own meet to take their steps at once.
    """

    def __init__(self, beside: train.SideBySide | None = None):
        self.beside = beside
        self._parts: dict[Any, Any] = {}
        self._making = threading.RLock()

    def part(self, name: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave the first run that asked for the part of this name."""
        with self._making:
            if name not in self._parts:
                self._parts[name] = make()
            return self._parts[name]


def dials_of(config: Any) -> Dials:
    """Those of a fine-tuning's config."""
    return Dials(
        np.float32(config.learning_rate),
        np.float32(config.optimizer.weight_decay),
        np.float32(config.l2_to_pretrained),
        np.int32(rate_threshold(config.dropout or 0.0)),
    )


def turned(config: Any, dials: Dials) -> Any:
    """The config with these dials, traced or not, in the place of its own.

    What is switched off stays so: without `dropout` the model's own rates stay, without `l2_to_pretrained` there is no
    penalty.
    """
    changes: dict[str, Any] = {
        "learning_rate": dials.learning_rate,
        "optimizer": config.optimizer.model_copy(update={"weight_decay": dials.weight_decay}),
    }
    if config.dropout is not None:
        changes["dropout"] = TracedRate(dials.dropout)  # pyright: ignore[reportArgumentType]
    if config.l2_to_pretrained:
        changes["l2_to_pretrained"] = dials.l2_to_pretrained
    return config.model_copy(update=changes)


def check_one_program(first: Any, other: Any) -> None:
    """ValueError, naming the key, where two configs are not of one program."""
    if (first.dropout is None) != (other.dropout is None):
        raise ValueError("dropout is given in some runs and not in others, which is another program; give it in all")
    if bool(first.l2_to_pretrained) != bool(other.l2_to_pretrained):
        raise ValueError(
            "l2_to_pretrained is 0 in some runs, which is another program; search above 0, or leave it out"
        )
    ours, theirs = _rest(first), _rest(other)
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            raise ValueError(f"{key} differs, which is another program; only {', '.join(DIALS)} may differ in one")


def check_dials(keys: Iterable[str]) -> None:
    """ValueError for a key that is none."""
    for key in keys:
        if key not in DIALS:
            raise ValueError(
                f"vectorized runs are one program, in which {key} cannot differ{nearest(key, list(DIALS))}; search "
                f"{', '.join(DIALS)}, or leave out --vectorized"
            )


def _rest(config: Any) -> dict[str, Any]:
    """What of a config is a part of the program, by dotted key."""

    def flat(values: Any, prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            key = f"{prefix}{name}"
            found |= flat(value, f"{key}.") if isinstance(value, dict) and value else {key: value}
        return found

    return {key: value for key, value in flat(config.model_dump(mode="json")).items() if key not in (*DIALS, *_OWN)}
