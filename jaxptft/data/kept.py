"""What a frozen part of a model makes of each row, kept: batches of it in the place of computing it again."""

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from jaxptft.data.batches import Batches
from jaxptft.data.tokenized import Tokenized


class KeptStates:
    """The hidden states of rows [length, width], each at its own length, or one vector a row [width].

    They are in memory up to `memory` bytes, and beyond that in a file without a name in `folder`, which goes with the
    process. Filled by `keep`, in any order; `of` reads.
    """

    def __init__(self, lengths: Any, *, width: int, dtype: Any, by_token: bool, memory: int, folder: Path):
        counts = np.asarray(lengths, np.int64) if by_token else np.ones(len(lengths), np.int64)
        self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self.by_token = by_token
        shape, dtype = (int(self._offsets[-1]), width), np.dtype(dtype)
        self.nbytes = shape[0] * width * dtype.itemsize
        self.in_memory = self.nbytes <= memory
        if self.in_memory:
            self._states = np.zeros(shape, dtype)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                if hasattr(os, "posix_fallocate"):  # on Linux
                    os.posix_fallocate(file.fileno(), 0, max(1, self.nbytes))  # a full disk is an error here, not later
                self._states = np.memmap(file, dtype, "w+", shape=shape)  # which holds on to the file

    def keep(self, ids: Any, states: Float[np.ndarray, "batch *length width"]) -> None:
        """The states of rows `ids` [batch]; those of id -1 are nobody's."""
        for row, own in zip(np.asarray(ids), states, strict=True):
            if row >= 0:
                start, end = self._offsets[row], self._offsets[row + 1]
                self._states[start:end] = own[: end - start] if self.by_token else own

    def of(self, ids: Int[np.ndarray, "*rows"], length: int = 1) -> Float[np.ndarray, "*rows length width"]:
        """The states of rows `ids`, zeros behind each row's own and for id -1; without `length` if one vector each."""
        ids = np.asarray(ids)
        rows = np.maximum(ids, 0)
        if not self.by_token:
            return np.where(ids[..., None] >= 0, self._states[rows], self._states.dtype.type(0))
        places = self._offsets[rows][..., None] + np.arange(length)
        there = (places < self._offsets[rows + 1][..., None]) & (ids >= 0)[..., None]
        found = self._states[np.minimum(places, len(self._states) - 1)]
        found[~there] = 0
        return found


class Texts(Protocol):
    """Batches of texts that are not changed from epoch to epoch: `Batches`, its kinds, and `ChoiceBatches`."""

    tokenized: Tokenized
    steps_per_epoch: int

    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def content(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def texts_of(self, ids: Any) -> Any: ...
    def rows_at(self, step: int) -> dict[str, np.ndarray]: ...
    def batch_at(self, step: int) -> dict[str, np.ndarray]: ...


class KeptBatches:
    """`batches` with the `hidden` of each row beside it, as a model that is built to start above them reads it."""

    def __init__(self, batches: Texts, states: KeptStates):
        self.batches, self.states = batches, states
        self.steps_per_epoch, self.tokenized = batches.steps_per_epoch, batches.tokenized

    @property
    def content(self) -> str:
        """That of the rows: what was made of them follows from it, and from the model."""
        return self.batches.content

    @property
    def fingerprint(self) -> str:
        """That of `batches`."""
        return self.batches.fingerprint

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """That of `batches`, with `hidden` [batch, length, width]; or with [batch, width] in the place of its tokens,
        so that all batches have one shape. An axis of choices comes after the batch's."""
        by_token = self.states.by_token
        batch = self.batches.batch_at(step) if by_token else self.batches.rows_at(step)
        length = batch["input_ids"].shape[-1] if by_token else 1
        return batch | {"hidden": self.states.of(self.batches.texts_of(batch["ids"]), length)}


def keep_states(
    batches: Texts,
    compute: Callable[[Mapping[str, Any]], Any],
    *,
    rows: int,
    multiple_of: int,
    memory: int,
    folder: Path,
) -> KeptBatches:
    """`batches` with what `compute` makes of each text's tokens; it is given batches of `rows` texts, those of a length
    together, padded to `multiple_of`, and returns arrays [batch, length, width] or [batch, width].

    Up to `memory` bytes are held in memory, more in a file in `folder`.
    """
    options: dict[str, Any] = {"batch_size": rows, "buckets": batches.widths, "multiple_of": multiple_of}
    plain = Batches(batches.tokenized, shuffle=False, **options)
    states: KeptStates | None = None
    for ids, found in _computed(plain, compute):
        if states is None:
            options = {"width": found.shape[-1], "dtype": found.dtype, "by_token": found.ndim == 3}
            states = KeptStates(batches.tokenized.lengths, **options, memory=memory, folder=folder)
        states.keep(ids, found)
    assert states is not None
    return KeptBatches(batches, states)


def _computed(batches: Batches, compute: Callable[[Mapping[str, Any]], Any]) -> Iterable[tuple[Any, np.ndarray]]:
    """Of each batch; the next is under way before one is given."""
    before: tuple[Any, Any] | None = None
    for step in range(batches.steps_per_epoch):
        batch = batches.batch_at(step)
        now = batch["ids"], compute(batch)
        if before is not None:
            yield before[0], np.asarray(before[1])
        before = now
    if before is not None:
        yield before[0], np.asarray(before[1])
