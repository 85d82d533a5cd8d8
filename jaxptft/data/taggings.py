"""Sentences whose words carry tags (entities, parts of speech), or whose tags are to be found, every row checked."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from jaxptft.data.cache import fingerprint
from jaxptft.data.readers import Source
from jaxptft.data.tables import check_key
from jaxptft.data.tag_schemes import (
    OUTSIDE,
    PREFIXES,
    Scheme,
    all_tags,
    convert_tags,
    detect_scheme,
    loose_tags,
    split_tag,
)
from jaxptft.data.tagged_files import open_tagged
from jaxptft.data.validate import EveryRowRefused, OnBadRow, Problem, Refused, Report, Tally, check_text, shown, where
from jaxptft.data.word_split import split_words

TOKENS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "ner", "labels", "iob_tags")
TEXT = ("text", "sentence", "content", "document")


@dataclass(frozen=True)
class TagColumns:
    """Names of columns; None: tell it from the names found. In a CoNLL file they are numbers: "1" is the first, which
    holds the words unless told otherwise, and "-1" the last, which holds the tags. `text` is for rows of plain text."""

    tokens: str | None = None
    tags: str | None = None
    text: str | None = None
    id: str | None = None


@dataclass(frozen=True, eq=False)
class Taggings:
    """Checked sentences. `tags[i][j]` is the tag of `words[i][j]`; `rows[i]` is where sentence i stands in `source`.

    Where the rows were plain text, word j of sentence i is the slice `places[i][j]` of `texts[i]`.
    """

    words: list[list[str]]
    tags: list[list[str]] | None
    names: tuple[str, ...]  # every tag there is, in the order of a model's outputs
    scheme: Scheme | None  # of the tags; None where they are not entities'
    loose: int  # words whose tag was part of no entity, though it was not O
    report: Report
    source: str
    rows: Int[np.ndarray, " sentences"]
    texts: list[str] | None = None
    places: list[list[tuple[int, int]]] | None = None
    keys: list[Any] | None = None  # values of the id column, where one was chosen

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the words, tags and names, in order; not of where they came from."""
        parts = ["taggings 1", str(self.scheme), str(len(self.names)), *self.names]
        for sentences in (self.words, self.tags or []):
            for sentence in sentences:
                parts += [str(len(sentence)), *sentence]
        return fingerprint(parts)

    def select(self, indices: Int[np.ndarray, " chosen"]) -> "Taggings":
        """The sentences at these positions, in this order."""
        chosen = np.asarray(indices).tolist()

        def of(values: Any) -> Any:
            return None if values is None else [values[index] for index in chosen]

        lists = {name: of(getattr(self, name)) for name in ("words", "tags", "texts", "places", "keys")}
        return replace(self, **lists, rows=self.rows[chosen])


def read_taggings(
    source: Any,
    *,
    columns: TagColumns | None = None,
    scheme: Scheme | Literal["detect"] | None = "detect",
    prefer: Scheme | None = None,
    learn: Scheme | None = None,
    names: Sequence[str] | None = None,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
) -> Taggings:
    """Read tagged sentences: a CoNLL file, or lists of words and of tags in JSONL, Parquet, a folder saved by
    `datasets` or a hub's data set (whose tags may be numbers, where it declares their names).

    Args:
      columns: which columns hold what; those that are not given are told from the names found.
      scheme: how the file's tags mark entities; None: they mark none, and each stands for itself.
      prefer: the scheme to find first where the tags fit several.
      learn: the scheme to turn the tags into. None: the file's own, but IOB2 for IOB1, whose tags depend on those of
        the entity before.
      names: the tags known from training, in order; any other is an error, also when skipping. None: all tags of the
        scheme for the types found here.
      split: which split of a source that has several.
      on_bad_row: "error" raises at the first bad sentence; "skip" leaves them out and counts them in the report.

    Raises:
      FileNotFoundError: there is no such source.
      ValueError: a row, a column or the whole file is bad; names file, row and column.
    """
    opened = open_tagged(source, split)
    chosen = columns or TagColumns()
    tokens = _settle(opened, "words", chosen.tokens, TOKENS, "1")
    column = _settle(opened, "tags", chosen.tags, TAGS, "-1")
    if tokens == column:
        raise ValueError(f"{opened.name}: the words and the tags are both in column {tokens!r}; choose another")
    declared = opened.class_names.get(column)
    check = _tag_check(declared, "BIES" if scheme == "detect" else PREFIXES[scheme] if scheme else None)

    def sentence(values: list[Any]) -> tuple[list[str], list[str]]:
        words, tags = _words(values[0]), _list(values[1], "tags", 1)
        if len(words) != len(tags):
            raise _RefusedAt("ragged row", f"has {len(tags)} tags for {len(words)} words, expected as many", 1)
        return words, _each(tags, "tag", check, 1)

    read, numbers, report = _read(opened, [tokens, column], sentence, on_bad_row)
    words, tags = [words for words, _ in read], [tags for _, tags in read]
    if scheme == "detect":

        def place(index: int) -> str:
            return f"row {numbers[index]}"

        try:
            found: Scheme | None = detect_scheme(tags, prefer=prefer, place=place)
        except ValueError as error:
            raise ValueError(f"{opened.name}: {error}") from None
    else:
        found = scheme
    loose, scheme = 0, None
    if found is not None:
        loose = sum(len(loose_tags(row, found)) for row in tags)
        scheme = learn or ("IOB2" if found == "IOB1" else found)
        if scheme != found:
            tags = [convert_tags(row, found, scheme) for row in tags]
    elif learn is not None:
        raise ValueError(f"{opened.name}: tags that mark no entities cannot be turned into {learn}")
    return Taggings(
        words=words,
        tags=tags,
        names=_settle_names(opened.name, column, tags, numbers, names, declared, scheme),
        scheme=scheme,
        loose=loose,
        report=report,
        source=opened.name,
        rows=np.asarray(numbers, np.int32),
    )


