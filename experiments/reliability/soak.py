"""A long run takes no more memory, files, threads and programs at its end than near its beginning."""

import contextlib
import io
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tiny import material, runs
from tiny.runs import Flags, Runs
from trials import Trials, main

from jaxptft.cli import main as command_line

FLAT = 0.05  # of the memory at a tenth of the run
LATE = 2  # threads or descriptors that are opened once, and late
BEGUN = 0.1  # the share of the run after which nothing may grow


class Sample(NamedTuple):
    """What the process held when it had come to a step."""

    step: int
    memory: float  # resident, in MB
    descriptors: int
    threads: int
    programs: int  # compiled so far


@contextlib.contextmanager
def watching(out: Path, *, every: float) -> Iterator[list[Sample]]:
    """Samples of this process, taken by a thread of its own, while a run goes on in `out`."""
    samples: list[Sample] = []
    compiled: list[str] = []
    over = threading.Event()

    def on_event(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    def watch() -> None:
        log, read, step = out / "metrics.jsonl", 0, 0
        while not over.wait(every):
            if log.exists():
                with log.open("rb") as file:
                    file.seek(read)
                    *lines, _ = file.read().split(b"\n")
                    read += sum(len(line) + 1 for line in lines)
                step = json.loads(lines[-1])["step"] if lines else step
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            descriptors, threads = (len([*Path("/proc/self", kind).iterdir()]) for kind in ("fd", "task"))
            samples.append(Sample(step, memory, descriptors, threads, len(compiled)))

    jax.monitoring.register_event_duration_secs_listener(on_event)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()
        jax.monitoring.unregister_event_duration_listener(on_event)


def tenths(samples: list[Sample], steps: int) -> list[list[Sample]]:
    """Samples by tenths of the run, the first tenth left out, and what came after the last step."""
    found: list[list[Sample]] = [[] for _ in range(10)]
    for sample in samples:
        if sample.step < steps:
            found[10 * sample.step // steps].append(sample)
    return found[1:]


def soak(trials: Trials, lane: str) -> None:
    steps = 10_000 if lane == "full" else 600
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["JAXPTFT_CACHE"] = str(Path(scratch, "cache"))
        made = Runs(Path(scratch, "made"))
        lines = soaked_lines(made, steps)
        for name, (words, flags) in lines.items() if lane == "full" else list(lines.items())[:1]:
            out = made.folder / name
            began = time.monotonic()
            told = io.StringIO()
            with (
                watching(out, every=0.2 if lane == "full" else 0.02) as samples,
                contextlib.redirect_stdout(told),
                contextlib.redirect_stderr(told),
            ):
                status = command_line(runs.line(words, flags, out))
            seconds = time.monotonic() - began
            trials.check(status == 0, f"{name} ended with {status}: {told.getvalue()[-300:]}", of=name)
            parts = tenths(samples, steps)
            if not all(parts):
                trials.failed(f"{name}: a tenth of the run had no sample")
                continue
            # Saving comes and goes with threads and files of its own: what stays is what each tenth has at its least.
            memory = [float(np.median([sample.memory for sample in part])) for part in parts]
            least = {
                field: [min(getattr(sample, field) for sample in part) for part in parts]
                for field in ("descriptors", "threads")
            }
            programs = [part[0].programs for part in parts]
            grown = max(memory) / memory[0] - 1
            trials.check(grown <= FLAT, f"{name}: memory by tenths of the run is {memory} MB", of=name)
            for field, counts in least.items():
                # A save may last as long as a short tenth, and a pool of threads starts one late; what leaks never goes
                # back to where it was, and goes on: there are tens of saves.
                later = min(counts[len(counts) // 2 :])
                trials.check(later <= counts[0] + LATE, f"{name}: {field} by tenths of the run are {counts}", of=name)
            last = parts[-1][-1].programs
            trials.check(programs[0] == last, f"{name}: {programs}, {last} programs were compiled", of=name)
            trials.facts[name] = {
                "steps": steps,
                "seconds": round(seconds),
                "memory_by_tenth": [round(value, 1) for value in memory],
                "programs": last,
                **{field: counts[0] for field, counts in least.items()},
            }


def soaked_lines(made: Runs, steps: int) -> dict[str, tuple[str, Flags]]:
    """Several widths of batches, and an evaluation and a checkpoint often."""
    every = steps // (100 if steps > 1000 else 30)
    often: Flags = {"steps": steps, "evaluate-every": every, "checkpoint-every": every}
    often |= {"log-every": max(1, steps // 1000), "shape.layers": 1, "shape.width": 16, "shape.heads": 2}
    corpus = material.write_uneven(made.folder / "uneven.txt", documents=150, seed=0)
    text: Flags = {"corpus": corpus, "rows": "documents", "documents": "line", "length-buckets": 4}
    text |= {"max-length": 24, "learning-rate": 1e-3}
    _, mlm = made.lines["mlm"]
    _, images = made.lines["images vae"]
    image_flags = {name: value for name, value in often.items() if not name.startswith("shape.")}
    return {"mlm": ("pretrain", {**mlm, **text, **often}), "vae": ("pretrain images", {**images, **image_flags})}


if __name__ == "__main__":
    sys.exit(main({"soak": soak}, script=__file__))
