"""Tables of rows with faults put into sound ones, at drawn places: what `read_table` says of them and what it counts.

A table is CSV, TSV, JSONL or Parquet, of texts or pairs, with classes, numbers or sets of labels. One to three of its
rows get a fault. Read with on_bad_row="error" it must raise one line that names the file, the first bad row as an
editor counts it, and the column; with "skip" it must give every sound row as it was written, and count each fault by
its kind. A tenth of the draws spoil the whole file instead, which no way of reading may pass over.
"""

import json
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from trials import Trials, main

TRIALS = {"fast": 600, "full": 10_000}
TEXTS = ("text", "sentence", "review")
PAIRS = ("sentence2", "hypothesis", "passage")
LABELS = ("label", "class", "sentiment")
WORDS = ("a", "dull", "film", "é", "三国", "no", "1", "it's", "--", "🎬")
DELIMITER = ";"  # between the labels of a set
DEEP = "[" * 100_000
MISSING = object()  # a key that a JSON object lacks

# What a field of a delimited file is made, and the kind of problem that this is; by what the field holds.
_UNREADABLE = {
    "a\udce9b": "not UTF-8",
    "\udce4\udcb8": "not UTF-8",
    "\udced\udca0\udc80": "not UTF-8",
    "a\0": "NUL byte",
}
_TEXT = {"": "empty text", "   ": "empty text", "\u3000\u00a0": "empty text", **_UNREADABLE}
_CLASS = {
    "": "missing value", "  ": "missing value", "nan": "NaN", "NaN": "NaN", "0.5": "wrong type", "-inf": "wrong type",
    "1e5": "wrong type", "-1": "unlabelled",
}  # fmt: skip
_NUMBER = {
    "": "missing value", " ": "missing value", "nan": "NaN", "inf": "infinite", "1e39": "infinite",
    "-1e400": "infinite", "three": "not a number", "1_0": "not a number", "0x1": "not a number",
}  # fmt: skip
_SET = {"a;;b": "missing value", ";": "missing value", "[a]": "wrong type", "nan": "NaN", "a;0.5": "wrong type"}
_SET |= {"-1": "unlabelled"}
FIELDS = {"text": _TEXT, "class": {**_CLASS, **_UNREADABLE}, "number": {**_NUMBER, **_UNREADABLE}}
FIELDS |= {"set": {**_SET, **_UNREADABLE}}

# The same of a value in JSON; pairs, for not every value can be a key.
VALUES: dict[str, list[tuple[Any, str]]] = {
    "text": [
        (MISSING, "missing value"), (None, "missing value"), (math.nan, "NaN"), (7, "wrong type"), (True, "wrong type"),
        (["a"], "wrong type"), ({}, "wrong type"), (math.inf, "wrong type"), ("", "empty text"), (" \n", "empty text"),
        ("a\0", "NUL byte"), ("a\ud800", "not UTF-8"), ("\udfff", "not UTF-8"),
    ],
    "class": [
        (MISSING, "missing value"), (None, "missing value"), ("", "missing value"), (math.nan, "NaN"), ("nan", "NaN"),
        (0.5, "wrong type"), (math.inf, "wrong type"), ([], "wrong type"), ({"a": 1}, "wrong type"), (-1, "unlabelled"),
        ("-1", "unlabelled"), ("0.5", "wrong type"), ("a\0", "NUL byte"), ("\ud800", "not UTF-8"),
    ],
    "number": [
        (MISSING, "missing value"), (None, "missing value"), ("", "missing value"), (math.nan, "NaN"), ("nan", "NaN"),
        (-math.inf, "infinite"), (1e39, "infinite"), (10**400, "infinite"), (True, "wrong type"), ([1], "wrong type"),
        ("x", "not a number"), ("1_0", "not a number"),
    ],
    "set": [
        (MISSING, "missing value"), (None, "missing value"), ([""], "missing value"), ([None], "missing value"),
        ([0.5], "wrong type"), (5, "wrong type"), ({}, "wrong type"), (["a", math.nan], "NaN"), ([-1], "unlabelled"),
        ("a;;b", "missing value"), (["a\0"], "NUL byte"), ([["a"]], "wrong type"),
    ],
}  # fmt: skip
LINES = {
    "cut": "invalid JSON", '{"text": "a",}': "invalid JSON", "{} {}": "invalid JSON", "[1]": "invalid JSON",
    "null": "invalid JSON", "7": "invalid JSON", '{"text": ' + DEEP: "invalid JSON", "'a'": "invalid JSON",
    '{"text": ' + "9" * 5000 + "}": "invalid JSON", '{"text": "\udce9"}': "not UTF-8", '{"text": "\0"}': "NUL byte",
}  # fmt: skip
COLUMNAR: dict[str, list[tuple[Any, str]]] = {
    "text": [(None, "missing value"), (b"", "empty text"), (b" ", "empty text"), (b"a\0", "NUL byte")],
    "class": [(None, "missing value"), (b"", "missing value"), (b"nan", "NaN"), (b"0.5", "wrong type")],
    "number": [(None, "missing value"), (math.nan, "NaN"), (math.inf, "infinite"), (-1e39, "infinite")],
    "set": [(None, "missing value"), ([""], "missing value"), (["0.5"], "wrong type"), (["-1"], "unlabelled")],
}
for _kind in ("text", "class"):
    COLUMNAR[_kind] += [(b"a\xff", "not UTF-8"), (b"\xe4\xb8", "not UTF-8")]
