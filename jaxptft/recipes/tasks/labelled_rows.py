"""What tasks with one answer for a whole text, or pair of texts, share: rows read, balanced, changed, and told."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxptft import data, objectives
from jaxptft.data.targets import Target
from jaxptft.recipes.tasks.answering import Answered, Answering, answers, from_source
from jaxptft.recipes.tasks.settings import Columns
from jaxptft.recipes.training import TextBatches

if TYPE_CHECKING:
    from jaxptft.recipes import finetune
    from jaxptft.recipes import predict as prediction
    from jaxptft.recipes.inference import Opened

Say = Callable[[str], None]


def columns_of(columns: Columns, id: str | None = None) -> data.Columns:
    return data.Columns(columns.text, columns.pair, columns.label, id=id)


def row_namer(table: data.Table) -> Callable[[int], str]:
    """Words for an example's number: its place in the source."""
    return lambda index: f"{table.source}, row {table.rows[index]}"


def read_tables(config: "finetune.Config", target: Target) -> tuple[dict[str, data.Table], str]:
    """The rows to learn from, to choose by and, if given, to test on; and where those to choose by are from."""
    columns = columns_of(config.columns)
    options: dict[str, Any] = {"columns": columns, "on_bad_row": config.on_bad_row, "target": target}
    sources = data.read_training_data(config.train, config.eval, seed=config.seed, **options)
    tables = {"train": sources.train, "eval": sources.evaluation}
    if config.test is not None:
        split = data.pick_split(config.test, "test")
        tables["test"] = data.read_table(config.test, names=sources.train.names, split=split, **options)
    return tables, sources.origin


def answers_of(table: data.Table) -> np.ndarray:
    """The labels of a table that was read with them."""
    assert table.labels is not None
    return table.labels


def training_options(config: "finetune.Config", labels: np.ndarray) -> dict[str, Any]:
    """What else `data.Batches` is to know of the training rows: with balanced sampling, how often each comes.

    Raises ValueError where the labels are numbers.
    """
    return {"weights": data.balanced_weights(labels)} if config.sampling == "balanced" else {}


def augmented(batches: TextBatches, config: "finetune.Config", *, tokenizer: Any, vocab_size: int) -> TextBatches:
    """Training batches with the words of their texts deleted and swapped, as the config asks; else as they are."""
    asked = config.augment
    if not (asked.deletion or asked.swap):
        return batches
    table = data.token_table(tokenizer, vocab_size, mask=False)
    edits = data.WordEdits(deletion=asked.deletion, swap=asked.swap, rows=asked.rows)
    tables = {"special": table.special, "starts_word": table.starts_word}
    changed = data.AugmentedBatches(batches, edits, seed=config.seed, **tables)
    changed.batch_at(0)  # so that a task whose tokens must not move is refused before the first step
    return changed


def read_asked(request: Any, *, target: Target, names: Sequence[str] | None = None) -> data.Table:
    """The rows that `evaluate` asks for, with labels as `target` reads them."""
    return data.read_table(
        request.data,
        columns=columns_of(request.columns),
        names=names,
        on_bad_row=request.on_bad_row,
        split=data.pick_split(request.data, request.split),
        target=target,
    )


def text_answering(
    opened: "Opened",
    request: "prediction.Config",
    objective: Callable[[Any], objectives.Objective],
    lines: Callable[[np.ndarray], Iterable[dict[str, Any]]],
    *,
    classes: int,
) -> Answering:
    """How rows of text are answered: `lines` makes an answer of each row's logits [rows, classes]."""
    predictor = opened.predictor(objective(opened.model("classification", classes=classes)))
    tokenizer, longest = data.FixedTokenizer(opened.tokenizer), opened.longest(request.max_length)
    columns = columns_of(request.columns, request.id)

    def read(source: data.Source) -> data.Table:
        return data.read_table(source, columns=columns, labelled=False, on_bad_row=request.on_bad_row)

    def answer(table: data.Table, batching: Mapping[str, Any], done: Callable[[int], None]) -> Answered:
        tokenized = data.tokenize(table, tokenizer, longest, cache=False)
        batches = data.Batches(tokenized, shuffle=False, multiple_of=opened.devices, **batching)
        found = predictor(batches, name_row=row_namer(table), done=done)
        assert tokenized.cut is not None
        return Answered(lines(found["logits"]), tokenized.cut)

    return Answering(
        read, answer, f"{{long}} of {{rows}} texts are longer than {longest} tokens and were cut", predictor
    )


def predict_texts(answering: Answering, request: "prediction.Config", *, say: Say) -> Iterator[dict[str, Any]]:
    """A line for each row of text that `predict` asks for; see `answers`."""
    source = data.open_source(request.data, data.pick_split(request.data, request.split))
    return answers(from_source(source, answering), answering, request, say=say)


def logits_of(
    opened: "Opened",
    table: data.Table,
    objective: Callable[[Any], objectives.Objective],
    *,
    classes: int,
    batch_size: int,
    max_length: int | None,
    say: Say,
) -> np.ndarray:
    """What the model says of each row, in their order; FloatingPointError, naming the row, where that is not finite."""
    model = opened.model("classification", classes=classes)
    batches = opened.batches(table, batch_size=batch_size, max_length=max_length, say=say)
    return opened.predictions(objective(model), batches, name_row=row_namer(table))["logits"]


def say_rows(table: data.Table, say: Say) -> None:
    """How many rows there were, and how many of them were bad."""
    skipped = f", {table.report.skipped} skipped" if table.report.skipped else ""
    say(f"{len(table)} rows from {table.source}{skipped}")
