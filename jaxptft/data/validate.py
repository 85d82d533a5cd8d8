"""What may be wrong with one row, said so that a person finds it: the file, the row as editors count, the column."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

OnBadRow = Literal["error", "skip"]
EXAMPLES = 5


class Problem(NamedTuple):
    """One thing wrong with one row: `reason` is its kind, `detail` the sentence that explains it."""

    reason: str
    detail: str
    column: str | None = None


class Refused(Exception):
    """Carries a Problem from a check on one value to the loop that knows the file and the row."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Report:
    """What reading a file came to: how many rows it has, how many were left out, why, and the first few of them."""

    rows: int = 0
    skipped: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()

    def __add__(self, other: "Report") -> "Report":
        """Of both, the other behind this one."""
        reasons = Counter(self.by_reason) + Counter(other.by_reason)
        examples = (*self.examples, *other.examples)[:EXAMPLES]
        return Report(self.rows + other.rows, self.skipped + other.skipped, dict(reasons), examples)

    def __str__(self) -> str:
        if not self.skipped:
            return f"{self.rows} rows, none skipped"
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.by_reason.items()))
        return f"{self.rows} rows, {self.skipped} skipped ({reasons}); the first: {self.examples[0]}"


class EveryRowRefused(ValueError):
    """A source has rows, and none of them is sound."""

    def __init__(self, source: str, report: Report):
        super().__init__(f"{source}: every row was refused; {report}")
        self.source, self.report = source, report


class Tally:
    """Counts rows and problems while a file is read, and raises at the first problem unless told to skip."""

    def __init__(self, source: str, on_bad_row: OnBadRow):
        if on_bad_row not in ("error", "skip"):
            raise ValueError(f"on_bad_row is {on_bad_row!r}; choose 'error' or 'skip'")
        self.source = source
        self.on_bad_row = on_bad_row
        self.rows = 0
        self.reasons: Counter[str] = Counter()
        self.examples: list[str] = []

    def refuse(self, row: int, problem: Problem) -> None:
        message = where(self.source, row, problem.column) + ": " + problem.detail
        if self.on_bad_row == "error":
            raise ValueError(f"{message}; correct the row, or skip such rows with on_bad_row='skip'")
        self.reasons[problem.reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(message)

    def report(self) -> Report:
        return Report(self.rows, self.reasons.total(), dict(self.reasons), tuple(self.examples))


def where(source: str, row: int, column: str | None = None) -> str:
    """The place in words: `train.csv, row 7, column 'text'`."""
    return f"{source}, row {row}" + (f", column {column!r}" if column is not None else "")


def shown(value: object) -> str:
    """A value for a message: on one line, and not longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_string(value: str) -> str:
    """Refuse a string with NUL characters, or with bytes or surrogates that are not Unicode text."""
    if "\0" in value:
        raise Refused("NUL byte", f"holds a NUL byte (character {value.index(chr(0)) + 1})")
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        # Files are decoded with surrogateescape, which keeps an undecodable byte b as U+DC00 + b.
        found = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"surrogate U+{code:04X}"
        raise Refused("not UTF-8", f"is not UTF-8 text ({found} at character {error.start + 1})") from None
    return value


def check_text(value: Any) -> str:
    """The value as text, or Refused: missing, NaN, of another type, empty, not Unicode."""
    if value is None:
        raise Refused("missing value", "has no value")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, float) and math.isnan(value):
        raise Refused("NaN", "is NaN, expected text")
    if not isinstance(value, str):
        raise Refused("wrong type", f"is {shown(value)} ({type(value).__name__}), expected text")
    if not value or value.isspace():
        raise Refused("empty text", "is empty")
    return check_string(value)
