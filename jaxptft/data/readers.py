"""Open a file, a folder or a hub's data set as rows of values, without judging what the values mean.

A `Source` knows its columns and yields (row, values) or (row, Problem), where `row` is what a person counts: the line
in a text file (the header is line 1), the position from 1 elsewhere. What spoils a whole file is raised at once.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from jaxptft.data.validate import Problem, Refused, check_string

Row = tuple[int, "list[Any] | Problem"]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet",)
SUFFIXES = (*DELIMITERS, *JSON_LINES, *PARQUET)
MISSING = None
BATCH = 256  # rows of a Parquet file in memory at a time


@dataclass(frozen=True)
class Source:
    """Rows of values behind one name. `rows(columns)` yields the values of those columns, in that order."""

    name: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[Row]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of columns of classes, or lists of them
    images: tuple[str, ...] = ()  # columns of image files, as {"bytes": ..., "path": ...}

    def pieces(self, size: int, columns: Sequence[str]) -> Iterator["Source"]:
        """The same rows in sources of `size` rows each, of which one at a time is in memory; of other columns than
        these they know the names alone."""
        rows = self.rows(columns)
        while piece := list(islice(rows, size)):
            yield replace(self, rows=partial(_chosen, columns, piece))


def given_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> Source:
    """Rows in memory that all have the keys of the first; they count from 1."""
    columns = tuple(rows[0])
    values: list[Row] = [(number, list(row.values())) for number, row in enumerate(rows, start=1)]
    return Source(name, columns, partial(_chosen, columns, values))


def _chosen(columns: Sequence[str], piece: Sequence[Row], wanted: Sequence[str]) -> Iterator[Row]:
    places = [columns.index(name) for name in wanted]
    for number, values in piece:
        yield number, values if isinstance(values, Problem) else [values[place] for place in places]


def open_delimited(path: Path, delimiter: str) -> Source:
    """CSV, or TSV. In a TSV file a quote is a character like any other, as in GLUE's files.

    Lines without any character are not rows. The file is read anew each time its rows are, one at a time.
    """
    line, header = next(_records(path, delimiter), (0, None))
    if header is None:
        raise ValueError(f"{path}: is empty, expected a header and rows")
    if isinstance(header, Problem):
        raise ValueError(f"{path}, row {line}: the header {header.detail}")
    for name in header:
        try:
            check_string(name)
        except Refused as refused:
            raise ValueError(f"{path}, row {line}: the header {refused.detail}; save the file as UTF-8") from None
    columns = tuple(name.strip() for name in header)

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        places = [columns.index(name) for name in wanted]
        for number, record in islice(_records(path, delimiter), 1, None):
            if isinstance(record, Problem):
                yield number, record
            elif len(record) != len(columns):
                fields = f"{len(record)} field" + ("" if len(record) == 1 else "s")
                detail = f"has {fields} where the header has {len(columns)} ({', '.join(columns)})"
                short = columns[len(record)] if len(record) < len(columns) else None
                yield number, Problem("ragged row", detail, short)
            else:
                yield number, [record[place] for place in places]

    return Source(str(path), columns, rows)


def _records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str] | Problem]]:
    """The lines of a table, the header among them; ValueError where a quote is never closed."""
    # Undecodable bytes are kept as lone surrogates, so that the check of each value can name its row and column.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        while True:
            line = reader.line_num + 1
            limit = csv.field_size_limit(sys.maxsize)  # the whole process's, and others' again between two rows
            try:
                record = next(reader, None)
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    message = f"{path}, row {line}: a quote is opened here and never closed; the rest is unreadable"
                    raise ValueError(message) from None
                record = Problem("broken quoting", f"is not valid CSV ({error})")
            finally:
                csv.field_size_limit(limit)
            if record is None:
                return
            if record:
                yield line, record


def open_json_lines(path: Path) -> Source:
    """One JSON object a line. The columns are all the keys that occur; a row without one of them misses a value.

    The file is read once for its columns, and anew each time its rows are, one at a time.
    """
    columns: dict[str, None] = {}
    first: tuple[int, dict[str, Any] | Problem] | None = None
    for number, record in _objects(path):
        first = first or (number, record)
        if isinstance(record, dict):
            columns.update(dict.fromkeys(record))
    if first is None:
        raise ValueError(f"{path}: is empty, expected one JSON object a line")
    if not columns:
        number, record = first
        detail = record.detail if isinstance(record, Problem) else "is an object without keys"
        raise ValueError(f"{path}, row {number}: {detail}; no row of this file can be read")

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        for number, record in _objects(path):
            yield number, record if isinstance(record, Problem) else [record.get(name, MISSING) for name in wanted]

    return Source(str(path), tuple(columns), rows)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any] | Problem]]:
    """The lines that are not blank; ValueError where the first begins an array."""
    with path.open("rb") as file:
        begun = False
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            if not begun and line.lstrip().startswith(b"["):
                raise ValueError(f"{path}: holds one JSON array, expected one JSON object a line (JSONL)")
            begun = True
            yield number, json_object(line)


def json_object(line: bytes) -> dict[str, Any] | Problem:
    """The object on one line of a JSONL file, or what is wrong with it."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Problem("not UTF-8", f"is not UTF-8 text (byte 0x{line[error.start]:02x} at byte {error.start + 1})")
    if "\0" in text:
        return Problem("NUL byte", f"holds a NUL byte (character {text.index(chr(0)) + 1})")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        cut = " (the line may be cut short)" if not text.rstrip().endswith("}") else ""
        return Problem("invalid JSON", f"is not valid JSON: {error.msg} at character {error.pos + 1}{cut}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        return Problem("invalid JSON", f"is not JSON that can be read: {str(error).splitlines()[0]}")
    if not isinstance(value, dict):
        return Problem("invalid JSON", f"is a JSON {type(value).__name__}, expected an object")
    return value


def open_parquet(path: Path) -> Source:
    """A Parquet file; class names are taken from the metadata that `datasets` writes."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: is empty, expected a Parquet file")
    import pyarrow
    import pyarrow.parquet as parquet

    unreadable = (pyarrow.ArrowException, OSError)
    try:
        with parquet.ParquetFile(path) as file:
            schema, count = file.schema_arrow, file.metadata.num_rows
    except unreadable as error:
        raise ValueError(f"{path}: is not a whole Parquet file ({first_line(error)}); it may be cut short") from None

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        number = 0
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH, columns=list(dict.fromkeys(wanted))):
                    for values in zip(*(_values(batch.column(name)) for name in wanted), strict=True):
                        number += 1
                        yield number, list(values)
        except unreadable as error:
            raise ValueError(f"{path}: its data cannot be read ({first_line(error)}); it may be damaged") from None

    if not count:
        raise ValueError(f"{path}: has no rows")
    features = _declared_features(schema.metadata)
    images = tuple(name for name, feature in features.items() if feature.get("_type") == "Image")
    return Source(str(path), tuple(schema.names), rows, _declared_classes(features), images)


def _values(column: Any) -> list[Any]:
    import pyarrow

    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        # As bytes: Arrow does not check its strings, and one bad one would hide in which row it is.
        column = column.cast(pyarrow.large_binary())
    return column.to_pylist()


def _declared_features(metadata: Mapping[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """What `datasets` says of the columns in a file that it writes."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _declared_classes(features: Mapping[str, dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    # A list of classes wraps what it is a list of.
    inner = {name: feature.get("feature", feature) for name, feature in features.items()}
    try:
        return {
            name: tuple(feature["names"])
            for name, feature in inner.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError):
        return {}


def open_dataset(dataset: Any, name: str) -> Source:
    """A `datasets.Dataset`; columns of a ClassLabel, or of lists of it, bring their class names.

    Images are left as the files they are.
    """
    if not len(dataset):
        raise ValueError(f"{name}: has no rows")
    images = tuple(column for column, feature in dataset.features.items() if type(feature).__name__ == "Image")
    if images:
        from datasets import Image

        for column in images:
            dataset = dataset.cast_column(column, Image(decode=False))
    inner = {column: getattr(feature, "feature", feature) for column, feature in dataset.features.items()}
    declared = {column: tuple(feature.names) for column, feature in inner.items() if hasattr(feature, "names")}

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        plain = dataset.with_format(None).select_columns(list(dict.fromkeys(wanted)))
        number = 0
        for batch in plain.iter(batch_size=1000):
            for values in zip(*(batch[column] for column in wanted), strict=True):
                number += 1
                yield number, list(values)

    return Source(name, tuple(dataset.column_names), rows, declared, images)


def first_line(error: BaseException) -> str:
    """What an error of another library says, on one line of reasonable length."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