def open_sentences(source: Any, text: str | None = None, split: str | None = None) -> Source:
    """The source that `read_sentences` reads, where `text` is the column of the text, if one is chosen."""
    return open_tagged(source, split, tables=(".csv",) if text is None else (".csv", ".tsv"))


def read_sentences(
    source: Any,
    *,
    columns: TagColumns | None = None,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
) -> Taggings:
    """Read rows to tag: lists of words (or a CoNLL file), or plain text, whose words are found by `split_words`.

    Lists of words are preferred where a source has both and `columns` names neither. A .tsv file is a table with a
    header where `columns.text` is given, and CoNLL otherwise.
    """
    chosen = columns or TagColumns()
    opened = open_sentences(source, chosen.text, split)
    lower = {name.strip().lower() for name in opened.columns}
    plain = chosen.text is not None or not (_is_conll(opened) or chosen.tokens is not None or lower & set(TOKENS))
    if plain:
        column = _settle(opened, "text", chosen.text, TEXT, None)
    else:
        column = _settle(opened, "words", chosen.tokens, TOKENS, "1")
    wanted = [column] if chosen.id is None else [column, chosen.id]
    if chosen.id is not None and chosen.id not in opened.columns:
        raise ValueError(f"{opened.name}: there is no column {chosen.id!r} for the id; {_listing(opened)}")

    def sentence(values: list[Any]) -> tuple[Any, Any]:
        content = check_text(values[0]) if plain else _words(values[0])
        if len(values) == 1:
            return content, None
        try:
            return content, check_key(values[1])
        except Refused as refused:
            raise _RefusedAt(refused.reason, refused.detail, 1) from None

    read, numbers, report = _read(opened, wanted, sentence, on_bad_row)
    contents = [content for content, _ in read]
    places = [split_words(text) for text in contents] if plain else None
    words = contents
    if places is not None:
        words = [[text[start:end] for start, end in row] for text, row in zip(contents, places, strict=True)]
    return Taggings(
        words=words,
        tags=None,
        names=(),
        scheme=None,
        loose=0,
        report=report,
        source=opened.name,
        rows=np.asarray(numbers, np.int32),
        texts=contents if plain else None,
        places=places,
        keys=None if chosen.id is None else [key for _, key in read],
    )


def _read(
    opened: Source, wanted: list[str], sentence: Callable[[list[Any]], Any], on_bad_row: OnBadRow
) -> tuple[list[Any], list[int], Report]:
    tally = Tally(opened.name, on_bad_row)
    found: list[Any] = []
    numbers: list[int] = []
    for number, values in opened.rows(wanted):
        tally.rows += 1
        if isinstance(values, Problem):
            tally.refuse(number, values)
            continue
        try:
            found.append(sentence(values))
        except Refused as refused:
            tally.refuse(number, Problem(refused.reason, refused.detail, wanted[getattr(refused, "place", 0)]))
            continue
        numbers.append(number)
    report = tally.report()
    if not report.rows:
        raise ValueError(f"{opened.name}: has no rows")
    if not found:
        raise EveryRowRefused(opened.name, report)
    return found, numbers, report


