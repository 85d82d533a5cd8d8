"""CoNLL files as rows: a line is a word and what is known of it, in columns; a blank line ends a sentence."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from jaxptft.data.readers import JSON_LINES, PARQUET, Row, Source
from jaxptft.data.sources import open_source
from jaxptft.data.split import pick_split
from jaxptft.data.validate import Problem

DOCUMENT = "-DOCSTART-"


def open_tagged(source: Any, split: str | None = None, *, tables: tuple[str, ...] = ()) -> Source:
    """Open a source of sentences: JSONL, Parquet and data sets as `open_source` does, any other file as CoNLL.

    Args:
      tables: suffixes of files that are tables with a header, as those of texts are.
    """
    if isinstance(source, Source):
        return source
    path = Path(source).expanduser() if isinstance(source, (str, Path)) else None
    if path is None or not path.is_file() or path.suffix.lower() in (*JSON_LINES, *PARQUET):
        return open_source(source, split)
    if path.suffix.lower() in tables:
        return open_source(source, split)
    if path.suffix.lower() == ".csv":
        raise ValueError(f"{path}: a .csv file holds no sentences of words; expected CoNLL columns, JSONL or Parquet")
    if split is not None:
        raise ValueError(f"{path}: has no splits, and split {split!r} was asked of it")
    return open_conll(path)


def open_conll(path: Path) -> Source:
    """A CoNLL file. Its rows are sentences, known by their first line; its columns are "1", "2" and so forth, and the
    value of each is a list, with an entry a word.

    Columns stand between tabs where the first line of a sentence has one, or else between spaces. Lines that begin
    with -DOCSTART-, and comments (# and no tab, in a file with tabs), are no words. A line with more or fewer columns
    than the first spoils its sentence. The file is read anew each time its rows are, one sentence at a time.
    """
    filled = (line for line in _lines(path) if line.strip() and not line.startswith(DOCUMENT))
    first = next(filled, None)
    if first is None:
        raise ValueError(f"{path}: holds no word, expected a word and its tag a line")
    if first.startswith("#"):
        first = next((line for line in filled if not line.startswith("#")), first)
    tabs = "\t" in first
    width = len(_fields(first, tabs))

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        places = [int(name) - 1 for name in wanted]
        for number, columns in _sentences(path, tabs, width):
            yield number, columns if isinstance(columns, Problem) else [columns[place] for place in places]

    return Source(str(path), tuple(str(column + 1) for column in range(width)), rows)


def _lines(path: Path) -> Iterator[str]:
    # Undecodable bytes are kept as lone surrogates, so that the check of each word can name its place.
    with path.open("rb") as file:
        for number, line in enumerate(file):
            text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            yield text if number else text.removeprefix("\ufeff")


def _sentences(path: Path, tabs: bool, width: int) -> Iterator[tuple[int, list[list[str]] | Problem]]:
    words: list[list[str]] = []
    begin, problem = 0, None
    for number, line in enumerate(chain(_lines(path), [""]), start=1):
        if not line.strip() or line.startswith(DOCUMENT):
            if words:
                yield problem or (begin, [list(column) for column in zip(*words, strict=True)])
            words, problem = [], None
            continue
        if tabs and line.startswith("#") and "\t" not in line:
            continue
        fields = _fields(line, tabs)
        begin = begin if words else number
        if len(fields) != width and problem is None:
            has = f"has {len(fields)} column{'' if len(fields) == 1 else 's'}"
            problem = number, Problem("ragged row", f"{has} where the file's first word has {width}")
        words.append((fields + [""] * width)[:width])


def _fields(line: str, tabs: bool) -> list[str]:
    # Other white space (a no-break space) may be a word's own.
    return line.split("\t") if tabs else [field for field in line.strip(" ").split(" ") if field]


def pick_tagged_split(source: Any, wanted: str | None = None) -> str | None:
    """`pick_split`, for sources that `open_tagged` opens: a file has no splits to choose from."""
    if isinstance(source, (str, Path)) and Path(source).expanduser().is_file():
        return None
    return pick_split(source, wanted)
