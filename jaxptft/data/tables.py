"""Text, or pairs of texts, with labels, read from any source with every row checked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxptft.data.cache import fingerprint
from jaxptft.data.columns import Columns, infer_columns
from jaxptft.data.readers import Row, Source
from jaxptft.data.sources import open_source
from jaxptft.data.targets import Found, OneClass, Target
from jaxptft.data.validate import (
    EveryRowRefused,
    OnBadRow,
    Problem,
    Refused,
    Report,
    Tally,
    check_string,
    check_text,
    shown,
)

Targets = Int[np.ndarray, " rows"] | Float[np.ndarray, " rows"] | Bool[np.ndarray, "rows labels"]


@dataclass(frozen=True, eq=False)
class Table:
    """Checked rows; `rows[i]` is where row i stands in `source`.

    `labels` are classes (int32, places among `names`), numbers (float64; no names), or a flag for each name (bool).
    """

    texts: list[str]
    pairs: list[str] | None
    labels: Targets | None
    names: tuple[str, ...]
    report: Report
    source: str
    rows: Int[np.ndarray, " rows"]
    keys: list[Any] | None = None  # values of the id column, where one was chosen

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the texts, pairs, labels and label names, in order; not of where they came from."""
        parts: list[bytes | str] = ["table 1", str(len(self.names)), *self.names]
        parts += _label_parts(self.labels)
        parts += ["single" if self.pairs is None else "pairs", *self.texts, *(self.pairs or ())]
        return fingerprint(parts)

    def select(self, indices: Int[np.ndarray, " chosen"]) -> "Table":
        """The rows at these positions, in this order."""
        chosen = np.asarray(indices).tolist()

        def of(values: list[Any] | None) -> list[Any] | None:
            return None if values is None else [values[index] for index in chosen]

        return replace(
            self,
            texts=[self.texts[index] for index in chosen],
            pairs=of(self.pairs),
            labels=None if self.labels is None else self.labels[chosen],
            rows=self.rows[chosen],
            keys=of(self.keys),
        )


def read_table(
    source: Any,
    *,
    columns: Columns | None = None,
    names: Sequence[str] | None = None,
    labelled: bool = True,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
    target: Target | None = None,
) -> Table:
    """Read a file (.csv, .tsv, .jsonl, .parquet), a folder saved by `datasets`, or a hub name such as `glue/sst2`.

    Args:
      columns: which columns hold what; names that are not given are told from those found.
      names: the classes known from training, in order; a row of any other class is an error, also when skipping.
        None: learn them from these rows, of which there must be two classes at least.
      labelled: False leaves labels out, whether the source has them or not.
      split: which split of a source that has several.
      on_bad_row: "error" raises at the first bad row; "skip" leaves bad rows out and counts them in the report.
      target: what the labels are: `OneClass()` (the default), `Number()` or `LabelSet()`.

    Raises:
      FileNotFoundError: there is no such source.
      ValueError: a row, a column or the whole file is bad; names file, row and column.
    """
    opened = open_source(source, split)
    return _checked(opened, columns, names, labelled, on_bad_row, target)


def make_table(
    texts: Sequence[Any],
    labels: Sequence[Any] | None = None,
    *,
    pairs: Sequence[Any] | None = None,
    names: Sequence[str] | None = None,
    source: str = "the rows given",
    on_bad_row: OnBadRow = "error",
    target: Target | None = None,
) -> Table:
    """A table of rows already in memory, checked as `read_table` checks those of a file; rows count from 1."""
    given = {"text": texts} | ({} if pairs is None else {"pair": pairs}) | ({} if labels is None else {"label": labels})
    for name, values in given.items():
        if len(values) != len(texts):
            raise ValueError(f"{source}: {len(values)} values of {name!r} for {len(texts)} texts; expected as many")
    if not len(texts):
        raise ValueError(f"{source}: has no rows")

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        return enumerate(map(list, zip(*(given[name] for name in wanted), strict=True)), start=1)

    columns = Columns("text", "" if pairs is None else "pair", None if labels is None else "label")
    return _checked(Source(source, tuple(given), rows), columns, names, labels is not None, on_bad_row, target)


