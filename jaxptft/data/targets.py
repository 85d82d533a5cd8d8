"""What a row is to be told apart by: one class, a number, or any number of labels; read, checked, and made an array.

A target says how one value of a file is read (`read`) and what the values of all rows come to (`settle`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Shaped

from jaxptft.data.labels import Labels, label_name
from jaxptft.data.validate import Refused, check_string, shown, where

LARGEST = float(np.finfo(np.float32).max)  # batches are float32
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


@dataclass(frozen=True)
class Found:
    """The values read from the label columns of a source, and in which rows: `values[i]` is of row `rows[i]`."""

    source: str
    columns: tuple[str, ...]
    values: list[Any]
    rows: list[int]
    declared: Sequence[str] | None  # the classes, where the file declares them

    @property
    def column(self) -> str:
        return self.columns[0]


class Target(Protocol):
    """One way to read labels. `columns` names those that hold them; () for the one that is told from its name."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    def read(self, value: Any, declared: Sequence[str] | None) -> Any:
        """What one value of a label column says; Refused where it says nothing."""
        ...

    def settle(
        self, found: Found, names: Sequence[str] | None
    ) -> tuple[Shaped[np.ndarray, "rows ..."], tuple[str, ...]]:
        """The labels of all rows, and the names of the outputs; `names` are those known from training."""
        ...


