"""One stop flag, set by SIGTERM or Ctrl-C and polled by everything that loops."""

import os
import signal
import threading
from contextlib import suppress
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
    second signal is seen by a thread that reads the descriptor to which Python writes the number of every signal.
    Outside the main thread, where Python allows no signal handlers, the flag can still be set with `request`.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, object] = {}
        self._wakeup: tuple[int, int] | None = None  # ours, and the one before it

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
        asked = self.signum is not None
        with os.fdopen(read, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if before != -1:
                    with suppress(OSError):
                        os.write(before, number)  # whoever listened before us hears it too
                if number[0] in _SIGNALS:
                    if asked:
                        os._exit(128 + number[0])
                    asked = True


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
