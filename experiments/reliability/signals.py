"""Runs that are stopped by SIGTERM or Ctrl-C in each of their phases, once or twice, and go on to the same bits."""

import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from forked.processes import QUICK_COMPILES, Server, Started
from kills import LIMIT, finish, prepared, resumed
from tiny import material, runs
from tiny.compare import difference
from tiny.runs import Flags, Runs
from trials import Trials, main

EXIT, EXIT_AT_SECOND = 30.0, 5.0  # seconds that leaving may take
PHASES = ("data", "compile", "step", "evaluation", "save")


def lines_of(out: Path, kind: str) -> int:
    log = out / "metrics.jsonl"
    return log.read_text().count(f'"kind": "{kind}"') if log.exists() else 0


def newest(out: Path) -> int:
    return max((int(path.name.removeprefix("step_")) for path in out.glob("checkpoints/step_*")), default=0)


def listens(started: Started) -> bool:
    """Whether the process handles SIGTERM by now; before, it has nothing to save."""
    status = Path(f"/proc/{started.pid}/status")
    caught = next((line for line in status.read_text().splitlines() if line.startswith("SigCgt")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


class Aim:
    """Waits for the phases of one process; each returns False where the process has ended before it came."""

    def __init__(self, started: Started, out: Path, rng: random.Random):
        self.started, self.out, self.rng = started, out, rng

    def _await(self, moment: Callable[[], bool], then: float) -> bool:
        until = time.monotonic() + LIMIT
        while not moment():
            if self.started.poll() is not None:
                return False
            assert time.monotonic() < until, "the moment never came"
            time.sleep(0.001)
        return self.started.wait(self.rng.uniform(0, then)) is None

    def _built(self) -> bool:
        while line := self.started.stdout.readline():
            if line.startswith("model:"):
                return True
        return False

    def data(self) -> bool:
        return self._await(lambda: listens(self.started), 1.5)

    def compile(self) -> bool:
        logged = lines_of(self.out, "train")
        return self._built() and self._await(lambda: lines_of(self.out, "train") <= logged, 2.0)

    def step(self) -> bool:
        steps = newest(self.out) + self.rng.randrange(1, 4)
        return self._built() and self._await(lambda: lines_of(self.out, "train") >= steps, 0.02)

    def evaluation(self) -> bool:
        """The step's own line is there, and that of its evaluation is not."""
        every = 4

        def moment() -> bool:
            steps, evaluations = lines_of(self.out, "train"), lines_of(self.out, "evaluation")
            return steps > newest(self.out) and steps % every == 0 and steps // every > evaluations

        return self._built() and self._await(moment, 0.1)

    def save(self) -> bool:
        return self._built() and self._await(lambda: any(self.out.glob("checkpoints/unfinished-*")), 0.05)


def stopped_once(
    server: Server, arguments: list[str], out: Path, phase: str, number: int, rng: random.Random, *, twice: bool
) -> str | None:
    """Start, signal in the phase, and wait; what is wrong, "" where nothing is, None where the phase did not come."""
    started = server.call(runs.__file__, "command", *arguments)
    try:
        if not getattr(Aim(started, out, rng), phase)():
            started.wait(60)
            return None if started.returncode == 0 else f"ended with {started.returncode}: {started.stderr.read()}"
        logged, began, limit, expected = lines_of(out, "train"), time.monotonic(), EXIT, number
        started.send_signal(number)
        if twice and started.wait(rng.uniform(0.02, 0.5)) is None:
            second = rng.choice([signal.SIGTERM, signal.SIGINT])
            began, limit = time.monotonic(), EXIT_AT_SECOND
            started.send_signal(second)
            ended = started.wait(limit + 5)
            # It may have been leaving already, and may have let go of its handlers: a shell tells -15 as 143.
            ended = 128 + second if ended == -second else ended
            expected = second if ended == 128 + second else number
        else:
            ended = started.wait(limit + 5)
        seconds = time.monotonic() - began
        if ended is None:
            started.kill()
            return f"still there {seconds:.0f} s after the signal"
        complaint = started.stderr.read().strip()
        if ended == 0:
            return None  # its end came first
        if ended != 128 + expected or seconds > limit:
            return f"ended with {ended} after {seconds:.1f} s: {complaint[-300:]}"
        if not twice and phase in ("step", "evaluation", "save") and newest(out) < logged - 1:
            return f"{logged} steps were logged at the signal, and the newest checkpoint is of step {newest(out)}"
        return ""
    finally:
        started.close()


def chain(trials: Trials, server: Server, made: Runs, flags: Flags, number: int, rng: random.Random, *, twice: bool):
    """One run, stopped in every phase and gone on with; a trial each, all of which fail where its end differs."""
    out, name = made.folder / "run", signal.Signals(number).name + (" twice" if twice else "")
    shutil.rmtree(out, ignore_errors=True)
    first = runs.line("pretrain", flags, out)
    done: list[str] = []
    for phase in PHASES:
        arguments = resumed("pretrain", out) if (out / "config.yaml").exists() else first
        cache = made.folder.parent / "cache"
        for entry in cache.iterdir():
            if (phase == "data" and entry.name != "compiled") or (phase == "compile" and entry.name == "compiled"):
                shutil.rmtree(entry)
        complaint = stopped_once(server, arguments, out, phase, number, rng, twice=twice)
        if complaint:
            trials.failed(f"{name} in {phase}: {complaint}")
        elif complaint is not None:
            done.append(phase)
    try:
        finish(server, resumed("pretrain", out))
        complaint = difference(made.folder / "whole", out)
    except RuntimeError as error:
        complaint = str(error)
    for phase in done:
        trials.check(not complaint, f"{name} in {phase}, with others: {complaint}", of=f"{name} in {phase}")


def run_flags(made: Runs) -> Flags:
    """Preparing the data and evaluating take their time."""
    corpus = material.write_corpus(made.folder / "large.txt", documents=2000, seed=5)
    _, flags = made.lines["mlm"]
    return {**flags, "corpus": corpus, "steps": 20, "eval-rows": 400}


def _chains(trials: Trials, lane: str, *, twice: bool) -> None:
    rng = random.Random(int(twice))
    with prepared(QUICK_COMPILES, models=()) as (server, made):
        flags = run_flags(made)
        finish(server, runs.line("pretrain", flags, made.folder / "whole"))
        each = (5 if twice else 10) if lane == "full" else 1
        numbers = (signal.SIGTERM, signal.SIGINT) if lane == "full" else ((signal.SIGINT, signal.SIGTERM)[twice],)
        for number in numbers:
            for _ in range(each):
                chain(trials, server, made, flags, number, rng, twice=twice)
                print(f"{number.name}: {trials.trials} trials, {len(trials.failures)} failures so far", flush=True)


def once(trials: Trials, lane: str) -> None:
    _chains(trials, lane, twice=False)


def twice(trials: Trials, lane: str) -> None:
    _chains(trials, lane, twice=True)


def long_compile(trials: Trials, lane: str) -> None:
    """A program that takes longer to compile than leaving may take; in the fast lane nothing waits for its end."""
    rng = random.Random(0)
    with prepared({}, models=()) as (server, made):
        _, flags = made.lines["mlm"]
        flags = {**flags, "shape.layers": 16, "steps": 2, "checkpoint-every": 1}
        out, done = made.folder / "run", 0
        for number in (signal.SIGTERM, signal.SIGINT) if lane == "full" else (signal.SIGTERM,):
            arguments = (
                resumed("pretrain", out) if (out / "config.yaml").exists() else runs.line("pretrain", flags, out)
            )
            complaint = stopped_once(server, arguments, out, "compile", number, rng, twice=lane == "fast")
            if complaint:
                trials.failed(f"{number.name} in a long compile: {complaint}")
            else:
                done += 1
        if lane == "fast":
            for _ in range(done):
                trials.survived()
            return
        finish(server, runs.line("pretrain", flags, made.folder / "whole"))
        finish(server, resumed("pretrain", out))
        complaint = difference(made.folder / "whole", out)
        for _ in range(done):
            trials.check(not complaint, f"after a long compile was left: {complaint}")


if __name__ == "__main__":
    sys.exit(main({"once": once, "twice": twice, "long_compile": long_compile}, script=__file__))
