"""Which rows train and which evaluate.

Evaluation uses a data set's validation split: the labels of public test splits are often withheld (-1 in GLUE), and a
model must not be chosen on the test split anyway. Where there is no validation split, one is cut from training.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxptft.data.columns import Columns
from jaxptft.data.sources import split_names
from jaxptft.data.tables import Table, read_table
from jaxptft.data.targets import Target
from jaxptft.data.validate import OnBadRow

# MNLI has two validation splits, and its matched one is the one that is reported first.
EVALUATION_SPLITS = ("validation", "validation_matched", "dev", "valid", "val", "eval", "evaluation")


def choose_evaluation_split(splits: Iterable[str]) -> str | None:
    """The split to evaluate on, among the names of a data set's splits; None where one must be cut from training."""
    found = set(splits)
    return next((name for name in EVALUATION_SPLITS if name in found), None)


def split(table: Table, size: float | int, *, seed: int, stratify: bool = True) -> tuple[Table, Table]:
    """Cut rows off a table; returns (the rest, the rows cut off), each in the table's order.

    Rows whose text (and pair) is the same but for case and spacing stay together, so that no evaluated text was trained
    on. Where such groups do not add up to the size asked for, fewer rows are cut off.

    Args:
      size: how many rows to cut off; below 1, which fraction of all rows.
      stratify: cut the same share from every class, as nearly as whole rows allow, and leave one text of each class
        at least to the rest. Numbers and label sets are not stratified.

    Raises:
      ValueError: nothing would be left on one of the sides.
    """
    rows = len(table)
    count = round(size * rows) if isinstance(size, float) and size < 1 else int(size)
    if size <= 0 or not 0 < count < rows:
        raise ValueError(f"{table.source}: cannot cut {size} off {rows} rows; ask for at least 1 and fewer than all")
    groups = _groups(table)
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    first = np.unique(groups, return_index=True)[1]
    by_class = stratify and table.labels is not None and table.labels.dtype.kind == "i"
    stratum = table.labels[first] if by_class and table.labels is not None else np.zeros(len(sizes), np.int32)
    quotas = _apportion(np.bincount(stratum, weights=sizes), count)

    held = np.zeros(len(sizes), bool)
    left = np.bincount(stratum)  # groups that stay behind

    def take(group: int, room: int) -> int:
        if held[group] or sizes[group] > room or left[stratum[group]] == 1:
            return 0
        held[group] = True
        left[stratum[group]] -= 1
        return int(sizes[group])

    for group in order:
        quotas[stratum[group]] -= take(group, int(quotas[stratum[group]]))
    room = int(quotas.sum())
    for group in order:  # what a class could not fill, others do
        room -= take(group, room)
    chosen = held[groups]
    if not chosen.any():
        raise ValueError(f"{table.source}: cannot cut {count} of {rows} rows off; too few different texts")
    return table.select(np.flatnonzero(~chosen)), table.select(np.flatnonzero(chosen))


def _groups(table: Table) -> Int[np.ndarray, " rows"]:
    numbers: dict[tuple[str, ...], int] = {}
    columns = [table.texts] if table.pairs is None else [table.texts, table.pairs]
    keys = zip(*([" ".join(text.casefold().split()) for text in column] for column in columns), strict=True)
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int64, len(table))


def _apportion(weights: np.ndarray, count: int) -> Int[np.ndarray, " classes"]:
    """Share `count` in proportion to the weights, in whole numbers, by largest remainders."""
    exact = weights * (count / weights.sum())
    shares = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(shares - exact, kind="stable")
    shares[by_remainder[: count - shares.sum()]] += 1
    return shares


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on and what it chooses its best model on; `origin` says in words where the latter is from."""

    train: Table
    evaluation: Table
    origin: str


def read_training_data(
    train: Any,
    evaluation: Any = None,
    *,
    columns: Columns | None = None,
    names: tuple[str, ...] | None = None,
    fraction: float = 0.1,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
    target: Target | None = None,
) -> TrainingData:
    """Read training and evaluation rows with one set of names, whatever the sources offer.

    Args:
      train: a source as `read_table` takes it; of several splits, `train` is taken.
      evaluation: likewise; of several splits, its validation split. None: the training source's validation split, or
        `fraction` of the training rows where it has none.
      names: the classes in order; None: learn them from the training rows.
      target: what the labels are, as `read_table` takes it.
    """
    options: dict[str, Any] = {"columns": columns, "on_bad_row": on_bad_row, "target": target}
    splits = split_names(train)
    table = read_table(train, names=names, split=_pick(splits, "train"), **options)
    if evaluation is not None:
        chosen = _pick(split_names(evaluation), choose_evaluation_split(split_names(evaluation)))
        held = read_table(evaluation, names=table.names, split=chosen, **options)
        return TrainingData(table, held, held.source)
    chosen = choose_evaluation_split(splits)
    if chosen is not None:
        held = read_table(train, names=table.names, split=chosen, **options)
        return TrainingData(table, held, held.source)
    rest, held = split(table, fraction, seed=seed)
    return TrainingData(rest, held, f"{len(held)} rows cut from {table.source}, seed {seed}")


def pick_split(source: Any, wanted: str | None = None) -> str | None:
    """The split of a source to read: the wanted one, or else its validation split, where the source has several.

    None where it has one or none, and needs no choice.
    """
    splits = split_names(source)
    return _pick(splits, wanted or choose_evaluation_split(splits))


def refuse_absent_split(source: Any, split: str | None) -> None:
    """ValueError where a split is asked for and the source has none of that name: `pick_split` takes an only one for
    any."""
    if split is None:
        return
    is_file = isinstance(source, (str, Path)) and Path(source).expanduser().is_file()
    found = () if is_file else split_names(source)
    if split not in found:
        raise ValueError(f"{source}: there is no split {split!r}; splits found: {', '.join(found) or 'none'}")


def _pick(splits: tuple[str, ...], wanted: str | None) -> str | None:
    return wanted if len(splits) > 1 else None
