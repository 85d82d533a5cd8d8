"""Rows with several choices of which one is right: in a list (RACE, ARC) or in numbered columns (SWAG, COPA).

Choices are read after what they answer: a context, a question, or both, in which case the question comes with the
choice (in its blank `_`, if it has one), as in SWAG and RACE (Zellers et al. 2018, arXiv:1808.05326; Lai et al. 2017,
arXiv:1704.04683).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxptft.data.cache import fingerprint
from jaxptft.data.readers import Row, Source
from jaxptft.data.sources import open_source
from jaxptft.data.tables import check_key
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

CONTEXT = ("context", "article", "passage", "sent1", "premise", "ctx", "story", "paragraph")
QUESTION = ("question", "sent2", "question_stem", "query", "goal")
CHOICES = ("choices", "options", "endings", "candidates")
NUMBERED = ("choice", "option", "ending", "answer", "sol")
LABEL = ("label", "labels", "answer", "answerkey", "answer_key", "gold_label", "correct", "target")


@dataclass(frozen=True)
class ChoiceColumns:
    """Names of columns. None: tell it from the names found. "": the file has none, whatever its columns are called.

    `choices` is a column of lists, or what the names of numbered columns begin with (`ending` of ending0 to ending3).
    `id` is never guessed.
    """

    context: str | None = None
    question: str | None = None
    choices: str | None = None
    label: str | None = None
    id: str | None = None


@dataclass(frozen=True, eq=False)
class Choices:
    """Checked rows. `labels[i]` is the number of row i's right choice, counted from 0; rows may have different many."""

    contexts: list[str] | None
    questions: list[str] | None
    choices: list[tuple[str, ...]]
    labels: Int[np.ndarray, " rows"] | None
    report: Report
    source: str
    rows: Int[np.ndarray, " rows"]
    keys: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.choices)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the texts, choices and labels, in order."""
        labels = "unlabelled" if self.labels is None else self.labels.astype("<i4").tobytes()
        return fingerprint(["choices 1", json.dumps([self.contexts, self.questions, self.choices]), labels])

    @cached_property
    def most(self) -> int:
        """The largest number of choices that a row has."""
        return max(map(len, self.choices))

    def select(self, indices: Int[np.ndarray, " chosen"]) -> "Choices":
        """The rows at these positions, in this order."""
        chosen = np.asarray(indices).tolist()

        def of(values: list[Any] | None) -> list[Any] | None:
            return None if values is None else [values[index] for index in chosen]

        return replace(
            self,
            contexts=of(self.contexts),
            questions=of(self.questions),
            choices=[self.choices[index] for index in chosen],
            labels=None if self.labels is None else self.labels[chosen],
            rows=self.rows[chosen],
            keys=of(self.keys),
        )

    def asked(self, row: int) -> str:
        """All that stands before the choices of a row."""
        return " ".join(column[row] for column in (self.contexts, self.questions) if column is not None)

    def pairs(self, row: int) -> list[tuple[str, str]]:
        """What the model reads for each choice of a row: two texts."""
        if self.contexts is None or self.questions is None:
            first = (self.contexts or self.questions or [])[row]
            return [(first, choice) for choice in self.choices[row]]
        context, question = self.contexts[row], self.questions[row]
        return [(context, _answered(question, choice)) for choice in self.choices[row]]


def _answered(question: str, choice: str) -> str:
    return question.replace("_", choice) if "_" in question else f"{question} {choice}"


def read_choices(
    source: Any,
    *,
    columns: ChoiceColumns | None = None,
    labelled: bool = True,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
) -> Choices:
    """Read a file (.csv, .tsv, .jsonl, .parquet), a folder saved by `datasets`, or a hub name such as `swag/regular`.

    A label is the number of the right choice, counted from 0, its letter, or its text; where choices come as
    {"text": [...], "label": [...]}, one of those labels. A row has two choices at least; of numbered columns the last
    may be empty. Arguments and errors are those of `read_table`.
    """
    opened = open_source(source, split)
    return _checked(opened, _infer(opened, columns or ChoiceColumns(), labelled), labelled, on_bad_row)


def make_choices(
    choices: Sequence[Sequence[str]],
    labels: Sequence[Any] | None = None,
    *,
    contexts: Sequence[str] | None = None,
    questions: Sequence[str] | None = None,
    source: str = "the rows given",
    on_bad_row: OnBadRow = "error",
) -> Choices:
    """Choices already in memory, checked as `read_choices` checks those of a file; rows count from 1."""
    roles = {"context": contexts, "question": questions, "choices": choices, "label": labels}
    given = {role: values for role, values in roles.items() if values is not None}
    for role, values in given.items():
        if len(values) != len(choices):
            raise ValueError(f"{source}: {len(values)} values of {role!r} for {len(choices)} rows of choices")

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        return enumerate(map(list, zip(*(given[name] for name in wanted), strict=True)), start=1)

    opened = Source(source, tuple(given), rows)
    columns = ChoiceColumns(*(role if role in given else "" for role in roles))
    return _checked(opened, _infer(opened, columns, labels is not None), labels is not None, on_bad_row)


@dataclass(frozen=True)
class _Roles:
    """Columns by role; `choices` is one column of lists, or several of text."""

    context: str | None
    question: str | None
    choices: tuple[str, ...]
    label: str | None
    id: str | None

    def named(self) -> dict[str, str]:
        single = {"context": self.context, "question": self.question, "label": self.label, "id": self.id}
        return {role: name for role, name in single.items() if name}


def _infer(source: Source, chosen: ChoiceColumns, labelled: bool) -> _Roles:
    found = source.columns
    listing = f"columns found: {', '.join(map(repr, found)) or 'none'}"
    for role in ("context", "question", "label", "id"):
        name = getattr(chosen, role)
        if name and name not in found:
            raise ValueError(f"{source.name}: there is no column {name!r} for the {role}; {listing}")
    choices = _choice_columns(source.name, found, chosen, listing)
    taken = {*choices, *filter(None, (chosen.context, chosen.question, chosen.label, chosen.id))}

    def one(role: str, name: str | None, names: Sequence[str]) -> str | None:
        if name is not None:
            return name or None
        options = [column for column in found if column.strip().lower() in names and column not in taken]
        if len(options) > 1:
            several = ", ".join(map(repr, options))
            raise ValueError(f"{source.name}: several columns could be the {role} ({several}); choose one; {listing}")
        return options[0] if options else None

    context, question = one("context", chosen.context, CONTEXT), one("question", chosen.question, QUESTION)
    label = one("label", chosen.label, LABEL) if labelled else None
    if not context and not question:
        raise ValueError(f"{source.name}: no column could be the context or the question; choose one; {listing}")
    if labelled and not label:
        raise ValueError(f"{source.name}: no column could be the label; choose one; {listing}")
    return _Roles(context, question, choices, label, chosen.id or None)


def _choice_columns(source: str, found: Sequence[str], chosen: ChoiceColumns, listing: str) -> tuple[str, ...]:
    taken = {chosen.context, chosen.question, chosen.label, chosen.id}
    lists = [name for name in found if name.strip().lower() in CHOICES and name not in taken]
    if chosen.choices:
        if chosen.choices in found:
            return (chosen.choices,)
        lists, prefixes = [], (chosen.choices.lower(),)
    else:
        prefixes = NUMBERED
    numbered: list[tuple[str, ...]] = []
    for prefix in prefixes:
        matches = [(re.fullmatch(rf"{re.escape(prefix)}(?:_?(\d+)|_([a-z]))", name.lower()), name) for name in found]
        ordered = sorted((int(m[1]) if m[1] else ord(m[2]), name) for m, name in matches if m and name not in taken)
        if len(ordered) > 1:
            numbered.append(tuple(name for _, name in ordered))
    options = [(name,) for name in lists] + numbered
    if len(options) != 1:
        several = ", ".join(repr(columns[0]) for columns in options)
        problem = f"several columns could be the choices ({several})" if options else "no column could be the choices"
        if chosen.choices:
            problem = f"there is no column {chosen.choices!r} for the choices, nor columns numbered so"
        raise ValueError(f"{source}: {problem}; choose one; {listing}")
    return options[0]


def _checked(source: Source, columns: _Roles, labelled: bool, on_bad_row: OnBadRow) -> Choices:
    tally = Tally(source.name, on_bad_row)
    named = columns.named()
    wanted = [*named.values(), *columns.choices]
    kept: dict[str, list[Any]] = {role: [] for role in ("context", "question", "choices", "label", "id")}
    numbers: list[int] = []
    for number, values in source.rows(wanted):
        tally.rows += 1
        if isinstance(values, Problem):
            tally.refuse(number, values)
            continue
        given = dict(zip(named, values, strict=False))
        row: dict[str, Any] = {}
        place = wanted[0]
        try:
            for role in ("context", "question"):
                if role in named:
                    place = named[role]
                    row[role] = check_text(given[role])
            place = columns.choices[0]
            row["choices"], letters = _check_choices(values[len(named) :], columns.choices)
            if "label" in named:
                place = named["label"]
                row["label"] = _label(given["label"], row["choices"], letters)
            if "id" in named:
                place = named["id"]
                row["id"] = check_key(given["id"])
        except Refused as refused:
            tally.refuse(number, Problem(refused.reason, refused.detail, place))
            continue
        numbers.append(number)
        for role, value in row.items():
            kept[role].append(value)
    report = tally.report()
    if not report.rows:
        raise ValueError(f"{source.name}: has a header and no rows")
    if not numbers:
        raise EveryRowRefused(source.name, report)
    return Choices(
        contexts=kept["context"] if columns.context else None,
        questions=kept["question"] if columns.question else None,
        choices=kept["choices"],
        labels=np.asarray(kept["label"], np.int32) if labelled else None,
        report=report,
        source=source.name,
        rows=np.asarray(numbers, np.int32),
        keys=kept["id"] if columns.id else None,
    )


def _check_choices(values: Sequence[Any], columns: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The choices, and the labels that the data give them; () where they give none."""
    letters: tuple[str, ...] = ()
    if len(columns) == 1:
        value = values[0]
        if isinstance(value, Mapping) and isinstance(value.get("text"), list):
            letters, value = tuple(map(str, value.get("label") or ())), value["text"]
        if not isinstance(value, list | tuple):
            kind = type(value).__name__
            raise Refused("wrong type", f"is {shown(value)} ({kind}), expected a list of choices")
    else:
        value = list(values)
        while value and (value[-1] is None or value[-1] in ("", b"")):  # a row with fewer
            value.pop()
    if len(value) < 2:
        raise Refused("too few choices", f"has {len(value)} of the choices, expected two at least")
    if letters and len(letters) != len(value):
        raise Refused("wrong type", f"has {len(letters)} labels for {len(value)} choices, expected as many")
    checked = []
    for number, choice in enumerate(value):
        try:
            checked.append(check_text(choice))
        except Refused as refused:
            raise Refused(refused.reason, f"has a choice, number {number}, that {refused.detail}") from None
    return tuple(checked), letters


