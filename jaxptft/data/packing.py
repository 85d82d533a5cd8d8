"""Several examples in one row: which share a row, and batches of such rows.

Rows are filled from the histogram of lengths alone: best-fit decreasing, all examples of one length at once. So the
number of rows is that of every epoch, while any example may take any place of its length: each epoch deals them anew.

Source: Krell et al. 2021 (arXiv:2107.02027), who also show why attention must stay within an example and positions
restart with it.
"""

import operator
from bisect import bisect_left, insort
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxptft.data.batches import Batches, check_labels
from jaxptft.data.cache import fingerprint
from jaxptft.data.examples import spans
from jaxptft.data.tokenized import Tokenized


class Packing(NamedTuple):
    """Row r holds the examples `examples[offsets[r]:offsets[r + 1]]`, in this order."""

    examples: Int[np.ndarray, " examples"]
    offsets: Int[np.ndarray, " rows+1"]


class _Alike(NamedTuple):
    """Rows with the same content: how many rows, examples in each, and each's (length, number of examples) in turn."""

    rows: int
    used: int
    content: tuple[tuple[int, int], ...]


def pack(lengths: Int[np.ndarray, " examples"], capacity: int, *, segments: int | None = None) -> Packing:
    """Every example in one row of `capacity` tokens, in few rows: the longest first, each where it leaves least room.

    Args:
      segments: the most examples in a row; None for as many as fit.

    Raises:
      ValueError: an example with no tokens or more than `capacity`, or `segments` below 1.
    """
    lengths = np.asarray(lengths)
    if segments is not None and segments < 1:
        raise ValueError(f"segments is {segments}, expected at least 1")
    wrong = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if len(wrong):
        found = lengths[wrong[0]]
        raise ValueError(
            f"example {wrong[0]} has {found} tokens, and a row takes 1 to {capacity}; "
            + ("leave it out" if found < 1 else "give longer rows, or cut it")
        )
    alike = _fill(np.bincount(lengths, minlength=1), capacity, capacity if segments is None else segments)
    offsets = np.concatenate([[0], *(np.full(group.rows, group.used) for group in alike)])
    places = [np.zeros(0, np.int64)]  # the length that goes there
    for group in alike:
        content = np.array(group.content)
        places.append(np.tile(np.repeat(content[:, 0], content[:, 1]), group.rows))
    examples = np.empty(len(lengths), np.int64)
    examples[_by_length(np.concatenate(places), capacity)] = _by_length(lengths, capacity)
    return Packing(examples, np.cumsum(offsets))


def _by_length(lengths: Int[np.ndarray, " examples"], capacity: int) -> Int[np.ndarray, " examples"]:
    # numpy sorts 16-bit keys in linear time.
    return np.argsort(lengths.astype(np.uint16 if capacity < 1 << 16 else np.int64), kind="stable")