@dataclass(frozen=True)
class OneClass:
    """One class a row: int32 [rows], places among the names."""

    columns: tuple[str, ...] = ()

    def read(self, value: Any, declared: Sequence[str] | None) -> str:
        return label_name(value, declared)

    def settle(self, found: Found, names: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
        if names is None:
            only = set(found.values)
            if len(only) == 1:
                raise ValueError(
                    f"{found.source}, column {found.column!r}: every row has label {shown(found.values[0])}; "
                    "a classifier needs two classes"
                )
            labels = Labels(tuple(found.declared)) if found.declared else Labels.learn(only)
        else:
            labels = Labels(tuple(names))
            _refuse_unknown(found, labels, [(name,) for name in found.values])
        return labels.encode(found.values), labels.names


@dataclass(frozen=True)
class Number:
    """One finite number a row: float64 [rows]. There are no names."""

    columns: tuple[str, ...] = ()

    def read(self, value: Any, declared: Sequence[str] | None) -> float:
        return read_number(value)

    def settle(self, found: Found, names: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
        return np.asarray(found.values, np.float64), ()


@dataclass(frozen=True)
class LabelSet:
    """Any number of labels a row, none among them: bool [rows, labels].

    A value is a list of labels, or text with a delimiter between them ("" is no label). With `columns`, each of these
    holds 0 or 1 for the label that it is named after.
    """

    columns: tuple[str, ...] = ()
    delimiter: str = ","

    def __post_init__(self) -> None:
        if not self.delimiter:
            raise ValueError("delimiter is empty; give what stands between the labels of a row, such as ','")
        if len(self.columns) == 1:
            raise ValueError(f"label column {self.columns[0]!r} is alone; label sets need two columns, or one of lists")
        if repeated := [name for name in self.columns if self.columns.count(name) > 1]:
            raise ValueError(f"label column {repeated[0]!r} is given twice; give each once")

    def read(self, value: Any, declared: Sequence[str] | None) -> Any:
        return read_flag(value) if self.columns else read_labels(value, self.delimiter, declared)

    def settle(self, found: Found, names: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
        if self.columns:
            flags = np.asarray(found.values, bool).reshape(-1, len(found.columns))
            return _in_order(found, flags, names)
        if names is None:
            learnt = {name for row in found.values for name in row}
            if len(learnt) < 2:
                came = f"every label is {shown(next(iter(learnt)))}" if learnt else "no row has a label"
                raise ValueError(f"{found.source}, column {found.column!r}: {came}; label sets need two labels")
            labels = Labels(tuple(found.declared)) if found.declared else Labels.learn(learnt)
        else:
            labels = Labels(tuple(names))
            _refuse_unknown(found, labels, found.values)
        index = {name: place for place, name in enumerate(labels.names)}
        flags = np.zeros((len(found.values), len(index)), bool)
        for row, present in enumerate(found.values):
            flags[row, [index[name] for name in present]] = True
        return flags, labels.names


def _in_order(found: Found, flags: np.ndarray, names: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The columns of `flags` in the order of `names`."""
    if names is None:
        return flags, found.columns
    if set(names) != set(found.columns):
        odd = sorted(set(found.columns) ^ set(names))[0]
        said = "is none of them" if odd in found.columns else "has no column"
        raise ValueError(f"{found.source}: the model's labels are {', '.join(names)}; {odd!r} {said}")
    return flags[:, [found.columns.index(name) for name in names]], tuple(names)


def _refuse_unknown(found: Found, labels: Labels, rows: Sequence[Sequence[str]]) -> None:
    known = set(labels.names)
    for number, present in zip(found.rows, rows, strict=True):
        for name in present:
            if name not in known:
                listing = ", ".join(labels.names[:20]) + (", ..." if len(labels.names) > 20 else "")
                place = where(found.source, number, found.column)
                raise ValueError(f"{place}: label {shown(name)} is not known; known are: {listing}")


def read_number(value: Any) -> float:
    """The finite number that a value in a file stands for.

    Raises:
      Refused: missing, NaN, infinite or too large for float32, a truth value, or no number.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Refused("missing value", "has no number")
    if isinstance(value, (bool, np.bool_)):
        raise Refused("wrong type", f"is {value}, expected a number")
    if isinstance(value, str):
        try:
            # float() would take 1_000, which no other program does.
            number = float("_" if "_" in value else check_string(value))
        except ValueError:
            raise Refused("not a number", f"is {shown(value)}, expected a number such as 3.5") from None
    elif isinstance(value, (int, float, np.integer, np.floating)):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    else:
        raise Refused("wrong type", f"is {shown(value)} ({type(value).__name__}), expected a number")
    if math.isnan(number):
        raise Refused("NaN", "is NaN, expected a number")
    if abs(number) > LARGEST:
        raise Refused("infinite", f"is {shown(value)}, expected a finite number (of float32, up to 3.4e38)")
    return number


def read_flag(value: Any) -> bool:
    """What a 0/1 column says of its label.

    Raises:
      Refused: missing, or neither 0 nor 1.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Refused("missing value", "has no value, expected 0 or 1")
    flag = _FLAGS.get(str(value).strip().lower())
    if flag is None:
        raise Refused("wrong type", f"is {shown(value)}, expected 0 or 1")
    return flag


def read_labels(value: Any, delimiter: str, declared: Sequence[str] | None = None) -> tuple[str, ...]:
    """The labels that a list, or a text with delimiters, names; in its order, each once.

    Raises:
      Refused: missing, neither list nor text, a label that is no class name (see `label_name`), or nothing between two
        delimiters.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if value is None:
        raise Refused("missing value", "has no labels; write an empty list or text for none")
    if isinstance(value, str):
        text = check_string(value.strip())
        if text.startswith("[") and text.endswith("]"):
            raise Refused(
                "wrong type", f"is {shown(text)}, a list as text; write its labels with {delimiter!r} between"
            )
        parts: Sequence[Any] = text.split(delimiter) if text else ()
        if text and any(not part.strip() for part in parts):
            raise Refused("missing value", f"is {shown(text)}, with nothing between two {delimiter!r}")
    elif isinstance(value, (list, tuple, np.ndarray)):
        parts = list(value)
    else:
        kind = type(value).__name__
        raise Refused("wrong type", f"is {shown(value)} ({kind}), expected a list of labels, or text")
    return tuple(dict.fromkeys(label_name(part, declared) for part in parts))