COLUMNAR["class"] += [(b"-1", "unlabelled"), (b"\0", "NUL byte")]


class Fault(NamedTuple):
    """Where a fault lies, and its kind; `what` names the fault itself."""

    row: int
    column: str | None
    reason: str
    what: str


class Drawn(NamedTuple):
    """A file and what reading it must come to."""

    content: bytes
    kind: str  # of its label column
    sound: list[tuple[str, ...]]  # texts of the sound rows
    faults: list[Fault]


def _pick(rng: np.random.Generator, of: Any) -> Any:
    of = list(of)
    return of[int(rng.integers(len(of)))]


def _sound_row(rng: np.random.Generator, kind: str, number: int, *, texts: int, lines: bool) -> list[Any]:
    """Texts and a label; the first two rows have unlike labels."""
    words = [" ".join(_pick(rng, WORDS) for _ in range(int(rng.integers(1, 6)))) for _ in range(texts)]
    if lines and rng.random() < 0.3:
        words[0] += '\nof two lines, with "quotes"'
    label = "ab"[number] if number < 2 else _pick(rng, "ab")
    labels: dict[str, Any] = {"class": label, "number": str(round(rng.normal(), 3)), "set": label}
    return [*words, labels[kind]]


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"' if any(mark in value for mark in ',"\n') else value


def delimited(rng: np.random.Generator, columns: list[str], kind: str, bad: set[int], rows: int, mark: str) -> Drawn:
    """A CSV or TSV file; its rows are counted by lines, of which the header is the first."""
    end = _pick(rng, ("\n", "\r\n"))
    lines, line = [mark.join(columns)], 2
    sound: list[tuple[str, ...]] = []
    faults: list[Fault] = []
    for number in range(rows):
        if rng.random() < 0.1:
            lines.append("")  # no row, but a line
            line += 1
        row = _sound_row(rng, kind, len(sound), texts=len(columns) - 1, lines=mark == ",")
        fields = [_quoted(value) if mark == "," else value for value in row]
        if number not in bad:
            sound.append(tuple(row[:-1]))
        else:
            way = int(rng.integers(5))
            if way == 0:
                fields.insert(int(rng.integers(len(fields))), "more")
                faults.append(Fault(line, None, "ragged row", "too many fields"))
            elif way == 1:
                fields = fields[: int(rng.integers(1, len(fields)))]
                faults.append(Fault(line, columns[len(fields)], "ragged row", "too few fields"))
            elif way == 2 and mark == ",":
                fields[int(rng.integers(len(fields)))] = '"a" b'
                fields = [field.replace("\n", " ") for field in fields]  # what follows the quote is not read as fields
                faults.append(Fault(line, None, "broken quoting", "text after a quote"))
            else:
                place = int(rng.integers(len(fields)))
                role = kind if place == len(columns) - 1 else "text"
                value, reason = _pick(rng, FIELDS[role].items())
                fields[place] = value
                faults.append(Fault(line, columns[place], reason, f"{role} {value!r}"))
        lines.append(mark.join(fields))
        line += 1 + lines[-1].count("\n")
    content = end.join(lines) + end * int(rng.integers(2))
    return Drawn(content.encode("utf-8", "surrogateescape"), kind, sound, faults)


