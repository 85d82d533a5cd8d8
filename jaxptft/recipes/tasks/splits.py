"""What tasks over rows share: splits -> tokens -> batches, with facts kept, and one line said, of each split."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jaxptft import data
from jaxptft.data.held_out import Rows
from jaxptft.recipes.tasks import PACKED_TASKS
from jaxptft.recipes.training import EVALUATION_ROWS, Batches
from jaxptft.recipes.training_settings import PROGRAM_STEPS, TrainingSettings

if TYPE_CHECKING:
    from jaxptft.recipes import finetune

R = TypeVar("R", bound=Rows)
B = TypeVar("B", bound=Batches)
Say = Callable[[str], None]


def read_splits(
    config: Any, read: Callable[[Any, str | None], R], *, texts: Callable[[R], Sequence[str]]
) -> tuple[dict[str, R], dict[str, str]]:
    """The rows to learn from, to choose by and, if given, to test on; and in words where those of each split are from.

    `read` and `texts` are those of `data.read_with_held_out`.
    """
    train, held, origin = data.read_with_held_out(read, config.train, config.eval, texts=texts, seed=config.seed)
    rows = {"train": train, "eval": held}
    if config.test is not None:
        rows["test"] = read(config.test, data.pick_split(config.test, "test"))
    return rows, {split: part.source for split, part in rows.items()} | {"eval": origin}


def fit_widths(
    tokens: Mapping[str, data.Tokenized], *, count: int, max_length: int, batch_size: int
) -> dict[bool, tuple[int, ...]]:
    """The widths that batches are padded to, of training (True) and of everything else (False).

    They are apart, so that what is trained does not depend on what is tested.
    """
    others = [tokenized.lengths for split, tokenized in tokens.items() if split != "train"]
    found = {}
    for training, lengths in ((True, tokens["train"].lengths), (False, np.concatenate(others))):
        step = (batch_size if training else EVALUATION_ROWS) * lengths.mean()
        found[training] = data.fitted_buckets(lengths, count, most=max_length, price=PROGRAM_STEPS * float(step))
    return found


def batch_options(config: TrainingSettings, split: str, *, devices: int) -> dict[str, Any]:
    """What `data.Batches` needs to know of a split."""
    training = split == "train"
    return {
        "batch_size": config.batch_size if training else EVALUATION_ROWS,
        "seed": config.seed,
        "shuffle": training,
        "multiple_of": devices * (config.accumulate if training else 1),
    }


def describe(split: str, rows: int, source: str, *, skipped: int = 0, truncated: int = 0, max_length: int = 0) -> str:
    """One line for the log."""
    cut = f", {truncated} cut to {max_length} tokens" if truncated else ""
    bad = f", {skipped} bad rows skipped" if skipped else ""
    return f"{split}: {rows} rows from {source}{cut}{bad}"


def batch_each(
    config: "finetune.Config",
    tokens: Mapping[str, data.Tokenized],
    batch: Callable[..., B],
    *,
    facts: Callable[[str], Mapping[str, int]],
    tell: Callable[[str], str],
    devices: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Batches of each split, those of training packed if that is asked for, and the facts: fact -> split -> value.

    Args:
        tokens: what decides the widths of batches, by split.
        batch: (split, **options) -> the batches of a split; `options` are those of `data.Batches`.
        facts: of a split, for report.json.
        tell: the line that is said of a split.
    """
    widths = fit_widths(tokens, count=config.length_buckets, max_length=config.max_length, batch_size=config.batch_size)
    batches: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for split in tokens:
        options = batch_options(config, split, devices=devices)
        options["buckets"] = widths[split == "train"]
        batches[split] = batch(split, **options)
        for fact, value in facts(split).items():
            found.setdefault(fact, {})[split] = value
        say(tell(split))
        if split == "train" and _packs(config, partial(batch, split), options):
            batches[split] = _packed(config, batch(split, **options, window=1), options, say)
    return batches, found


def _packs(config: "finetune.Config", batch: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    """Whether packed rows are asked for, or less is padded in them: on one device, so that all numbers agree."""
    if config.packing != "auto" or config.task not in PACKED_TASKS:
        return config.packing == "on"
    alone = {**options, "multiple_of": 1}
    packed = data.PackedRows(batch(**alone, window=1), shapes=config.length_buckets, price=PROGRAM_STEPS)
    return packed.padding_share < data.padding_share(batch(**alone))


def _packed(config: "finetune.Config", mixed: Any, options: Mapping[str, Any], say: Say) -> data.PackedRows:
    """Batches of mixed lengths, each in packed rows."""
    rows = data.PackedRows(mixed, shapes=config.length_buckets, price=PROGRAM_STEPS, multiple_of=options["multiple_of"])
    counts = ", ".join(map(str, rows.rows))
    say(f"train: packed, {counts} rows of {rows.length} tokens a batch, {rows.padding_share:.1%} padding")
    return rows


def batch_tokens(
    config: "finetune.Config",
    tables: Mapping[str, data.Table],
    tokens: Mapping[str, data.Tokenized],
    *,
    origins: Mapping[str, str],
    devices: int,
    say: Callable[[str], None],
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Batches of each split's tokens, a row of its table each, and the facts about them.

    `origins` says where a split's rows are from where that is not its table's source; `options` are further arguments
    of `data.Batches` by split (labels, classes).
    """

    def facts(split: str) -> dict[str, int]:
        table = tables[split]
        return {"rows": len(table), "skipped_rows": table.report.skipped, "truncated": tokens[split].truncated}

    def tell(split: str) -> str:
        table = tables[split]
        counts = {"skipped": table.report.skipped, "truncated": tokens[split].truncated}
        source = origins.get(split, table.source)
        return describe(split, len(table), source, **counts, max_length=config.max_length)

    def batch(split: str, **own: Any) -> data.Batches:
        return data.Batches(tokens[split], **own, **(options or {}).get(split, {}))

    return batch_each(config, tokens, batch, facts=facts, tell=tell, devices=devices, say=say)


def batch_splits(
    config: "finetune.Config", tables: Mapping[str, data.Table], *, tokenizer: Any, **options: Any
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """`batch_tokens` of tables of texts, each cut to `max_length`."""
    tokens = {split: data.tokenize(table, tokenizer, config.max_length) for split, table in tables.items()}
    return batch_tokens(config, tables, tokens, **options)
