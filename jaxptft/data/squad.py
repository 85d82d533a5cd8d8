"""Questions whose answers are spans of a context: SQuAD's own JSON, or rows of its flat form from any source.

A context that holds no answer (SQuAD 2.0) has an empty list of them. Sources: Rajpurkar et al. 2016, arXiv:1606.05250;
Rajpurkar et al. 2018, arXiv:1806.03822.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxptft.data.cache import fingerprint
from jaxptft.data.readers import Row, Source
from jaxptft.data.sources import load, open_source
from jaxptft.data.tables import check_key
from jaxptft.data.validate import EveryRowRefused, OnBadRow, Problem, Refused, Report, Tally, check_text, shown

ROLES = ("id", "question", "context", "answers", "is_impossible")


class Answer(NamedTuple):
    """Words of a context, and the character at which they begin."""

    text: str
    start: int


@dataclass(frozen=True)
class QuestionColumns:
    """Names of a flat source's columns; the one of ids may be absent, unless it is named. SQuAD's JSON needs none."""

    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    id: str | None = None


@dataclass(frozen=True, eq=False)
class Questions:
    """Checked rows. `answers[i]` are those that annotators gave to question i, and () where the context holds none."""

    questions: list[str]
    contexts: list[str]
    answers: list[tuple[Answer, ...]] | None
    ids: list[Any] | None
    report: Report
    source: str
    rows: Int[np.ndarray, " rows"]  # where each stands in `source`

    def __len__(self) -> int:
        return len(self.questions)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the questions, contexts and answers, in order."""
        answers = "unlabelled" if self.answers is None else json.dumps(self.answers)
        return fingerprint(["questions 1", *self.questions, *self.contexts, answers])

    @cached_property
    def unanswerable(self) -> int:
        """How many questions have no answer in their context."""
        return sum(not given for given in self.answers or ())

    def select(self, indices: Int[np.ndarray, " chosen"]) -> "Questions":
        """The rows at these positions, in this order."""
        chosen = np.asarray(indices).tolist()
        return replace(
            self,
            questions=[self.questions[index] for index in chosen],
            contexts=[self.contexts[index] for index in chosen],
            answers=None if self.answers is None else [self.answers[index] for index in chosen],
            ids=None if self.ids is None else [self.ids[index] for index in chosen],
            rows=self.rows[chosen],
        )


class _Opened(NamedTuple):
    """Rows of values of `roles`; `place` names the value of a role in a row, for messages."""

    name: str
    roles: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]
    place: Callable[[int, str], str]


def read_questions(
    source: Any,
    *,
    columns: QuestionColumns | None = None,
    labelled: bool = True,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
    seen: dict[Any, int] | None = None,
) -> Questions:
    """Read SQuAD's JSON (1.1 or 2.0), or rows with a question, a context and answers from JSONL, Parquet, a folder
    saved by `datasets`, or a hub name such as `squad`.

    The answers of a row are {"text": [...], "answer_start": [...]} or a list of {"text": ..., "answer_start": ...};
    each must stand in the context at its character.

    Args:
      labelled: False leaves the answers out, whether the source has them or not.
      split: which split of a source that has several.
      on_bad_row: "error" raises at the first bad row; "skip" leaves bad rows out and counts them in the report.
      seen: the ids of a source's other pieces, by row, to which those of this one are added: no two rows share one.

    Raises:
      FileNotFoundError: there is no such source.
      ValueError: a row, a column or the whole file is bad; names file, row and column. A row of SQuAD's JSON is a
        question, counted from 1 over the whole file.
    """
    name, found = ("", None) if isinstance(source, Source) else load(source)
    nested = _squad_json(name, found) if isinstance(found, Path) and found.suffix.lower() == ".json" else None
    if nested is not None and split is not None:
        raise ValueError(f"{name}: has no splits, and split {split!r} was asked of it")
    opened = nested or _flat(source, split, columns or QuestionColumns(), labelled)
    return _checked(opened, labelled, on_bad_row, {} if seen is None else seen)


def question_rows(source: Any, split: str | None = None) -> Source | None:
    """A source of questions whose rows can be read in pieces; None for SQuAD's own JSON, which nests them.

    Raises FileNotFoundError and ValueError as `read_questions` does.
    """
    name, found = load(source)
    if isinstance(found, Path) and found.suffix.lower() == ".json" and _squad_json(name, found) is not None:
        return None
    return open_source(source, split)


def make_questions(
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[Sequence[tuple[str, int]]] | None = None,
    *,
    ids: Sequence[Any] | None = None,
    source: str = "the rows given",
    on_bad_row: OnBadRow = "error",
) -> Questions:
    """Questions already in memory, checked as `read_questions` checks those of a file; rows count from 1.

    `answers` holds (text, first character) pairs for each question.
    """
    given: dict[str, Sequence[Any]] = {"question": questions, "context": contexts}
    if answers is not None:
        given["answers"] = [[{"text": text, "answer_start": start} for text, start in of_one] for of_one in answers]
    if ids is not None:
        given["id"] = ids
    for role, values in given.items():
        if len(values) != len(questions):
            raise ValueError(f"{source}: {len(values)} values of {role!r} for {len(questions)} questions")

    def rows() -> Iterator[Row]:
        return enumerate(map(list, zip(*given.values(), strict=True)), start=1)

    return _checked(_Opened(source, tuple(given), rows, lambda row, role: role), answers is not None, on_bad_row, {})


