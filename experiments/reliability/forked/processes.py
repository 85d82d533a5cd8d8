"""Processes that begin in milliseconds: forks of a server that has imported everything and computed nothing.

Importing takes most of the time that a tiny run takes; a process that has computed with JAX, such as one that makes
and judges trials, must not fork itself.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ONE_DEVICE = {
    "NPROC": "1",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    "JAX_PLATFORMS": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
QUICK_COMPILES = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
PACKAGE = Path(__file__).resolve().parents[3]


class Started:
    """A function in a process of its own, as `subprocess.Popen` has it."""

    def __init__(self, pid: int, told: IO[bytes], out: IO[str], err: IO[str]):
        self.pid, self.stdout, self.stderr = pid, out, err
        self.returncode: int | None = None
        self._told = told

    def poll(self) -> int | None:
        return self.wait(0)

    def wait(self, timeout: float) -> int | None:
        """The exit status, negative for a signal; None where the process has not ended by then."""
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            self.returncode = int(self._told.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What is left to read, when the process has ended."""
        told = self.stdout.read(), self.stderr.read()  # neither fills a pipe
        assert self.wait(timeout) is not None
        return told

    def close(self) -> None:
        """Give the pipes back."""
        for pipe in (self.stdout, self.stderr, self._told):
            pipe.close()


class Server:
    """Starts processes; made by `forking`."""

    def __init__(self, asking: socket.socket):
        self._asking = asking

    def call(self, where: str | Path, function: str, *arguments: object) -> Started:
        """`function` of a file (.py) or a module, given a list of texts, which returns the exit status."""
        pipes = [os.pipe() for _ in range(3)]
        line = json.dumps([str(where), function, [str(argument) for argument in arguments]]).encode()
        socket.send_fds(self._asking, [line], [write for _, write in pipes])
        for _, write in pipes:
            os.close(write)
        out, err = (os.fdopen(read) for read, _ in pipes[:2])
        told = os.fdopen(pipes[2][0], "rb", buffering=0)  # what is buffered, select does not see
        return Started(int(told.readline()), told, out, err)

    def command(self, *arguments: object) -> Started:
        """A command line of `jaxptft`."""
        return self.call("jaxptft.cli", "main", *arguments)


@contextmanager
def forking(environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server, whose processes have one device and one thread; `environment` is added to this one's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, str(Path(__file__).with_name("server.py")), str(theirs.fileno())]
    values = {**os.environ, **ONE_DEVICE, "PYTHONPATH": str(PACKAGE), **(environment or {})}
    with ours, subprocess.Popen(command, env=values, pass_fds=[theirs.fileno()]) as server:
        theirs.close()
        try:
            yield Server(ours)
        finally:
            ours.close()  # at which the server ends
            server.wait(60)
