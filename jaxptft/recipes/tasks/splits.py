"""What tasks over rows of text share: tables -> tokens -> batches, with one line said of each split."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxptft import data
from jaxptft.recipes.training import EVALUATION_ROWS
from jaxptft.recipes.training_settings import TrainingSettings


def fit_widths(tokens: Mapping[str, data.Tokenized], *, count: int, max_length: int) -> dict[bool, tuple[int, ...]]:
    """The widths that batches are padded to, of training (True) and of everything else (False).

    They are apart, so that what is trained does not depend on what is tested.
    """
    others = [tokenized.lengths for split, tokenized in tokens.items() if split != "train"]
    return {
        training: data.fitted_buckets(lengths, count, most=max_length)
        for training, lengths in ((True, tokens["train"].lengths), (False, np.concatenate(others)))
    }


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


def batch_splits(
    config: Any,
    tables: Mapping[str, data.Table],
    *,
    tokenizer: Any,
    devices: int,
    origins: Mapping[str, str],
    options: Mapping[str, Mapping[str, Any]],
    say: Callable[[str], None],
) -> tuple[dict[str, data.Batches], dict[str, dict[str, Any]]]:
    """Batches of each split's table, and the facts about them.

    `origins` says where a split's rows are from where that is not its table's source; `options` are further arguments
    of `data.Batches` by split (labels, classes).
    """
    tokens = {split: data.tokenize(table, tokenizer, config.max_length) for split, table in tables.items()}
    widths = fit_widths(tokens, count=config.length_buckets, max_length=config.max_length)
    batches: dict[str, data.Batches] = {}
    facts: dict[str, dict[str, Any]] = {"rows": {}, "skipped_rows": {}, "truncated": {}}
    for split, table in tables.items():
        batches[split] = data.Batches(
            tokens[split],
            buckets=widths[split == "train"],
            **batch_options(config, split, devices=devices),
            **options[split],
        )
        truncated, skipped = tokens[split].truncated, table.report.skipped
        for fact, count in (("rows", len(table)), ("skipped_rows", skipped), ("truncated", truncated)):
            facts[fact][split] = count
        source = origins.get(split, table.source)
        counts: dict[str, int] = {"skipped": skipped, "truncated": truncated, "max_length": config.max_length}
        say(describe(split, len(table), source, **counts))
    return batches, facts
