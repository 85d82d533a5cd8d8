"""Images -> batches, where a batch is a pure function of the data, the seed and the step.

An epoch visits every row exactly once: for training in the order of a permutation keyed by (seed, epoch), for
evaluation in their own. With sampling weights an epoch has as many rows, drawn as those of `Batches` are.
"""

import operator
from collections.abc import Sequence
from copy import copy
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from jaxptft.data.batches import check_labels, check_weights, drawn_by_weight
from jaxptft.data.cache import fingerprint
from jaxptft.data.images import Images


class ImageBatches:
    """Batches of images of one size.

    Every batch is a dict of numpy arrays: `image` uint8 [batch, height, width, channels], `ids` int32 [batch] (row
    numbers; -1 for padding rows), `valid` bool [batch] and, where there are labels, `label` int32 [batch]. A padding
    row is not valid, is black, and has label 0.

    Args:
      labels: the class of every row, or None.
      batch_size: rows of data in a batch; the last batch of an epoch may have fewer.
      seed: decides the order together with the epoch.
      shuffle: False for evaluation.
      multiple_of: add padding rows until the batch axis is a multiple of this (a number of devices). Which rows of data
        a batch has does not depend on it.
      classes: if given, labels must be below it.
      weights: if given, the rows of an epoch are drawn, with repetition, in proportion to these.

    Raises:
      ValueError: no rows, labels of another number or out of range, weights that are negative, all zero or of another
        number, or that came without `shuffle`.
    """

    def __init__(
        self,
        images: Images,
        labels: Int[np.ndarray, " rows"] | Sequence[int] | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        multiple_of: int = 1,
        classes: int | None = None,
        weights: Float[np.ndarray, " rows"] | Sequence[float] | None = None,
    ):
        rows = len(images)
        if not rows:
            raise ValueError("there are no images to make batches of")
        for name, value in (("batch_size", batch_size), ("multiple_of", multiple_of)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        self.images = images
        self.labels = None if labels is None else check_labels(labels, rows, classes)
        self.weights = None if weights is None else check_weights(weights, rows, shuffle)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rows_per_batch = -(-batch_size // multiple_of) * multiple_of
        self.steps_per_epoch = -(-rows // batch_size)
        self._read: Int[np.ndarray, " rows"] | None = None
        # The latest two epochs: a prefetching thread may be one ahead.
        self._order = lru_cache(maxsize=2)(self._make_order)

    def only(self, rows: Int[np.ndarray, " rows"]) -> "ImageBatches":
        """The same batches with the images of these rows alone, and black ones elsewhere: those that one of several
        processes puts on its devices."""
        other = copy(self)
        other._read = np.asarray(rows)
        return other

    @property
    def content(self) -> str:
        """SHA-256 of the images alone, in their own order."""
        return self.images.content

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what `batch_at` returns, but for `multiple_of`."""
        labels = b"" if self.labels is None else self.labels.astype("<i4").tobytes()
        parts = ["image batches 1", self.content, labels, repr((self.batch_size, self.seed, self.shuffle))]
        if self.weights is not None:
            parts += ["weights", self.weights.astype("<f8").tobytes()]
        return fingerprint(parts)

    def _make_order(self, epoch: int) -> Int[np.ndarray, " rows"]:
        rows = np.arange(len(self.images))
        if not self.shuffle:
            return rows
        random = np.random.default_rng((self.seed, epoch))
        shuffled = random.permutation(rows)
        return shuffled if self.weights is None else drawn_by_weight(shuffled, self.weights, random)

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step, counted from 0 over all epochs. Costs at most the order of one epoch."""
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"step is {step}, expected 0 or more")
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self._order(epoch if self.shuffle else 0)
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        count = len(chosen)
        ids = np.full(self.rows_per_batch, -1, np.int32)
        ids[:count] = chosen
        image = np.zeros((self.rows_per_batch, *self.images.size, self.images.channels), np.uint8)
        read = np.arange(count) if self._read is None else self._read[self._read < count]
        image[read] = self.images.take(chosen[read])
        batch = {"image": image, "ids": ids, "valid": ids >= 0}
        if self.labels is not None:
            label = np.zeros(self.rows_per_batch, np.int32)
            label[:count] = self.labels[chosen]
            batch["label"] = label
        return batch
