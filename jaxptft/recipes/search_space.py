"""What a search may choose, written as text: `log:1e-5:1e-3`, `0:0.5`, `1:4`, `16,32,64`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml


class Range(NamedTuple):
    """Numbers from low to high, both included; whole ones where both ends are whole."""

    low: float
    high: float
    log: bool

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Space = Range | tuple[Any, ...]  # or one of several values


def read_space(key: str, text: str) -> Space:
    """LOW:HIGH, log:LOW:HIGH, or values separated by commas, each as YAML reads it.

    Raises ValueError, naming the key, for anything else.

    >>> read_space("learning_rate", "log:1e-5:1e-3")
    Range(low=1e-05, high=0.001, log=True)
    >>> read_space("freeze", "none,backbone"), read_space("batch_size", "16,32")
    (('none', 'backbone'), (16, 32))
    """
    log = text.startswith("log:")
    parts = text.removeprefix("log:").split(":")
    if len(parts) == 2:
        ends = [_scalar(part) for part in parts]
        if not all(type(end) in (int, float) for end in ends) or not ends[0] < ends[1]:
            raise ValueError(f"{key}: {text!r} is no range; expected LOW:HIGH with LOW below HIGH")
        if log and not ends[0] > 0:
            raise ValueError(f"{key}: {text!r} cannot be searched on a logarithmic scale; LOW must be above 0")
        return Range(ends[0], ends[1], log)
    values = tuple(_scalar(part) for part in text.split(","))
    if log or len(parts) > 2 or len(values) < 2 or len(set(map(str, values))) < len(values):
        raise ValueError(f"{key}: {text!r} is no space; expected LOW:HIGH, log:LOW:HIGH or different values A,B,C")
    return values


def draw(trial: Any, spaces: Mapping[str, Space]) -> dict[str, Any]:
    """A value for each key, as an `optuna.Trial` suggests it."""
    found: dict[str, Any] = {}
    for key, space in spaces.items():
        if not isinstance(space, Range):
            found[key] = trial.suggest_categorical(key, space)
        elif space.whole:
            found[key] = trial.suggest_int(key, int(space.low), int(space.high), log=space.log)
        else:
            found[key] = trial.suggest_float(key, space.low, space.high, log=space.log)
    return found


def with_values(base: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of dotted keys replaced; groups that are absent are made.

    >>> with_values({"seed": 1, "optimizer": {"b1": 0.9}}, {"optimizer.b2": 0.98, "seed": 2})
    {'seed': 2, 'optimizer': {'b1': 0.9, 'b2': 0.98}}
    """
    values = dict(base)
    for key, value in chosen.items():
        name, dot, rest = key.partition(".")
        if dot:
            inner = values.get(name)
            values[name] = with_values(inner if isinstance(inner, Mapping) else {}, {rest: value})
        else:
            values[name] = value
    return values


def _scalar(text: str) -> Any:
    text = text.strip()
    try:
        return float(text) if not text.lstrip("+-").isdecimal() else int(text)
    except ValueError:
        value = yaml.safe_load(text) if text else text
        return value if isinstance(value, bool) else text
