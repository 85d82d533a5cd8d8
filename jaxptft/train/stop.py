"""One stop flag, set by SIGTERM or Ctrl-C and polled by everything that loops."""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE = 25.0  # seconds that a call into compiled code, a compilation say, may go on after the first signal


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

    Python runs signal handlers in the main thread alone, and not before a long call into compiled code returns; so the
    second signal is seen by a thread that reads the descriptor to which Python writes the number of every signal. That
    thread also ends the process where nobody has polled the flag `GRACE` seconds after the first. Outside the main
    thread, where Python allows no signal handlers, the flag can still be set with `request`.

    `moves` counts how often it was polled or told of a new `place`: by these it shows whether a run moves, and where it
    is.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.moves = 0
        self.place = "preparing"
        self._seen = False
        self._agreed: Callable[[int | None], int | None] | None = None
        self._previous: dict[int, object] = {}
        self._wakeup: tuple[int, int] | None = None  # ours, and the one before it

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Ask for a stop, as the signal would."""
        self.signum = signum

    def agree(self, agreed: Callable[[int | None], int | None]) -> None:
        """From now on `agreed` says at each polling, of the signal that came here, which one to stop for."""
        self._agreed = agreed

    def at(self, place: str) -> None:
        """Say, in words, what is done from here on."""
        self.moves += 1
        self.place = place

    def asked(self) -> int | None:
        """The signal to stop for, if there is one."""
        self.moves += 1
        self._seen = self._seen or self.signum is not None
        return self.signum if self._agreed is None else self._agreed(self.signum)

    def __bool__(self) -> bool:
        return self.asked() is not None

    def raise_if_set(self) -> None:
        """Raise `Stopped` if a stop was asked for."""
        if (signum := self.asked()) is not None:
            raise Stopped(signum)

    def __enter__(self) -> "StopFlag":
        for signum in _SIGNALS:
            try:
                self._previous[signum] = signal.signal(signum, self._handle)
            except ValueError:  # not the main thread
                return self
        _active.append(self)
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._wakeup = write, signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read, self._wakeup[1]), name="stop-flag", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        if self._wakeup is not None:
            write, before = self._wakeup
            signal.set_wakeup_fd(before)
            os.close(write)  # which ends the thread
            self._wakeup = None
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # pyright: ignore[reportArgumentType]
        self._previous.clear()
        if self in _active:
            _active.remove(self)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            os._exit(128 + signum)
        self.signum = signum

    def _watch(self, read: int, before: int) -> None:
        asked, until = self.signum, None
        with os.fdopen(read, "rb", buffering=0) as signals:
            while True:
                left = None if until is None else max(0.0, until - time.monotonic())
                if not select.select([signals], [], [], left)[0]:
                    if not self._seen:
                        self._leave(asked or signal.SIGTERM)
                    until = None
                    continue
                if not (number := signals.read(1)):
                    return
                if before != -1:
                    with suppress(OSError):
                        os.write(before, number)  # whoever listened before us hears it too
                if number[0] in _SIGNALS:
                    if asked is not None:
                        os._exit(128 + number[0])
                    asked, until = number[0], time.monotonic() + GRACE

    def _leave(self, signum: int) -> None:
        with suppress(OSError, ValueError):
            name = signal.Signals(signum).name
            told = f"{name} came {GRACE:g} seconds ago while {self.place}; leaving without another save"
            print(f"jaxptft: {told}", file=sys.stderr, flush=True)
        os._exit(128 + signum)


_active: list[StopFlag] = []
_forking = threading.local()


# A forked worker that is told to stop must stop, and its signals are not its parent's. Those that come while it still
# has the parent's handlers wait.
def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS if _active else ())


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    for flag in reversed(_active[:]):
        flag.__exit__()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
