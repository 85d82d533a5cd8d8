"""Raw text as a stream of documents, from files, folders, globs, JSONL, Parquet and the hub.

Never more than one document (of Parquet: a few hundred rows) is in memory, so what is one document matters: by default
a whole text file, and each row of a table.
"""

import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Literal, get_args

from jaxptft.data import readers
from jaxptft.data.columns import Columns, infer_columns
from jaxptft.data.corpus_files import Piece, find_pieces
from jaxptft.data.readers import first_line
from jaxptft.data.sources import load
from jaxptft.data.validate import EXAMPLES, Problem, Refused, Report, check_text, where

Documents = Literal["file", "line", "blank-line"]
OnBadDocument = Literal["error", "skip"]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class DocumentTally:
    """Counts documents while a corpus is read, and raises at the first bad one unless told to skip.

    A document without text is no document, and is not counted.
    """

    def __init__(self, on_bad_document: OnBadDocument):
        if on_bad_document not in get_args(OnBadDocument):
            raise ValueError(f"on_bad_document is {on_bad_document!r}; choose 'error' or 'skip'")
        self.on_bad_document = on_bad_document
        self.documents = 0
        self.reasons: Counter[str] = Counter()
        self.examples: list[str] = []

    def refuse(self, place: str, reason: str, detail: str) -> None:
        message = f"{place}: {detail}"
        if self.on_bad_document == "error":
            raise ValueError(f"{message}; correct it, or skip such documents with on_bad_document='skip'")
        self.reasons[reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(message)

    def report(self) -> Report:
        skipped = self.reasons.total()
        return Report(self.documents + skipped, skipped, dict(self.reasons), tuple(self.examples))


def read_corpus(
    sources: Any,
    *,
    text_column: str | None = None,
    documents: Documents = "file",
    on_bad_document: OnBadDocument = "error",
    suffixes: Sequence[str] = (),
    split: str | None = None,
    tally: DocumentTally | None = None,
) -> Iterator[str]:
    """The documents of a corpus, one after the other, in an order that the names of the files decide.

    Args:
      sources: one or several of: a text file (plain or .gz; UTF-8), a .jsonl or .parquet file, a folder of such files
        (and of theirs), a glob such as `texts/**/*.rst`, a folder saved by `datasets`, a hub name such as
        `owner/name/config`, which is streamed.
      text_column: the column of tables that holds the text. None: `text`, or told from the names of the columns.
      documents: what is one document in a text file: all of it, each line, or what stands between blank lines.
      on_bad_document: "error" raises at the first document that is not text; "skip" leaves such documents out.
      suffixes: of text files in folders, besides .txt, .text, .md and .rst.
      split: of data sets that have several. None: `train`.
      tally: counts what is read and left out. None: nobody wants to know.

    Raises:
      FileNotFoundError: there is no such file, folder or data set, or a glob matches nothing.
      ValueError: a document is bad (names file, line, and byte or column), or there is no document at all.
    """
    if documents not in get_args(Documents):
        raise ValueError(f"documents is {documents!r}; choose one of {', '.join(get_args(Documents))}")
    tally = tally or DocumentTally(on_bad_document)
    pieces = find_pieces(sources, suffixes)
    return read_pieces(pieces, tally, text_column=text_column, documents=documents, split=split)


def read_pieces(
    pieces: Sequence[Piece], tally: DocumentTally, *, text_column: str | None, documents: Documents, split: str | None
) -> Iterator[str]:
    """The documents of the pieces, in their order; ValueError at the end when there was none."""
    for piece in pieces:
        if piece.kind in ("text", "json"):
            found = _read_file(piece, tally, text_column, documents)
        else:
            found = _read_rows(piece, tally, text_column, split)
        for text in found:
            tally.documents += 1
            yield text
    if not tally.documents:
        names = ", ".join(piece.name for piece in pieces[:3]) + (", ..." if len(pieces) > 3 else "")
        told = f"; {tally.report()}" if tally.reasons else ""
        raise ValueError(f"{names}: there is no text in the corpus{told}")


def _read_file(piece: Piece, tally: DocumentTally, text_column: str | None, documents: Documents) -> Iterator[str]:
    assert piece.path is not None
    reader: Any = gzip.open if piece.gzip else open
    with reader(piece.path, "rb") as file:
        try:
            if piece.kind == "text":
                yield from _texts(piece.name, file, tally, documents)
            else:
                yield from _json_texts(piece.name, file, tally, text_column)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            detail = f"cannot be unpacked ({first_line(error)}); it may be damaged or cut short"
            tally.refuse(piece.name, "damaged file", detail)


def _texts(name: str, file: IO[bytes], tally: DocumentTally, documents: Documents) -> Iterator[str]:
    for raw, line, offset in _raw_documents(file, documents):
        if offset == 0 and raw.startswith(BYTE_ORDER_MARK):
            raw, offset = raw[len(BYTE_ORDER_MARK) :], len(BYTE_ORDER_MARK)
        bad = raw.find(b"\0")
        reason, detail = "NUL byte", "is a NUL byte, which no text has"
        try:
            text = raw.decode("utf-8") if bad < 0 else ""
        except UnicodeDecodeError as error:
            bad = error.start
            reason, detail = "not UTF-8", f"is 0x{raw[bad]:02x}, which is not UTF-8 text here"
        if bad >= 0:
            line += raw.count(b"\n", 0, bad)
            tally.refuse(f"{name}, line {line}, byte {offset + bad + 1}", reason, detail)
        elif text := text.replace("\r\n", "\n").replace("\r", "\n").strip():
            yield text


def _raw_documents(file: IO[bytes], documents: Documents) -> Iterator[tuple[bytes, int, int]]:
    """The bytes of each document, with the line (from 1) and the byte (from 0) at which it begins."""
    if documents == "file":
        yield file.read(), 1, 0
        return
    gathered = io.BytesIO()
    first = offset = start = 0
    for number, line in enumerate(file, start=1):
        if not gathered.tell():
            first, start = number, offset
        offset += len(line)
        if documents == "line":
            yield line, first, start
        elif line.strip():
            gathered.write(line)
        elif gathered.tell():
            yield gathered.getvalue(), first, start
            gathered = io.BytesIO()
    if gathered.tell():
        yield gathered.getvalue(), first, start


def _json_texts(name: str, file: IO[bytes], tally: DocumentTally, text_column: str | None) -> Iterator[str]:
    column = text_column
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if not line.strip():
            continue
        record = readers.json_object(line)
        if isinstance(record, Problem):
            tally.refuse(where(name, number), record.reason, record.detail)
            continue
        column = column or _text_column(list(record), where(name, number))
        if column not in record:
            found = ", ".join(map(repr, record)) or "none"
            tally.refuse(where(name, number), "missing column", f"has no column {column!r}; columns found: {found}")
            continue
        yield from _checked(name, number, column, record[column], tally)


def _read_rows(piece: Piece, tally: DocumentTally, text_column: str | None, split: str | None) -> Iterator[str]:
    if piece.kind == "hub":
        yield from _hub_texts(piece, tally, text_column, split)
        return
    try:
        source = readers.open_parquet(piece.path) if piece.kind == "parquet" and piece.path else _saved(piece, split)
        column = _text_column(source.columns, piece.name, text_column)
        for number, values in source.rows([column]):
            assert not isinstance(values, Problem)  # of text files alone
            yield from _checked(piece.name, number, column, values[0], tally)
    except ValueError as error:  # of the whole file: damaged, without rows, without the column
        if tally.on_bad_document == "error":
            raise
        tally.refuse(piece.name, "unreadable file", first_line(error).removeprefix(f"{piece.name}: "))


def _saved(piece: Piece, split: str | None) -> readers.Source:
    found = load(piece.path)[1]
    return readers.open_dataset(_chosen(found, split, piece.name) if isinstance(found, Mapping) else found, piece.name)


def _hub_texts(piece: Piece, tally: DocumentTally, text_column: str | None, split: str | None) -> Iterator[str]:
    column = text_column
    number = 0
    try:
        rows = iter(_chosen(piece.hub.as_streaming_dataset(), split, piece.name))
        while (row := next(rows, None)) is not None:
            number += 1
            if number == 1:
                column = _text_column(list(row), piece.name, text_column)
            yield from _checked(piece.name, number, str(column), row[column], tally)
    except (ValueError, FileNotFoundError):
        raise
    except Exception as error:  # the hub and the network fail in many ways
        raise ConnectionError(f"{piece.name}: the hub broke off after row {number} ({first_line(error)})") from None


def _chosen(splits: Mapping[str, Any], split: str | None, name: str) -> Any:
    wanted = split or (next(iter(splits)) if len(splits) == 1 else "train")
    if wanted not in splits:
        raise ValueError(f"{name}: there is no split {wanted!r}; splits found: {', '.join(map(repr, splits))}")
    return splits[wanted]


def _text_column(found: Sequence[str], name: str, chosen: str | None = None) -> str:
    if chosen is None and "text" in found:
        return "text"
    return str(infer_columns(found, name, chosen=Columns(text=chosen, pair=""), labelled=False).text)


def _checked(name: str, row: int, column: str, value: Any, tally: DocumentTally) -> Iterator[str]:
    try:
        yield check_text(value).replace("\r\n", "\n").replace("\r", "\n").strip()
    except Refused as refused:
        if refused.reason != "empty text":
            tally.refuse(where(name, row, column), refused.reason, refused.detail)
