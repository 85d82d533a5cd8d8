"""Answers as spans of a context, of which some questions may have none."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxptft import data, models, objectives
from jaxptft.recipes.metrics.answers import Decoded, best_over, best_threshold, decode, probabilities
from jaxptft.recipes.report import Report
from jaxptft.recipes.tasks.answering import Answered, Answering, answers, counted, from_rows, from_source
from jaxptft.recipes.tasks.contract import Predictions
from jaxptft.recipes.tasks.options import refuse_unused
from jaxptft.recipes.tasks.settings import Answers, Columns
from jaxptft.recipes.tasks.splits import batch_each, describe, read_splits

if TYPE_CHECKING:
    from jaxptft.recipes import evaluate as evaluation
    from jaxptft.recipes import finetune
    from jaxptft.recipes import predict as prediction
    from jaxptft.recipes.inference import Opened

Say = Callable[[str], None]
MONITORS = {
    "f1": ("question_answering/f1", True),
    "exact_match": ("question_answering/exact_match", True),
    "loss": ("question_answering/loss", False),
}
SHOWN = 5  # candidates in a line of predictions


class QuestionAnswering:
    """Questions and the contexts that answer them; see `contract.Task`. An example is a window of a context."""

    model_task, head = "question_answering", "question_answering"
    classes: int | None = None
    names: tuple[str, ...] | None = None

    def __init__(self, config: "finetune.Config", *, tokenizer: Any, devices: int, say: Say):
        refuse_unused(config, "question_answering")
        self.fields: dict[str, Any] = {}
        self.monitors = MONITORS
        columns = columns_of(config.columns)

        def read(source: Any, split: str | None) -> data.Questions:
            return data.read_questions(source, columns=columns, split=split, on_bad_row=config.on_bad_row)

        self.questions, origins = read_splits(config, read, texts=lambda rows: rows.contexts)
        self._answers, self._smoothing = config.answers, config.label_smoothing
        options = {"stride": config.answers.stride, "max_question": config.answers.max_question}
        self.windows = {
            split: data.answer_windows(questions, tokenizer, config.max_length, **options)
            for split, questions in self.questions.items()
        }

        def facts(split: str) -> dict[str, int]:
            questions, windows = self.questions[split], self.windows[split]
            counts = {"rows": len(questions), "skipped_rows": questions.report.skipped}
            return counts | {"truncated": windows.tokenized.truncated, "windows": len(windows)}

        def tell(split: str) -> str:
            questions = self.questions[split]
            line = describe(split, len(questions), origins[split], skipped=questions.report.skipped)
            return line + _counts(questions, self.windows[split])

        self.batches, self.facts = batch_each(
            config,
            {split: windows.tokenized for split, windows in self.windows.items()},
            lambda split, **options: data.WindowBatches(self.windows[split], **options),
            facts=facts,
            tell=tell,
            devices=devices,
            say=say,
        )

    def objective(self, model: models.Model) -> objectives.Objective:
        return objectives.question_answering(model, n_best=self._answers.n_best, label_smoothing=self._smoothing)

    def _decoded(self, predictions: Predictions, split: str) -> list[Decoded]:
        return _decode(predictions, self.windows[split], len(self.questions[split]), self._answers)

    def metrics(self, predictions: Predictions, split: str) -> dict[str, float]:
        """F1 and exact match, with the threshold that is best on these rows if it is not given."""
        decoded = self._decoded(predictions, split)
        return score(decoded, self.questions[split], self._threshold(decoded, self.questions[split]))

    def _threshold(self, decoded: Sequence[Decoded], questions: data.Questions) -> float | None:
        if self._answers.null_threshold is not None:
            return self._answers.null_threshold
        if questions.unanswerable:
            return choose_threshold(decoded, questions)
        return 0.0 if self.questions["train"].unanswerable else None

    def settle(self, predictions: Predictions) -> dict[str, Any]:
        """All that decides how answers are sought; the threshold is None where every question has an answer."""
        threshold = self._threshold(self._decoded(predictions, "eval"), self.questions["eval"])
        return {"answers": self._answers.model_dump() | {"null_threshold": threshold}}

    def report(self, predictions: Predictions, split: str, settled: Mapping[str, Any]) -> Report:
        threshold = settled.get("answers", {}).get("null_threshold")
        return report_on(self._decoded(predictions, split), self.questions[split], threshold)


def read(
    config: "finetune.Config",
    *,
    tokenizer: Any,
    architecture: Any,
    devices: int,
    checkpoint_names: list[str] | None,
    say: Say,
) -> QuestionAnswering:
    """Read, check and tokenize the questions and contexts of a fine-tuning."""
    return QuestionAnswering(config, tokenizer=tokenizer, devices=devices, say=say)


def columns_of(columns: Columns, id: str | None = None) -> data.QuestionColumns:
    named = {"question": columns.question, "context": columns.context, "answers": columns.answers}
    return data.QuestionColumns(**{role: name for role, name in named.items() if name}, id=id)


def choose_threshold(decoded: Sequence[Decoded], questions: data.Questions) -> float:
    """The margin of "no answer" above which giving it makes F1 highest on these questions."""
    given = [_text(one, context, None) for one, context in zip(decoded, questions.contexts, strict=True)]
    scores = np.array([f1 for _, f1 in _judged(given, questions)], np.float64)
    margins = np.array([one.margin for one in decoded])
    answerable = np.array([bool(golds) for golds in questions.answers or ()])
    return best_threshold(margins, scores, answerable)[0]


def score(decoded: Sequence[Decoded], questions: data.Questions, threshold: float | None) -> dict[str, float]:
    """Exact match and F1; where some questions have no answer, of both kinds apart as well."""
    given = [_text(one, context, threshold) for one, context in zip(decoded, questions.contexts, strict=True)]
    judged = np.array(_judged(given, questions), np.float64)
    answerable = np.array([bool(golds) for golds in questions.answers or ()])
    parts = {"": slice(None)}
    if not answerable.all():
        parts |= {"has_answer_": answerable, "no_answer_": ~answerable}
    found: dict[str, float] = {}
    for part, rows in parts.items():
        if len(judged[rows]):
            exact, f1 = judged[rows].mean(0).tolist()
            found |= {f"question_answering/{part}exact_match": exact, f"question_answering/{part}f1": f1}
    return found


def report_on(decoded: Sequence[Decoded], questions: data.Questions, threshold: float | None) -> Report:
    """The numbers, and as many lines of text."""
    found = score(decoded, questions, threshold)
    lines = [f"{name.removeprefix('question_answering/'):<24}{value:.4f}" for name, value in found.items()]
    lines.append(f"{len(questions)} questions, {questions.unanswerable} of them without an answer")
    if threshold is not None:
        lines.append(f'"no answer" is given where it scores above the best answer by more than {threshold:.4g}')
    counts = {"questions": len(questions), "unanswerable": questions.unanswerable, "null_threshold": threshold}
    return Report(found, "\n".join(lines), counts)


def _counts(questions: data.Questions, windows: data.Windows) -> str:
    parts = [f", in {len(windows)} windows"]
    if questions.unanswerable:
        parts.append(f"{questions.unanswerable} without an answer")
    if windows.tokenized.truncated:
        parts.append(f"{windows.tokenized.truncated} questions cut")
    return ", ".join(parts)


def _decode(predictions: Predictions, windows: data.Windows, questions: int, settings: Answers) -> list[Decoded]:
    return decode(predictions, windows, questions=questions, n_best=settings.n_best, max_answer=settings.max_answer)


def _text(decoded: Decoded, context: str, threshold: float | None) -> str:
    chosen = decoded.chosen(threshold)
    return "" if chosen is None else context[chosen.start : chosen.end]


def _judged(given: Sequence[str], questions: data.Questions) -> list[tuple[int, float]]:
    golds = [[answer.text for answer in answers] for answers in questions.answers or ()]
    return [best_over(texts, text) for texts, text in zip(golds, given, strict=True)]


class _Asked:
    """What the model holds of each question, sought as in its fine-tuning but for a threshold that is asked for."""

    def __init__(self, opened: "Opened", request: Any):
        self.settings = Answers.model_validate(opened.settled.get("answers", {}))
        if request.settled.threshold is not None:
            self.settings = self.settings.model_copy(update={"null_threshold": request.settled.threshold})
        self.opened, self.longest = opened, opened.longest(request.max_length)
        self.tokenizer = data.FixedTokenizer(opened.tokenizer)
        network = opened.model("question_answering")
        self.predictor = opened.predictor(objectives.question_answering(network, n_best=self.settings.n_best))

    def windows(self, questions: data.Questions) -> data.Windows:
        options = {"stride": self.settings.stride, "max_question": self.settings.max_question}
        return data.answer_windows(questions, self.tokenizer, self.longest, **options)

    def __call__(
        self,
        questions: data.Questions,
        windows: data.Windows,
        batching: Mapping[str, Any],
        done: Callable[[int], None],
    ) -> list[Decoded]:
        batches = data.WindowBatches(windows, shuffle=False, multiple_of=self.opened.devices, **batching)

        def name_row(index: int) -> str:
            return f"{questions.source}, row {questions.rows[windows.example[index]]}"

        found = self.predictor(batches, name_row=name_row, done=done)
        return _decode(found, windows, len(questions), self.settings)


def answering(opened: "Opened", request: "prediction.Config", *, seen: dict[Any, int] | None = None) -> Answering:
    """`question`, and the `answer`, which is `context[start:end]`, with its share of the best ones as `score`; `n_best`
    are the first of these.

    An empty answer, from 0 to 0, says that the context holds none; a model that was not taught to say so never does.
    `seen` is that of `data.read_questions`, where what is read are pieces of one source.
    """
    asked, columns = _Asked(opened, request), columns_of(request.columns, request.id)

    def read(source: Any) -> data.Questions:
        split = None if isinstance(source, data.Source) else data.pick_split(source, request.split)
        options: dict[str, Any] = {"columns": columns, "labelled": False, "on_bad_row": request.on_bad_row}
        return data.read_questions(source, split=split, seen=seen, **options)

    def answer(questions: data.Questions, batching: Mapping[str, Any], done: Callable[[int], None]) -> Answered:
        windows = asked.windows(questions)
        decoded = asked(questions, windows, batching, done)
        cut = np.zeros(len(questions), bool)
        cut[windows.example[windows.tokenized.cut]] = True
        lines = (
            {"question": question} | _answer(one, context, asked.settings.null_threshold)
            for question, context, one in zip(questions.questions, questions.contexts, decoded, strict=True)
        )
        return Answered(lines, cut)

    return Answering(read, answer, "{long} of {rows} questions were cut", asked.predictor)


def predict(opened: "Opened", request: "prediction.Config", *, say: Say) -> Iterator[dict[str, Any]]:
    """`row` (its line or number in the source), `id` where the source has one, and what `answering` says of it."""
    found = answering(opened, request, seen={})
    source = data.question_rows(request.data, data.pick_split(request.data, request.split))
    pieces = from_rows(found.read(request.data)) if source is None else from_source(source, found)
    return answers(pieces, found, request, say=say)


def _answer(decoded: Decoded, context: str, threshold: float | None) -> dict[str, Any]:
    shares, none = probabilities(decoded, with_null=threshold is not None)
    listed = [
        {"answer": context[start:end], "start": start, "end": end, "score": round(share, 6)}
        for (start, end, _), share in zip(decoded.candidates, shares, strict=True)
    ]
    nothing = {"answer": "", "start": 0, "end": 0, "score": round(none, 6)}
    best = nothing if decoded.chosen(threshold) is None else listed[0]
    if threshold is not None:
        listed.append(nothing)
        listed.sort(key=lambda item: -item["score"])
    return best | {"n_best": listed[:SHOWN]}


def evaluate(opened: "Opened", request: "evaluation.Config", *, say: Say) -> Report:
    """Exact match and F1 as SQuAD has them, over all questions."""
    questions = data.read_questions(
        request.data,
        columns=columns_of(request.columns),
        on_bad_row=request.on_bad_row,
        split=data.pick_split(request.data, request.split),
    )
    asked = _Asked(opened, request)
    windows = asked.windows(questions)
    skipped = f", {questions.report.skipped} bad rows skipped" if questions.report.skipped else ""
    say(f"{len(questions)} questions from {questions.source}{_counts(questions, windows)}{skipped}")
    with counted(len(windows)) as done:
        decoded = asked(questions, windows, {"batch_size": request.batch_size}, done)
    return report_on(decoded, questions, asked.settings.null_threshold)