class _RefusedAt(Refused):
    """A refusal of the value at a place among those of a row."""

    def __init__(self, reason: str, detail: str, place: int):
        super().__init__(reason, detail)
        self.place = place


def _words(value: Any) -> list[str]:
    words = _list(value, "words", 0)
    if not words:
        raise Refused("empty sentence", "has no words")
    return _each(words, "word", check_text, 0)


def _list(value: Any, of: str, place: int) -> list[Any]:
    if value is None:
        raise _RefusedAt("missing value", "has no value", place)
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise _RefusedAt("wrong type", f"is {shown(value)} ({type(value).__name__}), expected a list of {of}", place)
    return list(value)


def _each(values: list[Any], kind: str, check: Callable[[Any], str], place: int) -> list[str]:
    checked = []
    for number, value in enumerate(values, start=1):
        try:
            checked.append(check(value))
        except Refused as refused:
            raise _RefusedAt(refused.reason, f"{kind} {number} {refused.detail}", place) from None
    return checked


def _tag_check(declared: Sequence[str] | None, prefixes: str | None) -> Callable[[Any], str]:
    expected = "" if prefixes is None else f"O, or {', '.join(f'{prefix}-' for prefix in prefixes)} and a type"

    def check(value: Any) -> str:
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            if declared is None:
                raise Refused("wrong type", f"is {value}, and the column declares no names for numbers; expected text")
            if not 0 <= value < len(declared):
                raise Refused("wrong type", f"is {value}, expected a tag from 0 to {len(declared) - 1}")
            value = declared[int(value)]
        tag = check_text(value).strip()
        if prefixes is None:
            return tag
        try:
            prefix, _ = split_tag(tag)
        except ValueError:
            raise Refused("unknown tag", f"is {shown(tag)}, expected {expected}") from None
        if prefix != OUTSIDE and prefix not in prefixes:
            raise Refused("unknown tag", f"is {shown(tag)}, expected {expected}")
        return tag

    return check


def _is_conll(source: Source) -> bool:
    return all(name.isdigit() for name in source.columns)


def _listing(source: Source) -> str:
    return f"columns found: {', '.join(map(repr, source.columns)) or 'none'}"


def _settle(source: Source, role: str, chosen: str | None, known: Sequence[str], default: str | None) -> str:
    found = source.columns
    if _is_conll(source):
        chosen = chosen or default
        if chosen is not None and chosen.lstrip("-").isdigit() and 1 <= abs(int(chosen)) <= len(found):
            return found[int(chosen) if int(chosen) < 0 else int(chosen) - 1]
    elif chosen is None:
        options = [name for name in found if name.strip().lower() in known]
        if len(options) != 1:
            what = f"several columns could be the {role} ({', '.join(map(repr, options))})" if options else ""
            raise ValueError(
                f"{source.name}: {what or f'no column could be the {role}'}; choose one; {_listing(source)}"
            )
        return options[0]
    elif chosen in found:
        return chosen
    raise ValueError(f"{source.name}: there is no column {chosen!r} for the {role}; {_listing(source)}")


def _settle_names(
    source: str,
    column: str,
    tags: list[list[str]],
    numbers: list[int],
    names: Sequence[str] | None,
    declared: Sequence[str] | None,
    scheme: Scheme | None,
) -> tuple[str, ...]:
    if names is not None:
        known = set(names)
        for number, row in zip(numbers, tags, strict=True):
            if unknown := [tag for tag in row if tag not in known]:
                listing = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
                raise ValueError(
                    f"{where(source, number, column)}: tag {shown(unknown[0])} is not known; known are: {listing}"
                )
        return tuple(names)
    found = {tag for row in tags for tag in row}
    if len(found) == 1:
        raise ValueError(
            f"{source}, column {column!r}: every word has tag {shown(found.pop())}; a tagger needs two tags"
        )
    if scheme is None:
        return tuple(declared) if declared else tuple(sorted(found))
    types = set()
    for tag in found.union(declared or ()):
        with suppress(ValueError):  # a data set may declare names that no word has, such as X
            types.add(split_tag(tag)[1])
    every = all_tags(types - {""}, scheme)
    return tuple(declared) if declared and set(declared) == set(every) else every
