"""The right one of several choices."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxptft import data, models, objectives
from jaxptft.recipes.report import Report
from jaxptft.recipes.tasks.answering import Answered, Answering, answers, counted, from_source
from jaxptft.recipes.tasks.contract import Predictions
from jaxptft.recipes.tasks.options import refuse_unused
from jaxptft.recipes.tasks.settings import Columns
from jaxptft.recipes.tasks.splits import batch_each, describe, read_splits

if TYPE_CHECKING:
    from jaxptft.recipes import evaluate as evaluation
    from jaxptft.recipes import finetune
    from jaxptft.recipes import predict as prediction
    from jaxptft.recipes.inference import Opened

Say = Callable[[str], None]
MONITORS = {"accuracy": ("multiple_choice/accuracy", True), "loss": ("multiple_choice/loss", False)}


class MultipleChoice:
    """Rows with choices; see `contract.Task`."""

    model_task, head = "multiple_choice", "multiple_choice"
    classes: int | None = None
    names: tuple[str, ...] | None = None

    def __init__(self, config: "finetune.Config", *, tokenizer: Any, devices: int, say: Say):
        refuse_unused(config, "multiple_choice")
        self.fields: dict[str, Any] = {}
        self.monitors = MONITORS
        columns = columns_of(config.columns)

        def read(source: Any, split: str | None) -> data.Choices:
            return data.read_choices(source, columns=columns, split=split, on_bad_row=config.on_bad_row)

        self.rows, origins = read_splits(config, read, texts=_asked_about)
        self._smoothing = config.label_smoothing
        tokens = {split: data.tokenize_choices(rows, tokenizer, config.max_length) for split, rows in self.rows.items()}

        def facts(split: str) -> dict[str, int]:
            rows, truncated = self.rows[split], tokens[split].tokenized.truncated
            return {"rows": len(rows), "skipped_rows": rows.report.skipped, "truncated": truncated}

        def tell(split: str) -> str:
            rows, truncated = self.rows[split], tokens[split].tokenized.truncated
            counts = f", of {rows.most} choices at most" + (f", {truncated} choices cut" if truncated else "")
            return describe(split, len(rows), origins[split], skipped=rows.report.skipped) + counts

        self.batches, self.facts = batch_each(
            config,
            {split: found.longest for split, found in tokens.items()},
            lambda split, **options: data.ChoiceBatches(tokens[split], self.rows[split].labels, **options),
            facts=facts,
            tell=tell,
            devices=devices,
            say=say,
        )

    def objective(self, model: models.Model) -> objectives.Objective:
        return objectives.multiple_choice(model, label_smoothing=self._smoothing)

    def metrics(self, predictions: Predictions, split: str) -> dict[str, float]:
        return {"multiple_choice/accuracy": _accuracy(predictions["logits"], self.rows[split])}

    def settle(self, predictions: Predictions) -> dict[str, Any]:
        return {}

    def report(self, predictions: Predictions, split: str, settled: Mapping[str, Any]) -> Report:
        return report_on(predictions["logits"], self.rows[split])


def read(
    config: "finetune.Config",
    *,
    tokenizer: Any,
    architecture: Any,
    devices: int,
    checkpoint_names: list[str] | None,
    say: Say,
) -> MultipleChoice:
    """Read, check and tokenize the rows of a fine-tuning."""
    return MultipleChoice(config, tokenizer=tokenizer, devices=devices, say=say)


def columns_of(columns: Columns, id: str | None = None) -> data.ChoiceColumns:
    return data.ChoiceColumns(columns.context, columns.question, columns.choices, columns.label, id)


def _asked_about(rows: data.Choices) -> list[str]:
    """What may not stand on both sides of a split: a context with all its questions, or else the question."""
    return rows.contexts if rows.contexts is not None else rows.questions or []


def _accuracy(logits: np.ndarray, rows: data.Choices) -> float:
    assert rows.labels is not None
    return float((logits.argmax(-1) == rows.labels).mean())


def report_on(logits: np.ndarray, rows: data.Choices) -> Report:
    """The accuracy, beside that of a guess, and where there are different many choices, by their number."""
    accuracy = _accuracy(logits, rows)
    counts = np.array([len(choices) for choices in rows.choices])
    lines = [f"accuracy {accuracy:.4f} of {len(rows)} rows; a guess has {(1 / counts).mean():.4f}"]
    found = {"multiple_choice/accuracy": accuracy}
    by_count: dict[str, float] = {}
    for count in np.unique(counts).tolist():
        chosen = np.flatnonzero(counts == count)
        by_count[str(count)] = _accuracy(logits[chosen], rows.select(chosen))
        lines.append(f"  {count} choices: {by_count[str(count)]:.4f} of {len(chosen)}")
    return Report(found, "\n".join(lines if len(by_count) > 1 else lines[:1]), {"by_choices": by_count})


class _Asked:
    """The logits of each row's choices [rows, choices], those that a row lacks far below all others."""

    def __init__(self, opened: "Opened", max_length: int | None):
        self.opened, self.longest = opened, opened.longest(max_length)
        self.tokenizer = data.FixedTokenizer(opened.tokenizer)
        self.predictor = opened.predictor(objectives.multiple_choice(opened.model("multiple_choice")))

    def __call__(
        self, rows: data.Choices, batching: Mapping[str, Any], done: Callable[[int], None]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The logits, and which choices were cut, one after the other."""
        tokens = data.tokenize_choices(rows, self.tokenizer, self.longest, cache=False)
        batches = data.ChoiceBatches(tokens, shuffle=False, multiple_of=self.opened.devices, **batching)
        found = self.predictor(batches, name_row=lambda index: f"{rows.source}, row {rows.rows[index]}", done=done)
        assert tokens.tokenized.cut is not None
        return found["logits"], tokens.tokenized.cut


def answering(opened: "Opened", request: "prediction.Config") -> Answering:
    """The number of the `choice` counted from 0, its text as `answer`, and the `probabilities` of all choices in
    order."""
    from scipy.special import softmax

    asked, columns = _Asked(opened, request.max_length), columns_of(request.columns, request.id)

    def read(source: data.Source) -> data.Choices:
        return data.read_choices(source, columns=columns, labelled=False, on_bad_row=request.on_bad_row)

    def answer(rows: data.Choices, batching: Mapping[str, Any], done: Callable[[int], None]) -> Answered:
        logits, cut = asked(rows, batching, done)
        shares = softmax(logits.astype("float64"), axis=-1)

        def lines() -> Iterator[dict[str, Any]]:
            for choices, found in zip(rows.choices, shares, strict=True):
                best = int(found.argmax())
                listed = [round(float(share), 6) for share in found[: len(choices)]]
                yield {"choice": best, "answer": choices[best], "probabilities": listed}

        first = np.cumsum([0, *map(len, rows.choices)])
        return Answered(lines(), np.logical_or.reduceat(cut, first[:-1]))

    long = f"{{long}} of {{rows}} rows have choices longer than {asked.longest} tokens, which were cut"
    return Answering(read, answer, long, asked.predictor)


def predict(opened: "Opened", request: "prediction.Config", *, say: Say) -> Iterator[dict[str, Any]]:
    """`row` (its line or number in the source), the value of the id column where one is named, and what `answering`
    says of it."""
    found = answering(opened, request)
    source = data.open_source(request.data, data.pick_split(request.data, request.split))
    return answers(from_source(source, found), found, request, say=say)


def _logits(opened: "Opened", rows: data.Choices, request: "evaluation.Config", say: Say) -> np.ndarray:
    asked = _Asked(opened, request.max_length)
    with counted(len(rows)) as done:
        logits, cut = asked(rows, {"batch_size": request.batch_size}, done)
    if cut.any():
        say(f"{cut.sum()} of {len(cut)} choices are longer than {asked.longest} tokens and were cut")
    return logits


def evaluate(opened: "Opened", request: "evaluation.Config", *, say: Say) -> Report:
    """Accuracy; each row counts exactly once."""
    rows = data.read_choices(
        request.data,
        columns=columns_of(request.columns),
        on_bad_row=request.on_bad_row,
        split=data.pick_split(request.data, request.split),
    )
    report = report_on(_logits(opened, rows, request, say), rows)
    skipped = f", {rows.report.skipped} skipped" if rows.report.skipped else ""
    say(f"{len(rows)} rows from {rows.source}{skipped}")
    return report
