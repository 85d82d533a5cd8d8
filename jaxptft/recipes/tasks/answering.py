"""A model asked for answers to rows, some of them at a time: for a file, of any size, and for whoever asks a server.

A task's `answering(opened, request)` gives an `Answering`, which checks the model once and compiles once a shape. What
it says of a row depends on that row alone, but for the last bits of a number, which depend on the shape of its batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from jaxptft import data, train

if TYPE_CHECKING:
    from jaxptft.recipes import predict as prediction
    from jaxptft.recipes.inference import Predictor

Rows = Any  # a `data.Table`, `data.Taggings`, `data.Questions` or `data.Choices`, without what is to be predicted
Say = Callable[[str], None]
PIECE = 4096  # rows in memory at a time


class Answered(NamedTuple):
    """An answer for each row, in their order, and which rows were longer than what the model reads at once."""

    lines: Iterable[dict[str, Any]]
    long: Bool[np.ndarray, " rows"]


class Answering(NamedTuple):
    """How a task answers.

    read: the rows of a `data.Source`, checked; raises what `data.read_table` and the like raise.
    answer: the answers to such rows. `batching` are options of `data.Batches`; `done` hears how many examples were
      predicted, batch by batch.
    long: what is said of long rows: a format string of `long` and `rows`.
    predictor: what is asked; None where it is no predictor.
    whole: whether long rows are read whole, in windows, and not cut.
    """

    read: Callable[[Any], Rows]
    answer: Callable[[Rows, Mapping[str, Any], Callable[[int], None]], Answered]
    long: str
    predictor: "Predictor | None"
    whole: bool = False


Pieces = Callable[[], Iterator[tuple[Rows | None, data.Report]]]  # sound rows, and how many of how many these are


def from_source(source: data.Source, answering: Answering) -> Pieces:
    """A source's sound rows, each time anew, so many at a time; raises as `answering.read`, and where none is sound."""

    columns = _columns_read(source, answering.read)

    def pieces() -> Iterator[tuple[Rows | None, data.Report]]:
        sound, refused = False, data.Report()
        for piece in source.pieces(PIECE, columns):
            try:
                rows = answering.read(piece)
            except data.EveryRowRefused as error:
                refused += error.report
                yield None, error.report
                continue
            sound = True
            yield rows, rows.report
        if not sound and refused.rows:
            raise data.EveryRowRefused(source.name, refused)
        if not sound:
            answering.read(source)  # which says that there are no rows

    return pieces


class _Known(Exception):
    """The columns that are read are known; nothing more is wanted of the source."""


def _columns_read(source: data.Source, read: Callable[[data.Source], Rows]) -> Sequence[str]:
    """The columns whose values are read: others may be large, or need packages to be decoded."""
    found: list[Sequence[str]] = []

    def rows(wanted: Sequence[str]) -> Iterator[Any]:
        found.append(wanted)
        raise _Known

    with suppress(_Known):
        read(replace(source, rows=rows))
    return tuple(dict.fromkeys(found[0]))


def from_rows(rows: Rows) -> Pieces:
    """Rows that are in memory, so many at a time."""

    def pieces() -> Iterator[tuple[Rows | None, data.Report]]:
        for start in range(0, len(rows), PIECE):
            chosen = rows.select(np.arange(start, min(start + PIECE, len(rows))))
            yield replace(chosen, report=data.Report()), data.Report() if start else rows.report

    return pieces


def answers(
    pieces: Pieces, answering: Answering, request: "prediction.Config", *, say: Say
) -> Iterator[dict[str, Any]]:
    """A line for each row, in their order: `row` (its line or number in the source), the value of the id column, and
    the answer. Every row is read and checked before the first is answered; in memory are `PIECE` at a time."""
    total = skipped = long = 0
    for rows, report in pieces():
        total += 0 if rows is None else len(rows)
        skipped += report.skipped
    if skipped:
        say(f"{skipped} bad rows skipped")
    with train.Progress("predictions", total, by_example=True) as progress:
        before = 0
        for rows, _ in pieces():
            if rows is None:
                continue
            within, most = 0, len(rows) - 1  # of examples, such as windows, there may be more than rows

            def done(examples: int, before: int = before, most: int = most) -> None:
                nonlocal within
                within += examples
                progress.update(before + min(within, most), None, examples)

            found = answering.answer(rows, {"batch_size": request.batch_size}, done)
            long += int(found.long.sum())
            yield from lines(rows, found.lines)
            before += len(rows)
        progress.update(total, None, 0)
    if long:
        say(answering.long.format(long=long, rows=total))


@contextmanager
def counted(examples: int) -> Iterator[Callable[[int], None]]:
    """What to call with how many more examples are done; a person sees how far that is."""
    seen = 0
    with train.Progress("rows", examples, by_example=True) as progress:

        def done(more: int) -> None:
            nonlocal seen
            seen += more
            progress.update(seen, None, more)

        yield done


def lines(rows: Rows, found: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """An answer for each row, after `row` (its line or number in the source) and the value of the id column."""
    keys = (rows.ids if isinstance(rows, data.Questions) else rows.keys) or [None] * len(rows)
    for row, key, line in zip(rows.rows.tolist(), keys, found, strict=True):
        yield {"row": row} | ({} if key is None else {"id": key}) | line
