"""Tokenized rows -> padded batches, where a batch is a pure function of the data, the seed and the step.

An epoch visits every row exactly once. For training, the rows are shuffled with a permutation keyed by (seed, epoch),
cut into windows of some batches, ordered by padded length within each window, cut into batches, and the batches are
shuffled: rows of one batch have nearly one length, and still meet other rows every epoch. For evaluation, all rows are
ordered by length, the longest first.

With sampling weights an epoch has as many rows as the table, drawn in proportion to the weights: by systematic
resampling of the permutation, so that a row whose share is s of n rows comes n s times, rounded up or down.
"""

import operator
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from jaxptft.data.cache import fingerprint
from jaxptft.data.tokenized import Tokenized


def length_buckets(max_length: int) -> tuple[int, ...]:
    """The widths batches are padded to: every 8 up to 64, every 16 up to 128, every 32 up to 256, then every 64.

    Measured with batches of 32: sentences of 27 tokens (79 at most) cost 16 % more tokens than they have, in 9 widths;
    every 16 would be 31 % in 5. Articles cut to 512 cost 6 % more in 8 widths; every 8 would be 2 % in 45.
    """
    steps = ((64, 8), (128, 16), (256, 32), (max(max_length, 257), 64))
    widths: list[int] = []
    for end, step in steps:
        start = (widths[-1] if widths else 0) + step
        widths += range(start, end + 1, step)
    return (*(width for width in widths if width < max_length), max_length)


