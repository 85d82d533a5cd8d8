"""Class labels: values in a file <-> names kept with the model <-> indices in a batch.

A label is known by its name, never by its position in some file: a data set that lists its classes in another order is
still read correctly. Names are learnt from the training data (strings in alphabetical order, whole numbers in numerical
order, or a data set's own order where it declares one) and everything read later must use them.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxptft.data.validate import Refused, check_string, shown

UNLABELLED = -1  # what public test splits carry instead of a label


def is_whole_number(name: str) -> bool:
    """Whether the name is a whole number as Python writes it: `7`, `-3`; not `07`, `7.0` or `seven`."""
    digits = name[1:] if name.startswith("-") else name
    return digits.isascii() and digits.isdigit() and (len(digits) == 1 or digits[0] != "0")


def label_name(value: Any, declared: Sequence[str] | None = None) -> str:
    """The name of the class that a value in a file stands for.

    Args:
      declared: the classes in order, where the file declares them; a number is then a position among these.

    Raises:
      Refused: missing, NaN, a real number, unlabelled (-1), outside the declared classes, or not text.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Refused("missing value", "has no label")
    if isinstance(value, str):
        return _name_of_string(check_string(value.strip()))
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (int, np.integer)):
        if value == UNLABELLED:
            raise Refused("unlabelled", "is -1, which marks an unlabelled row; give a class its name instead")
        if declared is None:
            return str(int(value))
        if not 0 <= value < len(declared):
            raise Refused("wrong type", f"is {value}, expected a class from 0 to {len(declared) - 1}")
        return declared[int(value)]
    if isinstance(value, float) and math.isnan(value):
        raise Refused("NaN", "is NaN, expected a class")
    raise Refused("wrong type", f"is {shown(value)} ({type(value).__name__}), expected a class name or a whole number")


def _name_of_string(name: str) -> str:
    if name == str(UNLABELLED):
        raise Refused("unlabelled", "is -1, which marks an unlabelled row; give a class its name instead")
    if is_whole_number(name) or name.isdigit():  # "01" is a code, and stays what it is
        return name
    try:
        number = float(name)
    except ValueError:
        return name
    if math.isnan(number):
        raise Refused("NaN", f"is {name!r}, expected a class")
    raise Refused("wrong type", f"is {name!r}, a real number; expected a class name or a whole number")


@dataclass(frozen=True)
class Labels:
    """The names of the classes; a class's index is its place among them."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            repeated = sorted(name for name, count in Counter(self.names).items() if count > 1)
            raise ValueError(f"label name {repeated[0]!r} is given twice; every class needs a name of its own")

    @classmethod
    def learn(cls, found: Collection[str]) -> "Labels":
        """The classes that occur: in numerical order if all are whole numbers, else in alphabetical order."""
        distinct = set(found)
        if all(map(is_whole_number, distinct)):
            return cls(tuple(sorted(distinct, key=int)))
        return cls(tuple(sorted(distinct)))

    def encode(self, found: Sequence[str]) -> Int[np.ndarray, " rows"]:
        """Names to indices, int32; KeyError at a name that is not a class."""
        index = {name: number for number, name in enumerate(self.names)}
        return np.fromiter((index[name] for name in found), np.int32, len(found))