def json_lines(rng: np.random.Generator, columns: list[str], kind: str, bad: set[int], rows: int) -> Drawn:
    """A JSONL file; its rows are counted by lines, blank ones too."""
    lines: list[str] = []
    sound: list[tuple[str, ...]] = []
    faults: list[Fault] = []
    for number in range(rows):
        lines += [""] * (rng.random() < 0.1)
        row = _sound_row(rng, kind, len(sound), texts=len(columns) - 1, lines=True)
        record = dict(zip(columns, row, strict=True))
        if kind == "set" and rng.random() < 0.5:
            record[columns[-1]] = [row[-1]]
        line = json.dumps(record)
        if number not in bad:
            sound.append(tuple(row[:-1]))
        elif rng.random() < 0.3:
            # An array in the first line is said of the whole file, which then is JSON.
            what, reason = _pick(rng, ((what, why) for what, why in LINES.items() if what != "[1]" or any(lines)))
            line = line[: int(rng.integers(1, len(line) - 1))] if what == "cut" else what
            faults.append(Fault(len(lines) + 1, None, reason, f"line {what[:20]!r}"))
        else:
            place = int(rng.integers(len(columns)))
            role = kind if place == len(columns) - 1 else "text"
            value, reason = _pick(rng, VALUES[role])
            record[columns[place]] = value
            line = json.dumps({name: one for name, one in record.items() if one is not MISSING})
            shown = "no key" if value is MISSING else repr(value)[:20]
            faults.append(Fault(len(lines) + 1, columns[place], reason, f"{role} {shown}"))
        lines.append(line)
    return Drawn("\n".join(lines).encode("utf-8", "surrogateescape"), kind, sound, faults)


def parquet(rng: np.random.Generator, columns: list[str], kind: str, bad: set[int], rows: int) -> Drawn:
    """A Parquet file; its rows are counted from 1."""
    import pyarrow
    import pyarrow.parquet

    table: list[list[Any]] = []
    sound: list[tuple[str, ...]] = []
    faults: list[Fault] = []
    for number in range(rows):
        row = _sound_row(rng, kind, len(sound), texts=len(columns) - 1, lines=True)
        values: list[Any] = [value.encode() for value in row]
        values[-1] = {"class": values[-1], "number": float(row[-1]) if kind == "number" else 0.0, "set": [row[-1]]}[
            kind
        ]
        if number not in bad:
            sound.append(tuple(row[:-1]))
        else:
            place = int(rng.integers(len(columns)))
            role = kind if place == len(columns) - 1 else "text"
            values[place], reason = _pick(rng, COLUMNAR[role])
            faults.append(Fault(number + 1, columns[place], reason, f"{role} {values[place]!r}"))
        table.append(values)
    types = [pyarrow.binary()] * (len(columns) - 1)
    types.append({"class": pyarrow.binary(), "number": pyarrow.float64(), "set": pyarrow.list_(pyarrow.string())}[kind])
    arrays = []
    for found, kind_of in zip(zip(*table, strict=True), types, strict=True):
        array = pyarrow.array(list(found), kind_of)
        if kind_of == pyarrow.binary():  # called text without a look at it, as writers that do not check do
            array = pyarrow.Array.from_buffers(pyarrow.string(), len(array), array.buffers())
        arrays.append(array)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(arrays, names=columns), sink, row_group_size=int(rng.integers(1, 5)))
    return Drawn(sink.getvalue().to_pybytes(), kind, sound, faults)


