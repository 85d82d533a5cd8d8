"""Checks of a config's fields, each a ValueError that names the field, what it must be, and what it is."""

from collections.abc import Collection
from reprlib import repr as shown
from typing import Any

from jaxptft.models.layers import ACTIVATIONS

MOST = 2**31 - 1  # of what is counted or indexed: indices are int32
DTYPES = ("float32", "bfloat16", "float16")


def is_integer(value: object) -> bool:
    """Whether it is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_integers(config: Any, *names: str, least: int = 1, optional: bool = False) -> None:
    """Integers from `least` to `MOST`; None too where `optional`."""
    for name, value in _values(config, names, optional):
        if not is_integer(value) or value < least:
            _refuse(config, name, f"an integer of at least {least}", value)
        if value > MOST:
            _refuse(config, name, f"an integer of at most {MOST}", value)


def check_rates(config: Any, *names: str, optional: bool = False) -> None:
    """Probabilities below 1; None too where `optional`."""
    for name, value in _values(config, names, optional):
        if not _is_number(value) or not 0 <= value < 1:
            _refuse(config, name, "a probability in [0, 1)", value)


def check_positive(config: Any, *names: str) -> None:
    """Finite numbers above 0."""
    for name, value in _values(config, names, False):
        if not _is_number(value) or not 0 < value < float("inf"):
            _refuse(config, name, "a positive number", value)


def check_flags(config: Any, *names: str) -> None:
    """True or False, and nothing that merely counts as such."""
    for name, value in _values(config, names, False):
        if not isinstance(value, bool):
            _refuse(config, name, "True or False", value)


def check_choice(config: Any, name: str, accepted: Collection[str], *, optional: bool = False) -> None:
    """One of some words; None too where `optional`."""
    for _, value in _values(config, (name,), optional):
        if not isinstance(value, str) or value not in accepted:
            _refuse(config, name, f"one of {', '.join(accepted)}", value)


def check_activations(config: Any, *names: str, optional: bool = False) -> None:
    """Activations by name; None too where `optional`."""
    for name in names:
        check_choice(config, name, sorted(ACTIVATIONS), optional=optional)


def check_pad_id(config: Any) -> None:
    """None or a row of the word table."""
    if config.pad_id is not None and (not is_integer(config.pad_id) or not 0 <= config.pad_id < config.vocab_size):
        _refuse(config, "pad_id", f"None or an id below vocab_size {config.vocab_size}", config.pad_id)


def _values(config: Any, names: tuple[str, ...], optional: bool) -> list[tuple[str, Any]]:
    found = [(name, getattr(config, name)) for name in names]
    return [(name, value) for name, value in found if not (optional and value is None)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse(config: Any, name: str, expected: str, value: object) -> None:
    raise ValueError(f"{type(config).__name__}.{name} must be {expected}, got {shown(value)}")
