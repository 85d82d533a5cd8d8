"""Ends a run that is stuck, and names the process that is.

A run polls its stop flag, and tells it what it does next, wherever it loops. Where that has not happened for some time
the process leaves with a status of its own, since nothing else would end it: a collective waits for a process that is
stuck elsewhere as long as that one lives. Of several processes, each tells the others how far it is, and the one that
is the least far is named.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time

import jax

from jaxptft.train.processes import Bulletin, is_first, own_name
from jaxptft.train.stop import StopFlag

STUCK = 70  # the exit status (EX_SOFTWARE of sysexits.h)


class Watchdog:
    """A context manager around what may be stuck.

    Args:
        limit: seconds without a move of `stop`, after which the process ends. Compiling is one move, and so is reading
            a batch or taking a step: it must be longer than the longest of them.
    """

    def __init__(self, stop: StopFlag, *, limit: float):
        if limit <= 0:
            raise ValueError(f"limit is {limit}; expected seconds, more than 0")
        self._stop, self._limit = stop, limit
        self._over = threading.Event()
        self._bulletin = Bulletin() if jax.process_count() > 1 else None

    def __enter__(self) -> "Watchdog":
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        moves, since = -1, time.monotonic()
        while not self._over.wait(min(1.0, self._limit / 10)):
            if self._stop.moves != moves:
                moves, since = self._stop.moves, time.monotonic()
                if self._bulletin is not None:
                    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service is gone, and JAX ends us
                        self._bulletin.put(f"moved/{jax.process_index()}", f"{moves}|{own_name()}, {self._stop.place}")
            elif time.monotonic() - since > self._limit:
                self._leave(moves)

    def _leave(self, moves: int) -> None:
        told = f"{own_name()}, {self._stop.place}, has not moved for {self._limit:g} seconds"
        behind: list[str] = []
        if self._bulletin is not None:
            others = (text.partition("|") for text in self._bulletin.all("moved").values())
            behind = sorted({place for moved, _, place in others if int(moved) < moves})
            told += f"; it waits for {', '.join(behind)}" if behind else "; no other process is behind it"
        told += "; continue with --resume from the last checkpoint"
        with contextlib.suppress(OSError, ValueError):
            print(f"jaxptft: {told}", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(all_threads=True)
        if self._bulletin is not None and (is_first() or not behind):
            time.sleep(3)  # the others ask the first's service, and would call a process that has left lost, not stuck
        os._exit(STUCK)
