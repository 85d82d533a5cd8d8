"""Runs that move between devices and processes, and runs of several processes of which one is lost or stuck.

python experiments/reliability/topology.py --lane full    # results/topology_full.json
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from trials import Trials, main

from jaxptft import models, objectives, optim, train

STEPS = 60
LAYOUTS = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 4), (8, 1), (8, 2), (8, 8)]  # devices, and over how many state is cut
SMALLEST = 64  # elements from which a leaf is cut: the model is tiny


class TinyRun:
    """Sixty steps of a BERT classifier on rows of unequal weight, to be taken on any devices."""

    def __init__(self) -> None:
        config = models.BertConfig(vocab_size=50, width=16, layers=2, heads=2, mlp_width=32, positions=12)
        self.objective = objectives.classification(
            models.build(config, "classification", classes=3), class_weights=(0.1, 1.0, 10.0)
        )
        rate = optim.schedule("linear", peak=1e-3, steps=STEPS, warmup=0.1)
        self.optimizer = optim.adamw(rate, weight_decay=0.1, clip_norm=1.0)
        self.params = jax.jit(self.objective.init)(jax.random.key(0), self.batch_at(0))
        self.trainable = optim.trainable_mask(self.params, "none")
        self.compiled: dict[tuple[int, int], Any] = {}

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """Thirteen rows, so that no number of devices divides them."""
        drawn = np.random.default_rng(step)
        return {
            "input_ids": drawn.integers(1, 50, (13, 12)).astype(np.int32),
            "attention_mask": (np.arange(12) < drawn.integers(2, 13, 13)[:, None]).astype(np.int32),
            "token_type_ids": np.zeros((13, 12), np.int32),
            "label": drawn.integers(0, 3, 13).astype(np.int32),
            "ids": drawn.permutation(1000)[:13].astype(np.int32),
            "valid": drawn.random(13) < 0.8,
        }

    def take(self, folder: Path, layout: tuple[int, int], until: int) -> dict[str, Any]:
        """On from what `folder` holds, on such devices, up to a stop at step `until`; what was seen on the way."""
        devices, fsdp = layout
        mesh = train.make_mesh(jax.devices()[:devices], fsdp=fsdp)
        state, loop = self._first(mesh), train.LoopState()
        checkpoints = train.CheckpointStore(folder / "checkpoints")
        best = train.CheckpointStore(folder / "checkpoints" / "best", keep=None)
        exact = True
        if checkpoints.steps():
            step, _ = train.newest_whole(checkpoints, best)
            state, meta = train.restore(checkpoints, state, step=step)
            loop = train.LoopState(**meta["loop"])
            exact = train.fingerprint(state) == (folder / "fingerprint").read_text()
        journal = train.Journal(folder / "metrics.jsonl")
        journal.rewind(int(state.step))
        stop, seen = train.StopFlag(), {}

        def place(batch: dict[str, Any]) -> dict[str, Any]:
            placed = train.shard(batch, mesh)
            seen[len(seen) + int(begun)] = np.asarray(placed["ids"])[np.asarray(placed["valid"])].tolist()
            if begun + len(seen) == until:
                stop.request()
            return placed

        begun = int(state.step)
        schedule = train.Schedule(steps=STEPS, log_every=1, evaluate_every=None, checkpoint_every=7, monitor="run/step")
        try:
            state, _ = train.fit(
                self._step(layout, mesh),
                state,
                None,
                self.batch_at,
                schedule=schedule,
                evaluate=lambda state: {"run/step": float(state.step)},
                journal=journal,
                checkpoints=checkpoints,
                best=best,
                loop=loop,
                place=place,
                stop=stop,
            )
        except train.Stopped:
            _, state, _ = checkpoints.restore(state)
        (folder / "fingerprint").write_text(train.fingerprint(state))
        return {"exact": exact, "ids": seen}

    def _first(self, mesh: Any) -> train.State:
        def make(params: Any, batch: Any, rng: Any) -> train.State:
            return train.create_state(self.objective, self.optimizer, params, batch, trainable=self.trainable, rng=rng)

        return train.spread(make(self.params, self.batch_at(0), jax.random.key(1)), mesh, smallest=SMALLEST)

    def _step(self, layout: tuple[int, int], mesh: Any) -> Any:
        if layout not in self.compiled:
            make = partial(train.make_step, self.objective, self.optimizer, trainable=self.trainable)
            self.compiled[layout] = train.compile_step(make, mesh, smallest=SMALLEST)
        return self.compiled[layout]


def devices(trials: Trials, lane: str) -> None:
    """Runs that are stopped and go on with other devices: the same rows, what was saved to the bit, near losses."""
    run, drawn = TinyRun(), random.Random(0)
    layouts = LAYOUTS if lane == "full" else [(1, 1), (8, 1), (4, 4)]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        expected = run.take(_new(folder / "whole"), (1, 1), STEPS + 1)["ids"]
        whole, largest = _losses(folder / "whole"), 0.0
        for number in range(20 if lane == "full" else 2):
            moved, path = _new(folder / f"moved{number}"), []
            stops = sorted(drawn.sample(range(1, STEPS), 5 if lane == "full" else 2))
            for until in [*stops, STEPS + 1]:
                layout = drawn.choice(layouts)
                path.append(layout)
                found = run.take(moved, layout, until)
                told = f"devices and fsdp {path}, stopped at {stops}"
                trials.check(found["exact"], f"{told}: what was restored is not what was saved", of="restored exactly")
                same = all(expected[step] == ids for step, ids in found["ids"].items())
                trials.check(same, f"{told}: other rows", of="the same rows")
            losses = _losses(moved)
            off = _furthest(whole, losses)
            largest = max(largest, off)
            trials.check(off < 1e-5, f"devices {path}: losses differ by {off:.2g}", of="losses within 1e-5")
    trials.facts["largest relative difference of a loss"] = largest


RUN = (
    *("pretrain", "images", "--data", "sklearn:digits", "--objective", "denoising", "--backbone", "mlp"),
    *("--shape.widths", "256", "--code.size", "64", "--batch-size", "250", "--steps", str(STEPS), "--log-every", "1"),
    *("--checkpoint-every", "20", "--evaluate-every", "30", "--eval-rows", "100", "--no-pictures"),
)


def processes(trials: Trials, lane: str) -> None:
    """Two processes and one, each way, stopped and killed in between: losses of all sixty steps near each other."""
    plans = [  # how many processes, devices of each, fsdp, and how it ends
        [(2, 1, 1, signal.SIGTERM), (1, 1, 1, None)],
        [(2, 2, 4, None)],
        [(1, 2, 2, signal.SIGTERM), (2, 1, 1, signal.SIGKILL), (2, 2, 2, None)],
        [(2, 1, 2, signal.SIGINT), (2, 1, 2, signal.SIGTERM), (1, 1, 1, None)],
        [(3, 1, 1, signal.SIGTERM), (2, 2, 1, None)],
    ]
    drawn = random.Random(1)
    with tempfile.TemporaryDirectory() as made:
        whole = Path(made) / "whole"
        status, told = _finish(_start(_cli(*RUN, "--out", str(whole)), devices=1))
        trials.check(status == 0, f"one process: status {status}: {told}")
        largest = 0.0
        for number, plan in enumerate(plans if lane == "full" else plans[:2]):
            out, flags = Path(made) / f"run{number}", [*RUN]
            for count, each, fsdp, how in plan:
                command = _cli(
                    "launch", "--processes", str(count), "--", *flags, "--out", str(out), "--fsdp", str(fsdp)
                )
                if count == 1:
                    command = _cli(*flags, "--out", str(out), "--fsdp", str(fsdp))
                started = _start(command, devices=each)
                if how is not None:
                    before = _logged(out)
                    least = before + drawn.randint(3, 12)
                    _wait(lambda out=out, least=least: _logged(out) >= least, started)
                    started.send_signal(how if how != signal.SIGKILL else signal.SIGINT)
                    if how == signal.SIGKILL:
                        started.send_signal(signal.SIGINT)  # the second leaves at once
                status, told = _finish(started)
                right = 0 if how is None else 128 + (signal.SIGINT if how == signal.SIGKILL else how)
                trials.check(status == right, f"{plan}: status {status}, expected {right}: {told}", of="exit status")
                flags = [*RUN[:2], "--resume"]
            off = _furthest(_losses(whole), _losses(out)) if out.exists() else 1.0
            largest = max(largest, off)
            trials.check(off < 1e-5, f"{plan}: losses differ by {off:.2g}", of="losses within 1e-5")
            saved = (out / "model" / "model.safetensors").is_file()
            trials.check(saved, f"{plan}: no model was saved", of="model saved")
    trials.facts["largest relative difference of a loss"] = largest


def lost(trials: Trials, lane: str) -> None:
    """One of two processes is killed: the other ends by itself, in 30 seconds, and says which is gone."""
    drawn, slowest = random.Random(2), 0.0
    with tempfile.TemporaryDirectory() as made:
        for number in range(10 if lane == "full" else 2):
            out, victim = Path(made) / str(number), number % 2
            flags = [*RUN, "--steps", "100000", "--out", str(out)]
            if (number % 4 < 2 and lane == "full") or number == 0:
                started = _start(_cli("launch", "--processes", "2", "--", *flags), devices=1)
                _wait(lambda out=out: _logged(out) >= drawn.randint(2, 30), started)
                os.kill(_children(started.pid)[victim], signal.SIGKILL)
                began = time.monotonic()
                status, told = _finish(started)
                named = f"process {victim} (pid" in told
            else:
                pair = _pair(_cli(*flags))
                _wait(lambda out=out: _logged(out) >= drawn.randint(2, 30), pair[0])
                pair[victim].kill()
                began = time.monotonic()
                status, told = _finish(pair[1 - victim])
                _finish(pair[victim])
                # JAX calls the first its leader; of any other it gives the number on the line after its complaint.
                named = f"process {victim} is gone" in told or (
                    "leader" in told
                    if victim == 0
                    else re.search(r"stopped sending heartbeats\):\s+1\b", told) is not None
                )
            seconds = time.monotonic() - began
            slowest = max(slowest, seconds)
            well = status not in (0, None) and named and seconds <= 30
            trials.check(well, f"process {victim} killed: status {status} after {seconds:.0f} s, said: {told}")
    trials.facts["slowest, seconds"] = round(slowest, 1)


def stuck(trials: Trials, lane: str) -> None:
    """One of two processes lives and does not move: the other ends in the watchdog's limit and 10 s, and names it."""
    limit, slowest = 8, 0.0
    with tempfile.TemporaryDirectory() as made:
        for number in range(6 if lane == "full" else 1):
            out, victim = Path(made) / str(number), (number + 1) % 2
            script = str(Path(__file__).parent / "workers" / "stalled.py")
            flags = [*RUN, "--stuck-after", str(limit), "--out", str(out)]
            pair = _pair([sys.executable, script, str(victim), str(20 + number), *flags])
            _wait(lambda out=out, least=17 + number: _logged(out) >= least, pair[0])
            began = time.monotonic()
            status, told = _finish(pair[1 - victim])
            seconds = time.monotonic() - began
            _finish(pair[victim])
            slowest = max(slowest, seconds)
            named = f"it waits for process {victim} (" in told
            well = status not in (0, None) and named and seconds <= limit + 10
            trials.check(well, f"process {victim} stuck: status {status} after {seconds:.0f} s, said: {told}")
    trials.facts |= {"limit, seconds": limit, "slowest, seconds": round(slowest, 1)}


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def _furthest(one: dict[int, float], other: dict[int, float]) -> float:
    """The largest relative difference at a step; 1 where a step is missing."""
    if one.keys() != other.keys() or len(one) != STEPS:
        return 1.0
    return max(abs(one[step] - other[step]) / abs(one[step]) for step in one)


