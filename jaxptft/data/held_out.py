"""Training and evaluation rows of any kind: from two sources, from a source's splits, or cut from one.

`split.read_training_data` is the same for tables, whose classes both sides must share.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import Int

from jaxptft.data.sources import split_names
from jaxptft.data.split import choose_evaluation_split, pick_split, split
from jaxptft.data.tables import Table
from jaxptft.data.validate import Report


class Rows(Protocol):
    """Rows that can be chosen from, and where they come from."""

    @property
    def source(self) -> str: ...
    def __len__(self) -> int: ...
    def select(self, indices: Any) -> Any: ...


R = TypeVar("R", bound=Rows)


def hold_out(
    texts: Sequence[str], size: float | int, *, seed: int, source: str = "the rows given"
) -> tuple[Int[np.ndarray, " rest"], Int[np.ndarray, " held"]]:
    """Positions (of the rest, of those cut off); rows of the same text but for case and spacing stay together.

    `size` counts rows or, below 1, is a fraction of them. Raises ValueError where one side would be left without any.
    """
    rows = np.arange(len(texts), dtype=np.int32)
    table = Table(list(texts), None, None, (), Report(len(texts)), source, rows)
    rest, held = split(table, size, seed=seed)
    return rest.rows, held.rows


def read_with_held_out(
    read: Callable[[Any, str | None], R],
    train: Any,
    evaluation: Any = None,
    *,
    texts: Callable[[R], Sequence[str]],
    fraction: float = 0.1,
    seed: int = 0,
) -> tuple[R, R, str]:
    """Training rows, evaluation rows, and in words where the latter are from.

    Args:
      read: (source, split) -> rows.
      evaluation: None: the training source's validation split, or `fraction` of the training rows where it has none.
      texts: what no row of one side may share with a row of the other, when rows are cut off.
    """
    rows = read(train, pick_split(train, "train"))
    if evaluation is not None:
        held = read(evaluation, pick_split(evaluation))
        return rows, held, held.source
    chosen = choose_evaluation_split(split_names(train))
    if chosen is not None:
        held = read(train, chosen)
        return rows, held, held.source
    rest, cut = hold_out(texts(rows), fraction, seed=seed, source=rows.source)
    return rows.select(rest), rows.select(cut), f"{len(cut)} rows cut from {rows.source}, seed {seed}"
