"""The examples of each batch put together in rows, several in each: the same examples a step, without the padding.

Which examples make a batch is what other batches say; here each batch is laid out anew. A loss that is a mean over
examples, and its gradient, stay what they were. Rows are filled best-fit decreasing, as in `packing`; how many a batch
has is one of a few numbers, each one compiled program, so that rows stay empty only where a batch needs fewer.
"""

import operator
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxptft.data.batches import Batches, fitted_buckets
from jaxptft.data.cache import fingerprint
from jaxptft.data.examples import spans
from jaxptft.data.packing import Packing, pack

SHORTEST = 64  # tokens in a row at least: a shorter one holds few examples, and is filled less well
MULTIPLE = 8  # of which the default length of a row is one
SEEN = 500  # batches at most from which the numbers of rows are fitted
_UNLABELLED = -100


class PackedRows:
    """The batches of `batches`, each with the same examples, several of them in one row.

    Every batch is a dict of numpy arrays: `input_ids`, `attention_mask`, `token_type_ids`, `segment_ids`,
    `position_ids` int32 [rows, length], `ids` and `valid` [rows, segments] as in `PackedBatches`, `starts` int32 [rows,
    segments] (the place of each example's first token; 0 where there is none), `labels` int32 [rows, length] where
    `batches` label tokens (-100 at padding), and whatever else they have of each example, [rows, segments, ...] (0
    where there is none).

    Args:
      batches: texts of mixed lengths share rows well, so give them `window=1`: ordered by length, there is little left
        to gain.
      length: tokens in a row. Default: those of the longest example, and at least 64.
      segments: the most examples in a row. Default: as many as a row takes in the first epoch.
      shapes: how many numbers of rows batches have at most, fitted to the first epoch's; where a later batch needs
        more, it has as many as it needs.
      price: how many steps of an epoch a further number of rows must save at least: it is one more program to compile.
      multiple_of: rows are a multiple of this (a number of devices), which changes no more than how many are empty.

    Raises:
      ValueError: an example that is empty or longer than a row, or a number below 1.
    """

    def __init__(
        self,
        batches: Batches,
        *,
        length: int | None = None,
        segments: int | None = None,
        shapes: int = 1,
        price: float = 0.0,
        multiple_of: int = 1,
    ):
        lengths = batches.tokenized.lengths
        length = -(-max(int(lengths.max()), SHORTEST) // MULTIPLE) * MULTIPLE if length is None else length
        for name, value in (("length", length), ("shapes", shapes), ("multiple_of", multiple_of)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if lengths.min() < 1 or lengths.max() > length:
            pack(lengths, length)  # says which
        self.tokenized = batches.tokenized
        self.steps_per_epoch = batches.steps_per_epoch
        self.batch_size = batches.batch_size
        self.length = length
        self._batches, self._shapes, self._price, self._multiple = batches, shapes, price, multiple_of
        steps = np.unique(np.linspace(0, self.steps_per_epoch - 1, SEEN).round().astype(np.int64))
        seen = [_lengths(batches.batch_at(int(step))) for step in steps]
        packings = [pack(part, length, segments=segments) for part in seen]
        self.segments = segments or max(int(np.diff(packing.offsets).max()) for packing in packings)
        needed = np.array([len(packing.offsets) - 1 for packing in packings])
        dear = price * needed.mean() * len(steps) / self.steps_per_epoch  # as `steps` are some of an epoch's
        self._rows = fitted_buckets(needed, shapes, multiple=multiple_of, price=dear)
        self._empty = 1 - int(np.concatenate(seen).sum()) / (length * sum(map(self._fitting, needed.tolist())))

    @property
    def rows(self) -> tuple[int, ...]:
        """How many rows batches of the first epoch have: one compiled program each."""
        return self._rows

    @property
    def padding_share(self) -> float:
        """The share of what the first epoch's batches compute that is padding."""
        return self._empty

    @property
    def content(self) -> str:
        """SHA-256 of the examples' tokens alone."""
        return self._batches.content

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what `batch_at` returns, but for `multiple_of`."""
        layout = (self.length, self.segments, self._shapes, self._price)
        return fingerprint(["packed rows 2", self._batches.fingerprint, repr(layout)])

    def _fitting(self, needed: int) -> int:
        """The number of rows of a batch that needs so many."""
        fitting = [rows for rows in self._rows if rows >= needed]
        return fitting[0] if fitting else -(-needed // self._multiple) * self._multiple

    def batch_at(self, step: int) -> dict[str, Any]:
        """The batch of a step, counted from 0 over all epochs."""
        batch = self._batches.batch_at(operator.index(step))
        lengths = _lengths(batch)
        return self._laid_out(batch, lengths, pack(lengths, self.length, segments=self.segments))

    def _laid_out(
        self, batch: dict[str, Any], lengths: Int[np.ndarray, " examples"], packing: Packing
    ) -> dict[str, Any]:
        filled = len(packing.offsets) - 1
        shape = (self._fitting(filled), self.length)
        # By example, in the order of `batch`: its row, its number within the row, and where it begins there.
        row, number, begin = (np.zeros(len(lengths), np.int64) for _ in range(3))
        row[packing.examples] = np.repeat(np.arange(filled), np.diff(packing.offsets))
        number[packing.examples] = spans(np.zeros(filled, np.int64), np.diff(packing.offsets))
        ends = np.cumsum(lengths[packing.examples])
        before = np.concatenate([[0], ends])[packing.offsets[:-1]]  # tokens in the rows above
        begin[packing.examples] = ends - lengths[packing.examples] - np.repeat(before, np.diff(packing.offsets))

        real = np.asarray(batch["attention_mask"], bool)
        valid = np.flatnonzero(batch["valid"])
        cells = spans(row * self.length + begin, lengths)
        tokens = {
            "segment_ids": (np.repeat(number + 1, lengths), 0),
            "position_ids": (spans(np.zeros_like(lengths), lengths), 0),
        }
        paddings = {"input_ids": self.tokenized.pad_id, "attention_mask": 0, "token_type_ids": 0, "labels": _UNLABELLED}
        tokens |= {name: (batch[name][real], padding) for name, padding in paddings.items() if name in batch}
        found: dict[str, Any] = {}
        for name, (values, padding) in tokens.items():
            found[name] = np.full(shape, padding, np.int32)
            found[name].reshape(-1)[cells] = values
        examples = {name: values[valid] for name, values in batch.items() if name not in found}
        examples["starts"] = begin.astype(np.int32)
        for name, values in examples.items():
            places, nothing = (shape[0], self.segments, *values.shape[1:]), -1 if name == "ids" else 0
            found[name] = np.full(places, nothing, values.dtype)
            found[name][row, number] = values
        return found


def _lengths(batch: dict[str, Any]) -> Int[np.ndarray, " examples"]:
    """Tokens of each valid example."""
    return np.asarray(batch["attention_mask"]).sum(1)[np.asarray(batch["valid"])].astype(np.int64)
