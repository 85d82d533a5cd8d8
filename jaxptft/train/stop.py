"""One stop flag, set by SIGTERM or Ctrl-C and polled by everything that loops."""

import os
import signal
from types import FrameType


class Stopped(Exception):
    """Raised after a requested stop, once what had to be saved is saved."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """The conventional exit status of a process ended by this signal."""
        return 128 + self.signum


class StopFlag:
    """A context manager that turns the first SIGTERM or SIGINT into a flag; the second ends the process at once.

    Outside the main thread, where Python allows no signal handlers, the flag can still be set with `request`.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, object] = {}

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Ask for a stop, as the signal would."""
        self.signum = signum

    def __bool__(self) -> bool:
        return self.signum is not None

    def raise_if_set(self) -> None:
        """Raise `Stopped` if a stop was asked for."""
        if self.signum is not None:
            raise Stopped(self.signum)

    def __enter__(self) -> "StopFlag":
        for signum in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[signum] = signal.signal(signum, self._handle)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # pyright: ignore[reportArgumentType]
        self._previous.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            os._exit(128 + signum)
        self.signum = signum
