"""Prepare the next batches on a thread while the device works on this one."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
WAIT = 0.1  # seconds between looks at whether the other side has gone


class Prefetch(Generic[T]):
    """Iterate `batch_at(start)`, `batch_at(start + 1)`, ... with up to `depth` batches ready beforehand.

    Use it as a context manager: leaving it ends the thread, also after an error. An error in `batch_at` is raised where
    the batch is asked for, with the traceback of where it happened.

    Args:
      batch_at: step -> batch; called on another thread, one call at a time, in order.
      stop: the step before which to end; None: never.
    """

    def __init__(self, batch_at: Callable[[int], T], *, start: int = 0, stop: int | None = None, depth: int = 4):
        if depth < 1:
            raise ValueError(f"depth is {depth}, expected at least 1")
        self._batch_at = batch_at
        self._steps = (start, stop)
        self._ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)

    def __enter__(self) -> "Prefetch[T]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while not self._closed.is_set():
            try:
                kind, value = self._ready.get(timeout=WAIT)
            except queue.Empty:
                if not self._thread.is_alive() and self._ready.empty():
                    raise RuntimeError("no batches are being prepared; use Prefetch in a `with` block") from None
                continue
            if kind == "batch":
                return value  # pyright: ignore[reportReturnType]
            self._closed.set()
            if isinstance(value, BaseException):
                raise value
        raise StopIteration

    def _work(self) -> None:
        step, stop = self._steps
        try:
            while (stop is None or step < stop) and not self._closed.is_set():
                self._put(("batch", self._batch_at(step)))
                step += 1
        except BaseException as error:
            self._put(("error", error))
        else:
            self._put(("end", None))

    def _put(self, item: tuple[str, T | BaseException | None]) -> None:
        while not self._closed.is_set():
            try:
                return self._ready.put(item, timeout=WAIT)
            except queue.Full:
                continue