def _fill(counts: Int[np.ndarray, " lengths"], capacity: int, most: int) -> list[_Alike]:
    """Best-fit decreasing over a histogram of lengths; rows of equal content are one entry."""
    full: list[_Alike] = []
    open_rows: dict[int, list[_Alike]] = {}  # by the room they have left, which is also in `rooms`, ascending
    rooms: list[int] = []
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            place = bisect_left(rooms, length)
            if place < len(rooms):
                room = rooms[place]
                group = open_rows[room].pop()
                if not open_rows[room]:
                    del open_rows[room], rooms[place]
            else:
                room, group = capacity, _Alike(0, 0, ())
            each = min(room // length, most - group.used)
            # The last row may take fewer than it could.
            rows, each = (left // each, each) if left >= each else (1, left)
            if group.rows:
                rows = min(rows, group.rows)
                if group.rows > rows:
                    _put(open_rows, rooms, room, group._replace(rows=group.rows - rows))
            left -= rows * each
            group = _Alike(rows, group.used + each, (*group.content, (length, each)))
            room -= each * length
            if room and group.used < most:
                _put(open_rows, rooms, room, group)
            else:
                full.append(group)
    return full + [group for room in rooms for group in open_rows[room]]


def _put(open_rows: dict[int, list[_Alike]], rooms: list[int], room: int, group: _Alike) -> None:
    if room not in open_rows:
        open_rows[room] = []
        insort(rooms, room)
    open_rows[room].append(group)


class PackedBatches:
    """Batches of rows that hold several examples each; in all else as `Batches`.

    Every batch is a dict of numpy arrays: `input_ids`, `attention_mask`, `token_type_ids` as there, `segment_ids` int32
    [batch, length] (the number of the token's example within its row, from 1; 0 for padding), `position_ids` int32
    [batch, length] (the token's place in its example; 0 for padding), `ids` int32 and `valid` bool [batch, segments]
    (which examples; -1 and False where a row has fewer) and, where there are labels, `label` int32 [batch, segments].

    An epoch visits every example exactly once. With `shuffle`, the rows come in an order keyed by (seed, epoch), and
    examples of one length change places.

    Args:
      labels: the class of every example, or None.
      batch_size: rows in a batch; the last batch of an epoch may have fewer.
      length: tokens in a row.
      segments: the most examples in a row. Default: as many as the fullest row has.
      seed, shuffle, multiple_of: as in `Batches`.

    Raises:
      ValueError: no examples, one longer than a row or empty, labels of another number or negative.
    """

    def __init__(
        self,
        tokenized: Tokenized,
        labels: Int[np.ndarray, " examples"] | Sequence[int] | None = None,
        *,
        batch_size: int,
        length: int,
        segments: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        multiple_of: int = 1,
        classes: int | None = None,
    ):
        if not len(tokenized):
            raise ValueError("there are no examples to make batches of")
        for name, value in (("batch_size", batch_size), ("length", length), ("multiple_of", multiple_of)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        packing = pack(tokenized.lengths, length, segments=segments)
        self.tokenized = tokenized
        self.labels = None if labels is None else check_labels(labels, len(tokenized), classes)
        self.batch_size = batch_size
        self.length = length
        self.segments = segments or int(np.diff(packing.offsets).max())
        self.seed = seed
        self.shuffle = shuffle
        self.rows_per_batch = -(-batch_size // multiple_of) * multiple_of
        self.steps_per_epoch = -(-(len(packing.offsets) - 1) // batch_size)
        self._packing = packing
        self._places = _by_length(tokenized.lengths[packing.examples], length)
        # The latest two epochs: a prefetching thread may be one ahead.
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    @property
    def widths(self) -> tuple[int, ...]:
        """The lengths that batches may have: one compiled program each."""
        return (self.length,)

    @property
    def cells(self) -> int:
        """Places for tokens in the batches of an epoch, padding rows included."""
        return self.steps_per_epoch * self.rows_per_batch * self.length

    @property
    def content(self) -> str:
        """SHA-256 of the rows' tokens alone."""
        return self.tokenized.fingerprint

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what `batch_at` returns, but for `multiple_of`."""
        labels = b"" if self.labels is None else self.labels.astype("<i4").tobytes()
        order = (self.batch_size, self.seed, self.shuffle, self.length, self.segments)
        return fingerprint(["packed batches 1", self.tokenized.fingerprint, labels, repr(order)])

    def _make_plan(self, epoch: int) -> tuple[Int[np.ndarray, "steps batch"], Int[np.ndarray, " examples"]]:
        """The rows of every batch of an epoch, -1 where a batch has none, and the example in every place of them."""
        rows, size, steps = len(self._packing.offsets) - 1, self.batch_size, self.steps_per_epoch
        order, examples = np.arange(rows), self._packing.examples
        if self.shuffle:
            random = np.random.default_rng((self.seed, epoch))
            order = random.permutation(rows)
            dealt = random.permutation(len(examples))
            examples = np.empty_like(dealt)
            examples[self._places] = dealt[_by_length(self.tokenized.lengths[dealt], self.length)]
        gap = np.full(steps * size - rows, -1, np.int64)
        return np.concatenate([order, gap]).reshape(steps, size), examples

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step, counted from 0 over all epochs. Costs at most the order of one epoch."""
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"step is {step}, expected 0 or more")
        epoch, place = divmod(step, self.steps_per_epoch)
        order, examples = self._plan(epoch if self.shuffle else 0)
        chosen = np.full(self.rows_per_batch, -1, np.int64)
        chosen[: self.batch_size] = order[place]
        start = self._packing.offsets[chosen][:, None]
        count = np.where(chosen < 0, 0, self._packing.offsets[chosen + 1] - start[:, 0])[:, None]
        number = np.arange(self.segments)
        valid = number < count
        ids = np.where(valid, examples.take(start + number, mode="clip"), -1)
        lengths = np.where(valid, self.tokenized.lengths[ids], 0)
        begins = np.arange(len(ids))[:, None] * self.length + np.cumsum(lengths, 1) - lengths

        # From here on one entry a token.
        lengths, example = lengths[valid], ids[valid]
        cells = spans(begins[valid], lengths)
        within = spans(np.zeros_like(lengths), lengths)
        source = spans(self.tokenized.offsets[example], lengths)
        columns = {
            "input_ids": (self.tokenized.tokens[source], self.tokenized.pad_id),
            "attention_mask": (1, 0),
            "token_type_ids": (within >= np.repeat(self.tokenized.boundaries[example], lengths), 0),
            "segment_ids": (np.repeat(np.nonzero(valid)[1] + 1, lengths), 0),
            "position_ids": (within, 0),
        }
        batch = {}
        for name, (values, padding) in columns.items():
            batch[name] = np.full((len(ids), self.length), padding, np.int32)
            batch[name].reshape(-1)[cells] = values
        batch |= {"ids": ids.astype(np.int32), "valid": valid}
        if self.labels is not None:
            batch["label"] = np.where(valid, self.labels[ids], np.int32(0))
        return batch


def padding_share(batches: Batches | PackedBatches) -> float:
    """The share of what an epoch's batches compute that is padding; the first epoch's, where epochs differ a little."""
    return 1 - int(batches.tokenized.lengths.sum(dtype=np.int64)) / batches.cells