def _label(value: Any, choices: tuple[str, ...], letters: tuple[str, ...]) -> int:
    """The number of the choice that a label stands for."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Refused("missing value", "has no label")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refused("wrong type", f"is {shown(value)} ({type(value).__name__}), expected the right choice")
    if value in (-1, "-1"):
        raise Refused("unlabelled", "is -1, which marks an unlabelled row; give the number of the right choice")
    last = len(choices) - 1
    if str(value).strip() in letters:  # whose numbers may count from 1
        return letters.index(str(value).strip())
    if isinstance(value, int):
        readings = {value} if 0 <= value <= last else set()
    else:
        value = check_string(value.strip())
        readings = {number for number, choice in enumerate(choices) if choice.strip() == value}
        if len(value) == 1 and value.isascii() and value.isalpha() and ord(value.upper()) - ord("A") <= last:
            readings.add(ord(value.upper()) - ord("A"))
        if value.isascii() and value.isdigit() and int(value) <= last:
            readings.add(int(value))
    if len(readings) == 1:
        return readings.pop()
    if readings:
        several = " or ".join(map(str, sorted(readings)))
        raise Refused("ambiguous label", f"is {shown(value)}, which may be choice {several}; give its number, from 0")
    letter = chr(ord("A") + min(last, 25))
    raise Refused(
        "unknown label", f"is {shown(value)}, expected a number from 0 to {last}, a letter from A to {letter}, or a "
        "choice's text"
    )  # fmt: skip
