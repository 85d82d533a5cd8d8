"""Text, or pairs of texts, with class labels, read from any source with every row checked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxptft.data.cache import fingerprint
from jaxptft.data.columns import Columns, infer_columns
from jaxptft.data.labels import Labels, label_name
from jaxptft.data.readers import Row, Source
from jaxptft.data.sources import open_source
from jaxptft.data.validate import OnBadRow, Problem, Refused, Report, Tally, check_string, check_text, shown, where


@dataclass(frozen=True, eq=False)
class Table:
    """Checked rows. `names[labels[i]]` is the class of row i; `rows[i]` is where it stands in `source`."""

    texts: list[str]
    pairs: list[str] | None
    labels: Int[np.ndarray, " rows"] | None
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
        parts += ["unlabelled" if self.labels is None else self.labels.astype("<i4").tobytes()]
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
) -> Table:
    """Read a file (.csv, .tsv, .jsonl, .parquet), a folder saved by `datasets`, or a hub name such as `glue/sst2`.

    Args:
      columns: which columns hold what; names that are not given are told from those found.
      names: the classes known from training, in order; a row of any other class is an error, also when skipping.
        None: learn them from these rows, of which there must be two classes at least.
      labelled: False leaves labels out, whether the source has them or not.
      split: which split of a source that has several.
      on_bad_row: "error" raises at the first bad row; "skip" leaves bad rows out and counts them in the report.

    Raises:
      FileNotFoundError: there is no such source.
      ValueError: a row, a column or the whole file is bad; names file, row and column.
    """
    opened = open_source(source, split)
    return _checked(opened, columns, names, labelled, on_bad_row)


def make_table(
    texts: Sequence[Any],
    labels: Sequence[Any] | None = None,
    *,
    pairs: Sequence[Any] | None = None,
    names: Sequence[str] | None = None,
    source: str = "the rows given",
    on_bad_row: OnBadRow = "error",
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
    return _checked(Source(source, tuple(given), rows), columns, names, labels is not None, on_bad_row)


def _checked(
    source: Source, chosen: Columns | None, names: Sequence[str] | None, labelled: bool, on_bad_row: OnBadRow
) -> Table:
    tally = Tally(source.name, on_bad_row)
    columns = infer_columns(source.columns, source.name, chosen=chosen, labelled=labelled)
    declared = source.class_names.get(columns.label) if columns.label else None
    wanted = [name for name in (columns.text, columns.pair, columns.label, columns.id) if name]
    texts: list[str] = []
    pairs: list[str] = []
    found: list[str] = []
    keys: list[Any] = []
    numbers: list[int] = []

    for number, values in source.rows(wanted):
        tally.rows += 1
        if isinstance(values, Problem):
            tally.refuse(number, values)
            continue
        place = 0
        try:
            text = check_text(values[0])
            pair = label = key = None
            if columns.pair:
                place += 1
                pair = check_text(values[place])
            if columns.label:
                place += 1
                label = label_name(values[place], declared)
            if columns.id:
                place += 1
                key = _check_key(values[place])
        except Refused as refused:
            tally.refuse(number, Problem(refused.reason, refused.detail, wanted[place]))
            continue
        texts.append(text)
        numbers.append(number)
        if pair is not None:
            pairs.append(pair)
        if label is not None:
            found.append(label)
        if key is not None:
            keys.append(key)

    report = tally.report()
    if not report.rows:
        raise ValueError(f"{source.name}: has a header and no rows")
    if not texts:
        raise ValueError(f"{source.name}: every row was refused; {report}")
    labels = _settle_names(source.name, columns.label, found, numbers, names, declared) if columns.label else None
    return Table(
        texts=texts,
        pairs=pairs if columns.pair else None,
        labels=None if labels is None else labels.encode(found),
        names=tuple(names or ()) if labels is None else labels.names,
        report=report,
        source=source.name,
        rows=np.asarray(numbers, np.int32),
        keys=keys if columns.id else None,
    )


def _check_key(value: Any) -> Any:
    if value is None or value == "":
        raise Refused("missing value", "has no value")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Refused("wrong type", f"is {shown(value)} ({type(value).__name__}), expected text or a whole number")
    return check_string(value) if isinstance(value, str) else value


def _settle_names(
    source: str,
    column: str,
    found: list[str],
    numbers: list[int],
    names: Sequence[str] | None,
    declared: Sequence[str] | None,
) -> Labels:
    if names is None:
        only = set(found)
        if len(only) == 1:
            raise ValueError(
                f"{source}, column {column!r}: every row has label {shown(found[0])}; a classifier needs two classes"
            )
        return Labels(tuple(declared)) if declared else Labels.learn(only)
    labels = Labels(tuple(names))
    known = set(labels.names)
    for number, name in zip(numbers, found, strict=True):
        if name not in known:
            listing = ", ".join(labels.names[:20]) + (", ..." if len(labels.names) > 20 else "")
            raise ValueError(f"{where(source, number, column)}: label {shown(name)} is not known; known are: {listing}")
    return labels