def spoilt(rng: np.random.Generator, suffix: str, content: bytes) -> tuple[str, bytes]:
    """A file without a row that can be read, and what was done to it."""
    if suffix == "parquet":
        cut = int(rng.integers(0, len(content)))
        return _pick(
            rng, [("cut", content[:cut]), ("noise", rng.bytes(200)), ("end cut", content[:-1]), ("empty", b"")]
        )
    fates = [("empty", b""), ("blank", b"\n\n  \n"), ("mark alone", b"\xef\xbb\xbf"), ("NUL", bytes(64))]
    fates += [("UTF-16", content.decode("utf-8", "replace").encode("utf-16")), ("noise", b"\xff\xfe" + rng.bytes(200))]
    fates += [("no column", b'{"a": 1}\n{"a": 2}' if suffix == "jsonl" else b"a\n1\n2\n")]
    return _pick(rng, fates)


def _drawn(rng: np.random.Generator, suffix: str) -> Drawn:
    kind = _pick(rng, ("class", "class", "number", "set"))
    columns = [_pick(rng, TEXTS), *([_pick(rng, PAIRS)] if rng.random() < 0.3 else []), _pick(rng, LABELS)]
    rows = int(rng.integers(3, 16)) + 2
    bad = set(rng.choice(rows, int(rng.integers(1, 4)), replace=False).tolist())
    if suffix in ("csv", "tsv"):
        return delimited(rng, columns, kind, bad, rows, {"csv": ",", "tsv": "\t"}[suffix])
    return (json_lines if suffix == "jsonl" else parquet)(rng, columns, kind, bad, rows)


def _problem(path: Path, drawn: Drawn) -> str:
    """What reading the file came to that it should not; "" for nothing."""
    from jaxptft import data

    target = {"class": data.OneClass(), "number": data.Number(), "set": data.LabelSet(delimiter=DELIMITER)}[drawn.kind]
    first = drawn.faults[0]
    place = f"{path}, row {first.row}" + (f", column {first.column!r}" if first.column else "") + ": "
    if said := _refusal(path, place, target=target):
        return said
    try:
        table = data.read_table(path, on_bad_row="skip", target=target)
    except Exception as error:
        return f"skipping raised {type(error).__name__}: {error}"
    texts = [tuple(row) for row in zip(table.texts, *([table.pairs] if table.pairs else []), strict=True)]
    if texts != drawn.sound:
        return f"of the sound rows {len(drawn.sound)} were written, {len(texts)} read, or others"
    expected = Counter(fault.reason for fault in drawn.faults)
    counts = (table.report.rows, table.report.skipped, table.report.by_reason)
    if counts != (len(drawn.sound) + len(drawn.faults), len(drawn.faults), dict(expected)):
        return f"counted {counts}, expected {dict(expected)} of {len(drawn.sound) + len(drawn.faults)}"
    return ""


def _refusal(path: Path, place: str, **options: Any) -> str:
    from jaxptft import data

    try:
        data.read_table(path, **options)
    except ValueError as error:
        message = str(error)
        if type(error) is not ValueError or len(message.splitlines()) != 1 or len(message) > 1000:
            return f"{type(error).__name__}, {len(message)} characters: {message}"
        return "" if message.startswith(place) else f"said {message!r}, expected {place!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"read without an error, expected {place!r}"


def bad_rows(trials: Trials, lane: str) -> None:
    """Faults in rows, and whole files that are spoilt."""
    kinds: set[str] = set()
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(TRIALS[lane]):
            rng = np.random.default_rng((23, number))
            suffix = ("csv", "tsv", "jsonl", "parquet")[number % 4]
            path = Path(temporary) / f"train.{suffix}"
            drawn = _drawn(rng, suffix)
            if rng.random() < 0.1:
                what, content = spoilt(rng, suffix, drawn.content)
                path.write_bytes(content)
                told = [_refusal(path, str(path), on_bad_row=way) for way in ("error", "skip")]
                kinds.add(f"{suffix}: whole file, {what}")
                trials.check(not any(told), f"trial {number} ({what} {suffix}): {told}", of=f"{suffix}, whole file")
                continue
            path.write_bytes(drawn.content)
            kinds |= {f"{suffix}: {fault.what}" for fault in drawn.faults}
            problem = _problem(path, drawn)
            said = f"trial {number} ({suffix}, {drawn.kind}, {drawn.faults}): {problem}"
            trials.check(not problem, said, of=suffix)
    trials.facts["distinct faults"] = len(kinds)


if __name__ == "__main__":
    sys.exit(main({"bad_rows": bad_rows}, script=__file__))
