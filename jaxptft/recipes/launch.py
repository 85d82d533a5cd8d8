"""One run in several processes: started, watched and stopped together on one host, or joined on a cluster.

On one host a process that ends badly ends the others, and is named. On a cluster its own tool starts the processes
(`srun jaxptft launch --cluster -- pretrain ...` on each), and JAX finds the others by what Slurm, Open MPI, Kubernetes
or a TPU pod says; one that is lost is named by JAX, within half a minute, in the log of each of the others.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Annotated, Any

import tyro
from pydantic import Field, model_validator

from jaxptft.recipes.settings import Settings

TRAINING = ("pretrain", "pretrain images", "finetune", "distill")
_POLL = 0.05  # seconds
_GRACE = 15.0  # that the others have to end by themselves, once one has


class Config(Settings):
    """Run a training in several processes: jaxptft launch --processes 2 -- pretrain --corpus ... --out runs/x"""

    command: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """what follows -- on the command line"""
    processes: int = Field(default=2, ge=1)
    """how many to start on this host, each with a share of its devices"""
    devices_per_process: int | None = Field(default=None, ge=1)
    """GPUs of each: the first process has the first of them (default: an equal share; CPUs are not divided)"""
    port: int | None = Field(default=None, ge=1, lt=65536)
    """that the first process listens at (default: a free one)"""
    cluster: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """start nothing: this is one of the processes that srun, mpirun, Kubernetes or a TPU pod has started"""

    @model_validator(mode="after")
    def _complete(self) -> "Config":
        known = ", ".join(TRAINING)
        if not self.command:
            raise ValueError(f"there is no command; give one of {known} behind --")
        if not any(" ".join(self.command).startswith(name) for name in TRAINING):
            raise ValueError(f"{self.command[0]!r} does not train in several processes; give one of {known} behind --")
        return self


def run(config: Config, *, say: Callable[[str], None] = print) -> int:
    """The exit status of the command: of the process that ended badly first, else 0.

    SIGTERM and Ctrl-C are passed on: all processes stop at the same step, and the first saves; the second signal ends
    them at once.
    """
    from jaxptft.train import processes

    if config.cluster:
        from jaxptft.cli import main

        os.environ[processes.CLUSTER] = "1"
        return main(config.command)
    coordinator = f"127.0.0.1:{config.port or _free_port()}"
    shared = {processes.COORDINATOR: coordinator, processes.COUNT: str(config.processes)}
    started = []
    with _Signals() as signals:
        for index in range(config.processes):
            own = {**os.environ, **shared, processes.INDEX: str(index), **_devices(config, index)}
            started.append(_Started(index, config.command, own))
        say(f"{config.processes} processes, the first at {coordinator}")
        return _watch(started, signals)


class _Signals:
    """Which signals came, while this context is open."""

    def __enter__(self) -> "_Signals":
        self.came: list[int] = []
        handle = lambda number, frame: self.came.append(number)  # noqa: E731
        self._before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Started:
    """One process; what all but the first say on standard error has their number in front."""

    def __init__(self, index: int, command: tuple[str, ...], environment: dict[str, str]):
        self.index = index
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-c", "import sys; from jaxptft.cli import main; sys.exit(main())", *command],
            env=environment,
            stdout=None if index == 0 else subprocess.DEVNULL,
            stderr=None if index == 0 else subprocess.PIPE,
            start_new_session=True,  # Ctrl-C comes to us alone, so that it comes to them once
        )
        self._copying = None
        if self.process.stderr is not None:
            self._copying = threading.Thread(target=self._copy, args=(self.process.stderr,), daemon=True)
            self._copying.start()

    def _copy(self, lines: IO[bytes]) -> None:
        for line in lines:
            sys.stderr.write(f"[{self.index}] {line.decode(errors='replace')}")
            sys.stderr.flush()

    def end(self) -> None:
        self.process.wait()
        if self._copying is not None:
            self._copying.join(5)


def _watch(started: list[_Started], signals: _Signals) -> int:
    passed_on, status, until = 0, 0, None
    while any(one.process.poll() is None for one in started):
        for number in signals.came[passed_on:]:
            passed_on += 1
            for one in started:
                if one.process.poll() is None:
                    one.process.send_signal(number)
        bad = [one for one in started if one.process.poll()]
        if bad and until is None:
            status, until = _status(bad[0]), time.monotonic() + _GRACE
            others = [one for one in started if one.process.poll() is None]
            if others and not signals.came:
                print(f"jaxptft: {_ended(bad[0])}; ending the others", file=sys.stderr, flush=True)
        if until is not None and time.monotonic() > until:
            for one in started:
                if one.process.poll() is None:
                    one.process.kill()
        time.sleep(_POLL)
    for one in started:
        one.end()
    bad = [one for one in started if one.process.returncode]
    return status or (_status(bad[0]) if bad else 0)


def _status(one: _Started) -> int:
    code = one.process.returncode
    return 128 - code if code < 0 else code


def _ended(one: _Started) -> str:
    code = one.process.returncode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return f"process {one.index} (pid {one.process.pid}) {how}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _devices(config: Config, index: int) -> dict[str, Any]:
    """The GPUs of one process, as CUDA reads them; nothing where there are none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    every = visible.split(",") if visible else _gpus()
    if not every:
        return {}
    share = config.devices_per_process or len(every) // config.processes
    own = every[index * share : (index + 1) * share]
    if not own or len(own) < share:
        raise ValueError(f"{config.processes} processes do not find {share or 1} GPUs each among {len(every)}")
    return {"CUDA_VISIBLE_DEVICES": ",".join(own)}


def _gpus() -> list[str]:
    from pathlib import Path

    if os.environ.get("JAX_PLATFORMS", "cuda") == "cpu":
        return []
    found = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return sorted(found, key=int)