def _logged(out: Path) -> int:
    log = out / "metrics.jsonl"
    return log.read_bytes().count(b'"train"') if log.exists() else 0


def _cli(*flags: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from jaxptft.cli import main; sys.exit(main())", *flags]


def _start(command: list[str], *, devices: int, **environment: str) -> subprocess.Popen[str]:
    own = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.Popen(
        command, env={**os.environ, **own, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def _pair(command: list[str]) -> list[subprocess.Popen[str]]:
    """Two processes as a cluster starts them, with nobody who watches over both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"JAXPTFT_COORDINATOR": coordinator, "JAXPTFT_PROCESSES": "2"}
    return [_start(command, devices=1, **shared, JAXPTFT_PROCESS=str(index)) for index in range(2)]


def _wait(moment: Callable[[], bool], started: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not moment() and started.poll() is None and time.monotonic() < until:
        time.sleep(0.005)


def _finish(started: subprocess.Popen[str]) -> tuple[int | None, str]:
    """Exit status, None for one that had to be ended, and what was said on standard error."""
    try:
        _, told = started.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        for child in _children(started.pid):
            os.kill(child, signal.SIGKILL)
        started.kill()
        return None, started.communicate()[1]
    return started.returncode, told


def _children(pid: int) -> list[int]:
    """In the order in which they were started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


if __name__ == "__main__":
    sys.exit(main({"devices": devices, "processes": processes, "lost": lost, "stuck": stuck}, script=__file__))
