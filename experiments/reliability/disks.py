"""Disks that are full, failing or read-only while a checkpoint is saved."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from trials import Trials, main

from jaxptft import train

CODES = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO)
# What changes a disk: where it fails, the real function gives an error with a path for these, and without for those.
WITH_PATH = ((os, "mkdir"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "open"))
WITHOUT_PATH = ((os, "fsync"), (Path, "write_text"), (Path, "write_bytes"))


class FailingDisk:
    """Counts operations that change the disk, and lets one of them fail."""

    def __init__(self, fails_at: int | None, code: int = 0):
        self.fails_at, self.code, self.count = fails_at, code, 0
        self.failed: str | None = None
        self._real: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> "FailingDisk":
        for owner, name in (*WITH_PATH, *WITHOUT_PATH):
            real = getattr(owner, name)
            self._real.append((owner, name, real))
            setattr(owner, name, self._wrapped(real, name, with_path=(owner, name) in WITH_PATH))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, real in self._real:
            setattr(owner, name, real)

    def _wrapped(self, real: Any, name: str, *, with_path: bool) -> Any:
        def operation(*arguments: Any, **options: Any) -> Any:
            now, self.count = self.count, self.count + 1
            if now == self.fails_at:
                self.failed = f"{name} {arguments[0]}"
                path = (os.fspath(arguments[0]),) if with_path else ()
                raise OSError(self.code, os.strerror(self.code), *path)
            return real(*arguments, **options)

        return operation


def tree_of(value: int) -> dict[str, Any]:
    """Arrays of many sizes, so that a disk fills up at many places."""
    return {f"w{number}": np.full(10 * 4**number, value, np.int32) for number in range(7)}


def is_whole(store: train.CheckpointStore, step: int) -> bool:
    _, tree, meta = store.restore(tree_of(0), step=step)
    return all(bool((leaf == meta["value"]).all()) for leaf in tree.values())


def prepare(folder: Path) -> None:
    store = train.CheckpointStore(folder, keep=2)
    for step in (1, 2):
        store.save(step, tree_of(step), {"value": step})


def prepare_after_a_kill(folder: Path) -> None:
    """A replacement of step 2 was killed between its two renames, and a deletion within."""
    prepare(folder)
    shutil.copytree(folder / "step_00000002", folder / "unfinished-step_00000002")
    (folder / "step_00000002").rename(folder / "doomed-step_00000002")
    shutil.copytree(folder / "step_00000001", folder / "doomed-step_00000000")
    (folder / "doomed-step_00000000" / "manifest.json").unlink()


# What is saved where: a new step, at which the oldest goes; the newest again; and a new one after a kill.
SCENARIOS: dict[str, tuple[Callable[[Path], None], int]] = {
    "a new step": (prepare, 3),
    "a step again": (prepare, 2),
    "a new step after a kill": (prepare_after_a_kill, 3),
}


def judge_failed_save(folder: Path, step: int, fault: Any) -> str:
    """Save under a fault, and again without it; what is wrong with either, "" where nothing is.

    `fault` is a context; where it lets the save through, that is right as well.
    """
    store = train.CheckpointStore(folder, keep=2)
    before = store.steps()
    try:
        with fault:
            store.save(step, tree_of(7), {"value": 7})
    except OSError as error:
        if str(folder) not in str(error):
            return f"the error names no path: {error!r}"
    except BaseException as error:
        return f"{type(error).__name__} in place of an OSError: {error}"
    kept = [listed for listed in before if listed != step]
    saved = step in store.steps() and store.read_meta(step)["value"] == 7
    if not saved and not set(kept) <= set(store.steps()):
        return f"steps {before} became {store.steps()}"
    if damaged := [listed for listed in store.steps() if not is_whole(store, listed)]:
        return f"steps {damaged} are not whole"
    again = train.CheckpointStore(folder, keep=2)
    again.clean()  # as the next start does
    if not set(before if not saved else [step]) <= set(again.steps()):
        return f"steps {before} became {again.steps()} after cleaning"
    if damaged := [listed for listed in again.steps() if not is_whole(again, listed)]:
        return f"steps {damaged} are not whole after cleaning"
    again.save(step, tree_of(8), {"value": 8})
    if again.read_meta(step)["value"] != 8 or not is_whole(again, step):
        return f"step {step} could not be saved once the disk was well"
    left = [path.name for path in folder.iterdir() if not path.name.startswith("step_")]
    return f"left over: {left}" if left else ""


def failing_calls(trials: Trials, lane: str) -> None:
    """Every operation that changes the disk fails in turn: with every code, or each with the next."""
    for name, (make, step) in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as scratch:
            whole, folder = Path(scratch, "whole"), Path(scratch, "run")
            make(whole)
            site = 0
            while True:
                disk = FailingDisk(None)
                for code in CODES if lane == "full" else [CODES[site % len(CODES)]]:
                    shutil.copytree(whole, folder)
                    disk = FailingDisk(site, code)
                    complaint = judge_failed_save(folder, step, disk)
                    if disk.failed:
                        trials.check(
                            not complaint,
                            f"{name}, {errno.errorcode[code]} at {disk.failed}: {complaint}",
                            of=f"{name}, {disk.failed.split()[0]}",
                        )
                    shutil.rmtree(folder)
                if not disk.failed:
                    break
                site += 1


# Real ones


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def filled(folder: Path, room: int) -> Iterator[None]:
    """All but `room` bytes of the folder's disk taken."""
    filler = folder / ".filler"
    try:
        free = os.statvfs(folder)
        filler.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - room)))
        yield
    finally:
        filler.unlink()