def fitted_buckets(
    lengths: Int[np.ndarray, " rows"], count: int, *, multiple: int = 8, most: int | None = None, price: float = 0.0
) -> tuple[int, ...]:
    """At most `count` widths, multiples of `multiple`, that pad rows of these lengths the least.

    Each width is one more program to compile, each padded token one more to compute: with `price`, there are only as
    many widths as each save so many tokens at least. The last width takes the longest row, and is `most` where the
    multiple would be more. Exact, by dynamic programming over the multiples. Raises ValueError on no rows or a count
    below 1.

    >>> fitted_buckets(np.array([3, 8, 9, 9, 30, 31, 64]), 3)
    (16, 32, 64)
    """
    if count < 1 or not len(lengths):
        raise ValueError(f"cannot fit {count} widths to {len(lengths)} rows; expected at least one of each")
    steps = -(-int(np.max(lengths)) // multiple)
    ceilings = np.bincount(-(-np.asarray(lengths) // multiple), minlength=steps + 1)
    rows = np.concatenate([[0], np.cumsum(ceilings[1:]) + ceilings[0]])  # rows[i]: no longer than i multiples
    ends = np.arange(steps + 1)
    # cost[i]: tokens of all rows no longer than i multiples, with i as the last width; from[k][i]: the width before.
    cost, before = np.where(ends > 0, rows * ends, 0).astype(np.int64), [np.zeros(steps + 1, np.int64)]
    whole = [multiple * cost[-1]]  # tokens with one width, two, ...
    for _ in range(min(count, steps) - 1):
        options = cost[None, :] + (rows[:, None] - rows[None, :]) * ends[:, None]
        options = np.where(ends[None, :] <= ends[:, None], options, np.iinfo(np.int64).max)
        before.append(options.argmin(1))
        cost = options.min(1)
        whole.append(multiple * cost[-1])
    best = int(np.argmin(whole + price * np.arange(len(whole)))) if price else len(whole) - 1
    widths, last = [], steps
    for previous in reversed(before[: best + 1]):
        if last > 0 and (not widths or last < widths[-1]):
            widths.append(int(last))
        last = int(previous[last])
    return tuple(min(width * multiple, most or width * multiple) for width in reversed(widths))


class Batches:
    """Batches of one tokenized table.

    Every batch is a dict of numpy arrays: `input_ids`, `attention_mask`, `token_type_ids` int32 [batch, length], `ids`
    int32 [batch] (row numbers; -1 for padding rows), `valid` bool [batch] and, where there are labels or targets,
    `label`: int32 [batch], or float32 [batch] or [batch, outputs]. `length` is the smallest bucket that takes the
    longest row. A padding row is not valid, holds padding tokens only, attends to nothing, and has label 0.

    Args:
      labels: the class of every row, or None.
      targets: in place of labels, the number of every row, or a number (such as a 0/1 flag) for each output.
      batch_size: rows of data in a batch; the last batch of an epoch may have fewer.
      sizes: the numbers of rows that batches may have, padding rows included, ascending up to `batch_size`: each takes
        the fewest that hold the rows of its width, and fills up with shorter ones. Not with `shuffle`.
      seed: decides the order together with the epoch.
      shuffle: False for evaluation.
      buckets: widths to pad to, ascending; the last must take the longest row. Default: `length_buckets`.
      multiple_of: add padding rows until the batch axis is a multiple of this (a number of devices). Which rows of data
        a batch has does not depend on it.
      window: how many batches are ordered by length together.
      classes: if given, labels must be below it.
      weights: if given, the rows of an epoch are drawn, with repetition, in proportion to these.

    Raises:
      ValueError: no rows, labels or targets of another number or out of range, buckets that do not fit the rows,
        weights that are negative, all zero or of another number, or that came without `shuffle`, sizes with it.
    """

    def __init__(
        self,
        tokenized: Tokenized,
        labels: Int[np.ndarray, " rows"] | Sequence[int] | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        sizes: Sequence[int] | None = None,
        buckets: Sequence[int] | None = None,
        multiple_of: int = 1,
        window: int = 50,
        classes: int | None = None,
        targets: Float[np.ndarray, " rows *outputs"] | None = None,
        weights: Float[np.ndarray, " rows"] | Sequence[float] | None = None,
    ):
        rows = len(tokenized)
        if not rows:
            raise ValueError("there are no rows to make batches of")
        if sizes is not None and (shuffle or np.any(np.diff([0, *sizes]) <= 0) or list(sizes)[-1:] != [batch_size]):
            raise ValueError(
                f"sizes are {list(sizes)}, expected ascending numbers up to batch_size ({batch_size}), and no shuffle"
            )
        for name, value in (("batch_size", batch_size), ("multiple_of", multiple_of), ("window", window)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        widths = np.asarray(length_buckets(tokenized.max_length) if buckets is None else tuple(buckets), np.int64)
        longest = int(tokenized.lengths.max())
        if not len(widths) or widths[0] < 1 or np.any(np.diff(widths) <= 0):
            raise ValueError(f"buckets are {widths.tolist()}, expected positive widths in ascending order")
        if widths[-1] < longest:
            raise ValueError(f"the last bucket is {widths[-1]}, and a row has {longest} tokens; add a wider bucket")

        self.tokenized = tokenized
        if labels is not None and targets is not None:
            raise ValueError("both labels and targets are given; give one")
        self.labels = None if labels is None else check_labels(labels, rows, classes)
        self.targets = None if targets is None else _check_targets(targets, rows)
        self.weights = None if weights is None else check_weights(weights, rows, shuffle)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.window = window
        self.rows_per_batch = -(-batch_size // multiple_of) * multiple_of
        self.steps_per_epoch = -(-rows // batch_size)
        self._multiple, self._widths = multiple_of, widths
        self._bucket = np.searchsorted(widths, tokenized.lengths)
        self._sized = None if sizes is None else _cut_to_sizes(self._bucket, tokenized.lengths, np.asarray(sizes))
        if self._sized is not None:
            self.steps_per_epoch = len(self._sized)
        # The latest two epochs: a prefetching thread may be one ahead.
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    @property
    def widths(self) -> tuple[int, ...]:
        """The lengths that batches may have: one compiled program each."""
        return tuple(self._widths[np.unique(self._bucket)].tolist())

    @property
    def cells(self) -> int:
        """Places for tokens in the batches of the first epoch, padding rows included; other epochs differ a little."""
        if self._sized is not None:
            batches = (self.batch_at(step)["input_ids"] for step in range(self.steps_per_epoch))
            return sum(batch.size for batch in batches)
        rows = self._plan(0)
        bucket = np.where(rows >= 0, self._bucket[rows], 0).max(1)
        return int(self._widths[bucket].sum()) * self.rows_per_batch

    @property
    def content(self) -> str:
        """SHA-256 of the rows' tokens alone."""
        return self.tokenized.fingerprint

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what `batch_at` returns, but for `multiple_of`."""
        labels = b"" if self.labels is None else self.labels.astype("<i4").tobytes()
        order = (self.batch_size, self.seed, self.shuffle, self.window, self._widths.tolist())
        parts = ["batches 1", self.tokenized.fingerprint, labels, repr(order)]
        if self._sized is not None:
            parts.append(repr([len(rows) for rows in self._sized]))
        for name, values, kind in (("targets", self.targets, "<f4"), ("weights", self.weights, "<f8")):
            if values is not None:
                parts += [name, repr(values.shape), values.astype(kind).tobytes()]
        return fingerprint(parts)

    def _make_plan(self, epoch: int) -> Int[np.ndarray, "steps batch"]:
        """The rows of every batch of an epoch; -1 where a batch has none."""
        rows, size, steps = len(self.tokenized), self.batch_size, self.steps_per_epoch
        gap = np.full(steps * size - rows, -1, np.int64)
        if not self.shuffle:
            order = np.argsort(-self.tokenized.lengths.astype(np.int64), kind="stable")
            return np.concatenate([order, gap]).reshape(steps, size)
        random = np.random.default_rng((self.seed, epoch))
        shuffled = random.permutation(rows)
        if self.weights is not None:
            shuffled = drawn_by_weight(shuffled, self.weights, random)
        windows = np.arange(rows) // (self.window * size)
        # Stable, so rows that are padded alike stay shuffled among themselves.
        order = shuffled[np.lexsort((self._bucket[shuffled], windows))]
        # Any batch of the last window may be the one that is not full: were it always the last, the longest rows
        # would always weigh more.
        short = random.integers((steps - 1) // self.window * self.window, steps)
        order = np.insert(order, (short + 1) * size - len(gap), gap)
        return order.reshape(steps, size)[random.permutation(steps)]

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step, counted from 0 over all epochs. Costs at most the order of one epoch."""
        others = self.rows_at(step)
        ids, valid = others["ids"], others["valid"]
        width = int(self._widths[self._bucket[ids[valid]].max()])
        rows = np.where(valid, ids, 0)
        start = self.tokenized.offsets[rows][:, None]
        length = np.where(valid, self.tokenized.lengths[rows], 0)[:, None]
        place_in_row = np.arange(width)
        mask = place_in_row < length
        tokens = self.tokenized.tokens.take(start + place_in_row, mode="clip")
        return {
            "input_ids": np.where(mask, tokens, np.int32(self.tokenized.pad_id)),
            "attention_mask": mask.astype(np.int32),
            "token_type_ids": (mask & (place_in_row >= self.tokenized.boundaries[rows][:, None])).astype(np.int32),
            **others,
        }

    def texts_of(self, ids: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
        """Which rows of `tokenized` the rows `ids` of a batch are: themselves."""
        return ids

    def rows_at(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step without its tokens: `ids`, `valid` and, where there are any, `label`."""
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"step is {step}, expected 0 or more")
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = self._plan(epoch if self.shuffle else 0)[place] if self._sized is None else self._sized[place]
        ids = np.full(-(-len(rows) // self._multiple) * self._multiple, -1, np.int32)
        ids[: len(rows)] = rows
        valid = ids >= 0
        rows = np.where(valid, ids, 0)
        batch = {"ids": ids, "valid": valid}
        if self.labels is not None:
            batch["label"] = np.where(valid, self.labels[rows], np.int32(0))
        elif self.targets is not None:
            targets = self.targets[rows]
            batch["label"] = np.where(valid.reshape(-1, *[1] * (targets.ndim - 1)), targets, np.float32(0))
        return batch


def _cut_to_sizes(
    bucket: Int[np.ndarray, " rows"], lengths: Int[np.ndarray, " rows"], sizes: Int[np.ndarray, " sizes"]
) -> list[Int[np.ndarray, " batch"]]:
    """The rows of every batch, the longest first; -1 behind them where there are fewer than the batch holds."""
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    found, start = [], 0
    while start < len(order):
        alike = int(np.searchsorted(-bucket[order], -bucket[order[start]], "right")) - start
        size = int(sizes[min(np.searchsorted(sizes, alike), len(sizes) - 1)])
        rows = order[start : start + size]
        found.append(np.pad(rows, (0, size - len(rows)), constant_values=-1))
        start += size
    return found


def check_labels(labels: object, rows: int, classes: int | None) -> Int[np.ndarray, " rows"]:
    """Labels as int32. Raises ValueError where they are no whole numbers, one a row, from 0 to below `classes`."""
    array = np.asarray(labels)
    if array.shape != (rows,):
        raise ValueError(f"labels have shape {array.shape}, expected ({rows},): one for every row")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels are {array.dtype}, expected whole numbers")
    wrong = np.flatnonzero((array < 0) | (array >= (np.inf if classes is None else classes)))
    if len(wrong):
        expected = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise ValueError(f"example {wrong[0]} has label {array[wrong[0]]}, expected {expected}")
    return array.astype(np.int32)


def _check_targets(targets: object, rows: int) -> Float[np.ndarray, " rows *outputs"]:
    array = np.asarray(targets)
    if array.ndim not in (1, 2) or len(array) != rows:
        raise ValueError(f"targets have shape {array.shape}, expected ({rows},) or ({rows}, outputs)")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"targets are {array.dtype}, expected numbers")
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(narrow).reshape(rows, -1).all(1))
    if len(wrong):
        raise ValueError(f"example {wrong[0]} has target {array[wrong[0]]}, expected finite numbers of float32")
    return narrow


def check_weights(weights: object, rows: int, shuffle: bool) -> Float[np.ndarray, " rows"]:
    array = np.asarray(weights, np.float64)
    if not shuffle:
        raise ValueError("weights are given and shuffle is off; rows are drawn by weight in training alone")
    if array.shape != (rows,):
        raise ValueError(f"weights have shape {array.shape}, expected ({rows},): one for every row")
    wrong = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if len(wrong):
        raise ValueError(f"example {wrong[0]} has weight {array[wrong[0]]}, expected 0 or a positive number")
    if not array.any():
        raise ValueError("all weights are 0; give at least one row a positive one")
    return array


def drawn_by_weight(
    shuffled: Int[np.ndarray, " rows"], weights: Float[np.ndarray, " rows"], random: np.random.Generator
) -> Int[np.ndarray, " rows"]:
    """As many rows, each about as often as its weight says (systematic resampling), in an order drawn anew."""
    ends = np.cumsum(weights[shuffled])
    points = (np.arange(len(ends)) + random.random()) * (ends[-1] / len(ends))
    # Rounding may put the last point at the very end, which is no row's.
    places = np.minimum(np.searchsorted(ends, points, side="right"), np.flatnonzero(weights[shuffled])[-1])
    return random.permutation(shuffled[places])
