"""Choices -> token ids, a row of tokens for each choice, and batches of all choices of an example together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxptft.data.batches import Batches
from jaxptft.data.cache import fingerprint
from jaxptft.data.choices import Choices
from jaxptft.data.tables import Table
from jaxptft.data.tokenized import Tokenized, tokenize


@dataclass(frozen=True, eq=False)
class ChoiceTokens:
    """The choices of example i are rows `first[i]` to `first[i + 1]` of `tokenized`."""

    tokenized: Tokenized
    first: Int[np.ndarray, " examples+1"]  # int64

    def __len__(self) -> int:
        return len(self.first) - 1

    @cached_property
    def longest(self) -> Tokenized:
        """A row an example, as long as its longest choice; only the lengths have a meaning."""
        lengths = np.maximum.reduceat(self.tokenized.lengths, self.first[:-1]).astype(np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        tokens = np.broadcast_to(np.int32(0), (int(offsets[-1]),))  # takes no room
        return replace(self.tokenized, tokens=tokens, offsets=offsets, boundaries=lengths.astype(np.int32))


def tokenize_choices(choices: Choices, tokenizer: Any, max_length: int, *, cache: bool = True) -> ChoiceTokens:
    """Token ids of every choice after what it answers, cut to `max_length` (the longer text first); see `tokenize`."""
    pairs = [pair for row in range(len(choices)) for pair in choices.pairs(row)]
    first = np.cumsum([0, *map(len, choices.choices)], dtype=np.int64)
    table = Table(
        texts=[text for text, _ in pairs],
        pairs=[choice for _, choice in pairs],
        labels=None,
        names=(),
        report=choices.report,
        source=choices.source,
        rows=np.repeat(choices.rows, np.diff(first)),
    )
    tokenized = tokenize(table, tokenizer, max_length, cache=cache)
    key = fingerprint(["choice tokens 1", tokenized.fingerprint, choices.fingerprint])
    return ChoiceTokens(replace(tokenized, fingerprint=key), first)


class ChoiceBatches:
    """Batches of examples with all their choices; the order is that of `Batches`, by each example's longest choice.

    `input_ids`, `attention_mask` and `token_type_ids` are int32 [batch, choices, length], `valid_choices` bool
    [batch, choices], `ids` and `label` int32 [batch], `valid` bool [batch]. Every batch has as many choices as the
    example that has most; those that an example lacks hold padding tokens only and attend to nothing.

    With `choices` they have that many, if no example has more. `options` are `Batches`'.

    Raises ValueError where `Batches` does, or a label is not among its example's choices.
    """

    def __init__(
        self,
        tokens: ChoiceTokens,
        labels: Sequence[int] | np.ndarray | None = None,
        *,
        choices: int = 0,
        **options: Any,
    ):
        self.tokens, self.tokenized = tokens, tokens.tokenized
        self._counts = np.diff(tokens.first)
        if labels is not None and len(labels) == len(tokens):
            wrong = np.flatnonzero(np.asarray(labels) >= self._counts)
            if len(wrong):
                given, count = np.asarray(labels)[wrong[0]], self._counts[wrong[0]]
                raise ValueError(f"example {wrong[0]} has label {given} and {count} choices, expected 0 to {count - 1}")
        self._order = Batches(tokens.longest, labels, **options)
        self.steps_per_epoch = self._order.steps_per_epoch
        self.choices = max(choices, int(self._counts.max()))

    @property
    def widths(self) -> tuple[int, ...]:
        """The lengths that batches may have: one compiled program each."""
        return self._order.widths

    @property
    def content(self) -> str:
        """SHA-256 of the rows' tokens alone."""
        return self.tokenized.fingerprint

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what `batch_at` returns, but for `multiple_of`."""
        return fingerprint(["choice batches 1", self._order.fingerprint])

    def texts_of(self, ids: Int[np.ndarray, " batch"]) -> Int[np.ndarray, "batch choices"]:
        """Which rows of `tokenized` the choices of these examples are; -1 where an example lacks one."""
        number, chosen = np.arange(self.choices), np.maximum(ids, 0)
        exists = (number < self._counts[chosen][:, None]) & (ids >= 0)[:, None]
        return np.where(exists, self.tokens.first[chosen][:, None] + number, -1)

    def rows_at(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step without its tokens: `ids`, `valid`, `valid_choices` and, where there are any, `label`."""
        order = self._order.rows_at(step)
        return order | {"valid_choices": self.texts_of(order["ids"]) >= 0}

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step, counted from 0 over all epochs."""
        order, tokenized = self._order.batch_at(step), self.tokenized
        texts = self.texts_of(order["ids"])
        exists, row = texts >= 0, np.maximum(texts, 0)
        place = np.arange(order["input_ids"].shape[1])
        mask = (place < tokenized.lengths[row][..., None]) & exists[..., None]
        tokens = tokenized.tokens.take(tokenized.offsets[row][..., None] + place, mode="clip")
        batch = {
            "input_ids": np.where(mask, tokens, np.int32(tokenized.pad_id)),
            "attention_mask": mask.astype(np.int32),
            "token_type_ids": (mask & (place >= tokenized.boundaries[row][..., None])).astype(np.int32),
            "valid_choices": exists,
        }
        return batch | {name: order[name] for name in ("ids", "valid", "label") if name in order}
