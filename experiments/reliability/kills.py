"""Runs that are killed at random moments, again and again, end with the bits of the run that was not."""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forked.processes import QUICK_COMPILES, Server, forking
from tiny import runs
from tiny.compare import difference
from tiny.runs import Runs
from trials import Trials, main

FAST = ("mlm, packed, frozen", "images vae", "finetune frozen, unfrozen by layer")
LIMIT = 300  # seconds that a run may take by itself


@contextmanager
def prepared(environment: Mapping[str, str], *, models: Sequence[str]) -> Iterator[tuple[Server, Runs]]:
    """A server, and the command lines with what they read, of the models those that are named.

    JAXPTFT_TRIALS names a folder that stays, for a look at what went wrong.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(tempfile.mkdtemp(dir=os.environ.get("JAXPTFT_TRIALS", scratch)))
        cache = {"JAXPTFT_CACHE": str(folder / "cache")}
        with forking({**environment, **cache}) as server:
            made = Runs(folder / "made")
            for name, (words, flags) in made.models.items():
                if name in models:
                    finish(server, runs.line(words, flags, made.folder / name))
            yield server, made


def finish(server: Server, arguments: list[str]) -> float:
    """Run to the end; seconds. RuntimeError where it does not come to its end."""
    began = time.monotonic()
    started = server.call(runs.__file__, "command", *arguments)
    _, complaint = started.communicate(LIMIT)
    started.close()
    if started.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} ended with {started.returncode}: {complaint[-500:]}")
    return time.monotonic() - began


def resumed(words: str, out: Path) -> list[str]:
    """Once the folder is the run's: before, there is nothing to resume, and the same line starts it."""
    return [*words.split(), "--resume", "--out", str(out)]


def kills(trials: Trials, lane: str) -> None:
    rng = random.Random(0)
    each, seconds = (20 if lane == "full" else 4), {}
    made_of: dict[str, dict[str, Any]] = {}
    with prepared(QUICK_COMPILES, models=("encoder", "teacher") if lane == "full" else ("encoder",)) as (server, made):
        for name in made.lines if lane == "full" else FAST:
            words, flags = made.lines[name]
            whole = made.folder / "whole"
            try:
                finish(server, runs.line(words, flags, whole))  # which compiles
                shutil.rmtree(made.folder / "again", ignore_errors=True)
                seconds[name] = finish(server, runs.line(words, flags, made.folder / "again"))
                complaint = difference(whole, made.folder / "again")
            except RuntimeError as error:
                complaint = str(error)
            if complaint:
                trials.failed(f"{name}, without a kill: {complaint}")
                continue
            killed = {"kills": 0, "runs": 0, "seconds_of_a_run": round(seconds[name], 1)}
            while killed["kills"] < each:
                _one_run(trials, server, name, made, rng, killed, each=each, duration=seconds[name])
            made_of[name] = killed
            print(f"{name}: {killed}, {len(trials.failures)} failures so far", flush=True)
            shutil.rmtree(whole)
    trials.facts["runs"] = made_of


def _one_run(
    trials: Trials,
    server: Server,
    name: str,
    made: Runs,
    rng: random.Random,
    killed: dict[str, Any],
    *,
    each: int,
    duration: float,
) -> None:
    """A run from its start to its end, killed at drawn moments; every kill is a trial, told by how the run ended."""
    words, flags = made.lines[name]
    out = made.folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    _forget_tokens(made.folder.parent / "cache", rng)
    first = runs.line(words, flags, out)
    moments: list[str] = []
    complaint = ""
    while True:
        arguments = resumed(words, out) if (out / "config.yaml").exists() else first
        started = server.call(runs.__file__, "command", *arguments)
        moment = rng.uniform(0, duration) if killed["kills"] + len(moments) < each else LIMIT
        if started.wait(moment) is None:
            started.kill()
            started.wait(60)
            listed = sorted(path.name for path in out.glob("checkpoints/*"))
            moments.append(f"{moment:.2f} s ({listed})")
        _, said = started.communicate(60)
        started.close()
        if started.returncode == 0:
            complaint = difference(made.folder / "whole", out)
            break
        if started.returncode != -signal.SIGKILL:
            complaint = f"ended with {started.returncode}: {said[-300:]}"
            break
    killed["runs"] += 1
    killed["kills"] += len(moments) or bool(complaint)
    if not complaint:
        for _ in moments:
            trials.survived(of=name)
        return
    for moment in moments or ["nothing"]:  # which of them did it, nobody knows
        trials.failed(f"{name}, killed after {moment}, of {len(moments)}: {complaint}")
    shutil.move(out, made.folder / f"failed-{len(trials.failures)}")


def _forget_tokens(cache: Path, rng: random.Random) -> None:
    """Every second run prepares its data anew, so that kills come there as well."""
    if rng.random() < 0.5:
        for entry in cache.iterdir():
            if entry.name != "compiled":
                shutil.rmtree(entry, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main({"kills": kills}, script=__file__))
