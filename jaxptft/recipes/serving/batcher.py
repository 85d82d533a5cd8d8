"""Rows of many requests, answered together by one thread: a bounded queue, from which it takes what is there.

It waits a moment for more where there are few, and takes requests in their order, whole: one with more rows than a
batch holds is a batch of its own. Where a batch of several requests fails, each is answered by itself, so that what one
raises is raised to no other.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
Answer = Callable[[Sequence[Row]], Sequence[Row]]
_LOG = logging.getLogger(__name__)


class Overloaded(Exception):
    """The queue is full; ask again later."""


class Closed(Exception):
    """The batcher takes no more rows."""


@dataclass
class Counts:
    """What was done so far."""

    requests: int = 0
    rows: int = 0
    batches: int = 0
    failed: int = 0  # batches


@dataclass
class _Asked:
    rows: Sequence[Row]
    future: "Future[Sequence[Row]]" = field(default_factory=Future)


class Batcher:
    """Answers rows in batches.

    Args:
      answer: rows -> as many answers, in their order. Called by one thread.
      most: rows of a batch, but for a single request with more.
      room: rows that may wait.
      wait: seconds that a batch waits for more rows.
      enough: rows with which it does not wait (default: most).
    """

    def __init__(self, answer: Answer, *, most: int, room: int, wait: float, enough: int | None = None):
        self._answer, self._most, self._room, self._wait = answer, most, room, wait
        self._enough = most if enough is None else enough
        self._queue: deque[_Asked] = deque()
        self._rows = self._reserved = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self.counts = Counts()

    def start(self, prepare: Callable[[], bool] = lambda: True) -> None:
        """Start the thread, which calls `prepare` first; where that is False, it answers nothing and ends."""

        def work() -> None:
            try:
                going = prepare()
                while going:
                    going = self._step()
            finally:
                self._refuse_waiting()

        self._thread = threading.Thread(target=work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return self._rows

    @property
    def full(self) -> bool:
        """Whether there is no room for even one row more."""
        return self._rows + self._reserved >= self._room

    @property
    def closing(self) -> bool:
        """Whether no more rows are taken."""
        return self._closing

    @contextmanager
    def reserved(self, rows: int) -> Iterator[None]:
        """Room for so many rows that are still being made, and are to be submitted after it; raises as `submit`."""
        with self._changed:
            self._refuse_without_room(rows)
            self._reserved += rows
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= rows

    def submit(self, rows: Sequence[Row]) -> "Future[Sequence[Row]]":
        """The answers to come, as many as the rows; a future that is cancelled before its batch begins is not answered.

        Raises Overloaded where so many rows have no room in the queue, and Closed.
        """
        asked = _Asked(rows)
        with self._changed:
            self._refuse_without_room(len(rows))
            self._queue.append(asked)
            self._rows += len(rows)
            self._changed.notify()
        return asked.future

    def close(self, timeout: float | None = None) -> bool:
        """Take no more rows and answer those that wait, for so many seconds at most; whether the thread has ended."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                self._refuse_waiting()
                return False
        return True

    def _refuse_without_room(self, rows: int) -> None:
        if self._closing:
            raise Closed("the server is stopping")
        if self._rows + self._reserved + rows > self._room:
            raise Overloaded(f"{self._rows} rows wait, {self._reserved} are being made, and {self._room} have room")

    def _step(self) -> bool:
        """Answer one batch; False where there will be no other."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            if not self._queue:
                return False
            until = time.monotonic() + self._wait
            while self._rows < self._enough and not self._closing:
                if (left := until - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            batch: list[_Asked] = []
            rows: list[Row] = []
            while self._queue and (not batch or len(rows) + len(self._queue[0].rows) <= self._most):
                asked = self._queue.popleft()
                self._rows -= len(asked.rows)
                if asked.future.set_running_or_notify_cancel():
                    batch.append(asked)
                    rows += asked.rows
        if batch:
            self._run(batch, rows)
        return True

    def _run(self, batch: list[_Asked], rows: list[Row]) -> None:
        try:
            answers = self._answer(rows)
            if len(answers) != len(rows):
                raise RuntimeError(f"{len(answers)} answers to {len(rows)} rows")
        except Exception as error:
            _LOG.exception("a batch of %d rows failed", len(rows))
            self.counts.failed += 1
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for asked in batch:
                self._run([asked], list(asked.rows))
            return
        self.counts.requests += len(batch)
        self.counts.rows += len(rows)
        self.counts.batches += 1
        start = 0
        for asked in batch:
            asked.future.set_result(answers[start : start + len(asked.rows)])
            start += len(asked.rows)

    def _refuse_waiting(self) -> None:
        with self._changed:
            self._closing = True
            waiting, self._rows = list(self._queue), 0
            self._queue.clear()
        for asked in waiting:
            if asked.future.set_running_or_notify_cancel():
                asked.future.set_exception(Closed("the server is stopping"))