def _flat(source: Any, split: str | None, columns: QuestionColumns, labelled: bool) -> _Opened:
    opened = open_source(source, split)
    named = {"question": columns.question, "context": columns.context}
    if labelled:
        named["answers"] = columns.answers
    if columns.id or "id" in opened.columns:
        named["id"] = columns.id or "id"
    listing = f"columns found: {', '.join(map(repr, opened.columns)) or 'none'}"
    for role, name in named.items():
        if name not in opened.columns:
            raise ValueError(f"{opened.name}: there is no column {name!r} for the {role}; {listing}")
    if labelled and "is_impossible" in opened.columns:
        named["is_impossible"] = "is_impossible"
    return _Opened(opened.name, tuple(named), lambda: opened.rows(list(named.values())), lambda row, role: named[role])


def _squad_json(name: str, path: Path) -> _Opened | None:
    """The questions of a file in SQuAD's own form; None where the file is not one JSON object with `data`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):  # JSON lines, or broken: their reader tells
        return None
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        return None
    rows: list[list[Any]] = []
    places: list[tuple[str, str]] = []
    for a, article in enumerate(_objects(name, "data", content["data"])):
        inside = f"data[{a}].paragraphs"
        for p, paragraph in enumerate(_objects(name, inside, article.get("paragraphs"))):
            for q, asked in enumerate(_objects(name, f"{inside}[{p}].qas", paragraph.get("qas"))):
                values = {**asked, "context": paragraph.get("context")}
                rows.append([values.get(role) for role in ROLES])
                places.append((f"{inside}[{p}]", f"{inside}[{p}].qas[{q}]"))

    def place(row: int, role: str) -> str:
        paragraph, asked = places[row - 1]
        return f"{paragraph if role == 'context' else asked}.{role}"

    return _Opened(name, ROLES, lambda: enumerate(rows, start=1), place)


def _objects(name: str, place: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{name}: {place} is {shown(value)}, expected a list of objects, as in SQuAD's files")
    return value


def _checked(opened: _Opened, labelled: bool, on_bad_row: OnBadRow, seen: dict[Any, int]) -> Questions:
    tally = Tally(opened.name, on_bad_row)
    columns: dict[str, list[Any]] = {"question": [], "context": [], "answers": [], "id": []}
    numbers: list[int] = []
    contexts: dict[str, str] = {}  # one object for each, however many questions it has
    for number, values in opened.rows():
        tally.rows += 1
        if isinstance(values, Problem):
            tally.refuse(number, values)
            continue
        given = dict(zip(opened.roles, values, strict=True))
        role = "question"
        try:
            question = check_text(given["question"])
            role = "context"
            context = check_text(given["context"])
            role = "answers"
            answers = _check_answers(given["answers"], given.get("is_impossible"), context) if labelled else ()
            role = "id"
            key = _check_id(given["id"], number, seen) if "id" in given else None
        except Refused as refused:
            tally.refuse(number, Problem(refused.reason, refused.detail, opened.place(number, role)))
            continue
        if key is not None:
            seen[key] = number
        numbers.append(number)
        kept = (question, contexts.setdefault(context, context), answers, key)
        for name, value in zip(("question", "context", "answers", "id"), kept, strict=True):
            columns[name].append(value)
    report = tally.report()
    if not report.rows:
        raise ValueError(f"{opened.name}: has no questions")
    if not numbers:
        raise EveryRowRefused(opened.name, report)
    return Questions(
        questions=columns["question"],
        contexts=columns["context"],
        answers=columns["answers"] if labelled else None,
        ids=columns["id"] if "id" in opened.roles else None,
        report=report,
        source=opened.name,
        rows=np.asarray(numbers, np.int32),
    )


def _check_id(value: Any, number: int, seen: Mapping[Any, int]) -> Any:
    key = check_key(value)
    if seen.get(key, number) != number:  # the same row may be read again
        raise Refused("duplicate id", f"is {shown(key)}, as in row {seen[key]}; every question needs its own")
    return key


def _check_answers(value: Any, impossible: Any, context: str) -> tuple[Answer, ...]:
    if impossible is not None and not isinstance(impossible, bool):
        raise Refused("wrong type", f"come with is_impossible {shown(impossible)}, expected true or false")
    if value is None and impossible:
        return ()
    answers = tuple(_check_answer(text, start, context) for text, start in _pairs(value))
    if impossible and answers:
        raise Refused("contradiction", f"are {len(answers)}, and is_impossible is true; expected none")
    if impossible is False and not answers:
        raise Refused("missing value", "are none, and is_impossible is false; expected at least one")
    return answers


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if value is None:
        raise Refused("missing value", "have no value; expected an empty list where the context holds no answer")
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        texts, starts = value["text"], value.get("answer_start")
        if not isinstance(starts, list) or len(starts) != len(texts):
            found = f"{len(starts)}" if isinstance(starts, list) else shown(starts)
            raise Refused("wrong type", f"have {len(texts)} of text and {found} of answer_start; expected as many")
        return list(zip(texts, starts, strict=True))
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        return [(item.get("text"), item.get("answer_start")) for item in value]
    raise Refused(
        "wrong type", f'are {shown(value)} ({type(value).__name__}), expected {{"text": [...], "answer_start": [...]}}'
    )


def _check_answer(text: Any, start: Any, context: str) -> Answer:
    try:
        text = check_text(text)
    except Refused as refused:
        raise Refused(refused.reason, f"hold a text that {refused.detail}") from None
    if isinstance(start, bool) or not isinstance(start, int):
        raise Refused("wrong type", f"begin at {shown(start)} ({type(start).__name__}), expected a whole number")
    if start < 0 or context[start : start + len(text)] != text:
        found = shown(context[start : start + len(text)]) if 0 <= start < len(context) else "no character"
        elsewhere = context.find(text)
        hint = f"it stands at {elsewhere}" if elsewhere >= 0 else "it stands nowhere in it"
        raise Refused(
            "misplaced answer", f"hold {shown(text)} at character {start}, where the context has {found}; {hint}"
        )
    return Answer(text, start)
