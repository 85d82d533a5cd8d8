"""What the steps are taken on: batches read ahead of them, put together where several steps are one dispatch."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxptft.objectives import Batch


class Group(NamedTuple):
    """The batches of one dispatch."""

    first: int  # the step of the first of them, counted from 0
    examples: list[int]  # valid rows in each
    batch: Any  # of one step, or of several together, where the devices want it

    @property
    def end(self) -> int:
        """The step after the last."""
        return self.first + len(self.examples)


class Feed:
    """A context manager that gives the groups of batches from a step on, in order.

    Args:
        batch_at: the batch of a step, a pure function of its number.
        place: puts a batch, or with `together` > 1 a list of them, where the step wants it.
        start: the first step.
        stops: of a step, the next one before which a group must end; a group ends too where the shape of batches does.
        steps: where it all ends.
        together: how many steps a group has at most.
        ahead: how many groups are read ahead, by a thread; 0 reads when asked, in the caller's.

    `waited` is how many seconds callers of `next` have waited so far. `limit`, up to `together`, may be set at any
    time: how many steps the groups that are read from then on have at most.
    """

    def __init__(
        self,
        batch_at: Callable[[int], Batch],
        place: Callable[[Any], Any],
        *,
        start: int,
        stops: Callable[[int], int],
        steps: int,
        together: int = 1,
        ahead: int = 0,
    ):
        self._batch_at, self._place, self._stops = batch_at, place, stops
        self._steps, self._together, self._ahead = steps, together, ahead
        self.limit = together
        self._groups = self._read(start)
        self._coming: deque[Future[Group]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed") if ahead else None
        self.waited = 0.0

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def next(self) -> Group:
        """The group after the one that was given last; raises what reading it raised."""
        began = time.perf_counter()
        try:
            if self._thread is None:
                return next(self._groups)
            while len(self._coming) <= self._ahead:
                self._coming.append(self._thread.submit(self._one))
            return self._coming.popleft().result()
        finally:
            self.waited += time.perf_counter() - began

    def _one(self) -> Group:
        found = next(self._groups, None)
        if found is None:  # read ahead of the end, and never asked for
            return Group(self._steps, [], None)
        return found

    def _read(self, now: int) -> Iterator[Group]:
        kept: Batch | None = None
        while now < self._steps:
            end = min(self._stops(now), now + self.limit)
            batches = [self._batch_at(now) if kept is None else kept]
            kept = None
            while now + len(batches) < end:
                following = self._batch_at(now + len(batches))
                if _shapes(following) != _shapes(batches[0]):
                    kept = following
                    break
                batches.append(following)
            examples = [_examples(batch) for batch in batches]
            yield Group(now, examples, self._place(batches if self._together > 1 else batches[0]))
            now += len(batches)


def _shapes(batch: Batch) -> Any:
    leaves, tree = jax.tree.flatten(batch)
    return tree, [np.shape(leaf) for leaf in leaves]


def _examples(batch: Batch) -> int:
    """Valid rows, over all sources where the batch holds several."""
    if "valid" in batch:
        return int(np.sum(batch["valid"]))
    return sum(_examples(dict(part)) for part in batch.values() if isinstance(part, Mapping))
