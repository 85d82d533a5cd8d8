"""What tasks with one answer for a whole text, or pair of texts, share: rows read, balanced, changed, and told."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxptft import data, objectives
from jaxptft.data.targets import Target
from jaxptft.recipes.tasks.settings import Columns
from jaxptft.recipes.training import TextBatches

if TYPE_CHECKING:
    from jaxptft.recipes import finetune
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


def read_asked(request: Any, *, target: Target | None = None, names: Sequence[str] | None = None) -> data.Table:
    """The rows that `evaluate` asks for, with labels as `target` reads them, or `predict` (no target), without."""
    return data.read_table(
        request.data,
        columns=columns_of(request.columns, getattr(request, "id", None)),
        names=names,
        labelled=target is not None,
        on_bad_row=request.on_bad_row,
        split=data.pick_split(request.data, request.split),
        target=target,
    )


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


def lines(table: data.Table, answers: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """An answer for each row, after `row` (its line or number in the source) and the value of the id column."""
    keys = table.keys or [None] * len(table)
    for row, key, answer in zip(table.rows.tolist(), keys, answers, strict=True):
        yield {"row": row} | ({} if key is None else {"id": key}) | answer