class CheckedRow(NamedTuple):
    """One row that passed: its number in the source, and what its columns say (labels: one value for each column)."""

    number: int
    text: str
    pair: str | None
    labels: tuple[Any, ...]
    key: Any


def settle_columns(
    source: Source, chosen: Columns | None, labelled: bool, target: Target
) -> tuple[Columns, tuple[str, ...]]:
    """Which columns hold what, and which hold the labels: none where `labelled` is False."""
    several = target.columns if labelled else ()
    for name in several:
        if name not in source.columns:
            listing = ", ".join(map(repr, source.columns))
            raise ValueError(f"{source.name}: there is no column {name!r} for a label; columns found: {listing}")
    found = tuple(name for name in source.columns if name not in several)
    columns = infer_columns(found, source.name, chosen=chosen, labelled=labelled and not several)
    return columns, several or ((columns.label,) if columns.label else ())


def checked_rows(
    source: Source, columns: Columns, labels: Sequence[str], target: Target, tally: Tally
) -> Iterator[CheckedRow]:
    """The rows of a source that are sound, as they are read; the others go to the tally."""
    declared = source.class_names.get(labels[0]) if labels else None
    assert columns.text is not None
    roles = [("text", columns.text), ("pair", columns.pair), *(("label", name) for name in labels), ("id", columns.id)]
    wanted = [name for _, name in roles if name]
    kinds = [role for role, name in roles if name]

    def check(role: str, value: Any) -> Any:
        if role == "label":
            return target.read(value, declared)
        return check_key(value) if role == "id" else check_text(value)

    for number, values in source.rows(wanted):
        tally.rows += 1
        if isinstance(values, Problem):
            tally.refuse(number, values)
            continue
        read: list[Any] = []
        try:
            for role, value in zip(kinds, values, strict=True):
                read.append(check(role, value))
        except Refused as refused:
            tally.refuse(number, Problem(refused.reason, refused.detail, wanted[len(read)]))
            continue
        by_role = dict(zip(kinds, read, strict=True))
        found = tuple(value for role, value in zip(kinds, read, strict=True) if role == "label")
        yield CheckedRow(number, by_role["text"], by_role.get("pair"), found, by_role.get("id"))


def _checked(
    source: Source,
    chosen: Columns | None,
    names: Sequence[str] | None,
    labelled: bool,
    on_bad_row: OnBadRow,
    target: Target | None = None,
) -> Table:
    tally = Tally(source.name, on_bad_row)
    target = target or OneClass()
    columns, label_columns = settle_columns(source, chosen, labelled, target)
    texts: list[str] = []
    pairs: list[str] = []
    found: list[Any] = []
    keys: list[Any] = []
    numbers: list[int] = []
    for row in checked_rows(source, columns, label_columns, target, tally):
        texts.append(row.text)
        numbers.append(row.number)
        if row.pair is not None:
            pairs.append(row.pair)
        if row.labels:
            found.append(row.labels if target.columns else row.labels[0])
        if row.key is not None:
            keys.append(row.key)

    report = tally.report()
    if not report.rows:
        raise ValueError(f"{source.name}: has a header and no rows")
    if not texts:
        raise EveryRowRefused(source.name, report)
    labels = None
    if label_columns:
        declared = source.class_names.get(label_columns[0])
        labels, names = target.settle(Found(source.name, label_columns, found, numbers, declared), names)
    return Table(
        texts=texts,
        pairs=pairs if columns.pair else None,
        labels=labels,
        names=tuple(names or ()),
        report=report,
        source=source.name,
        rows=np.asarray(numbers, np.int32),
        keys=keys if columns.id else None,
    )


def _label_parts(labels: Targets | None) -> list[bytes | str]:
    """Labels for a fingerprint; those of different kinds never agree."""
    if labels is None:
        return ["unlabelled"]
    if labels.dtype.kind == "i":
        return [labels.astype("<i4").tobytes()]
    kind = "numbers" if labels.dtype.kind == "f" else "label sets"
    return [kind, labels.astype("<f8" if kind == "numbers" else np.uint8).tobytes()]


def check_key(value: Any) -> Any:
    if value is None or value == "":
        raise Refused("missing value", "has no value")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Refused("wrong type", f"is {shown(value)} ({type(value).__name__}), expected text or a whole number")
    return check_string(value) if isinstance(value, str) else value