def full(trials: Trials, lane: str) -> None:
    """No file may grow past a limit, just below the size of each in turn; and a small disk with ever more room."""
    for name, (make, step) in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as scratch:
            whole, folder = Path(scratch, "whole"), Path(scratch, "run")
            make(whole)
            files = [path for path in whole.glob("step_*/**/*") if path.is_file()]
            sizes = sorted({path.stat().st_size for path in files} - {0})
            for size in sizes if lane == "full" else sizes[:: max(1, len(sizes) // 3)]:
                shutil.copytree(whole, folder)
                complaint = judge_failed_save(folder, step, no_file_larger_than(size - 1))
                trials.check(not complaint, f"{name}, no file of {size} bytes: {complaint}", of="a limit on files")
                shutil.rmtree(folder)
            if not mount(scratch):  # which not every machine lets us
                continue
            try:
                for room in range(0, 300_000, 4096 if lane == "full" else 10 * 4096):
                    make(folder)
                    complaint = judge_failed_save(folder, step, filled(Path(scratch), room))
                    trials.check(not complaint, f"{name}, {room} bytes free: {complaint}", of="a full disk")
                    shutil.rmtree(folder)
            finally:
                subprocess.run(["umount", scratch], check=True)


def mount(folder: str) -> bool:
    """A disk of a megabyte there, if this process may."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    return sys.platform == "linux" and subprocess.run(command, capture_output=True).returncode == 0


def read_only(trials: Trials, lane: str) -> None:
    """The run's folder, or the one it is in, may not be written to; root, whom nothing stops, becomes nobody."""
    for name, (make, step) in SCENARIOS.items():
        for closed in ("run", "parent of run"):
            with tempfile.TemporaryDirectory() as scratch:
                Path(scratch).chmod(0o755)
                folder = Path(scratch, "parent", "run")
                make(folder)
                target = folder if closed == "run" else folder.parent
                if closed != "run":
                    shutil.rmtree(folder)
                complaint = judge_failed_save(folder, step, locked(target))
                trials.check(not complaint, f"{name}, {closed}: {complaint}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    mode, root = folder.stat().st_mode, os.geteuid() == 0
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(mode)


if __name__ == "__main__":
    sys.exit(main({"failing_calls": failing_calls, "full": full, "read_only": read_only}, script=__file__))
