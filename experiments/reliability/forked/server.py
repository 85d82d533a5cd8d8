"""Runs functions in processes of their own that need not import anything: this one has, and forks for each.

    python server.py SOCKET     a descriptor, over which come calls, [file or module, function, arguments] in JSON, with
                                three descriptors each: for standard output, for standard error, and for pid and exit
                                status

Nothing here may begin to compute, since the threads of a JAX that has would not come along.
"""

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def main() -> None:
    import datasets  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import sklearn.metrics  # noqa: F401
    from matplotlib.figure import Figure  # noqa: F401
    from transformers import AutoTokenizer  # noqa: F401

    from jaxptft import cli  # noqa: F401

    sys.path.insert(0, str(Path(__file__).parents[1]))  # where the scripts import from
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what was forked need not be waited for
    asked = socket.socket(fileno=int(sys.argv[1]))
    while True:
        line, places, *_ = socket.recv_fds(asked, 1 << 16, 3)
        if not line:
            return
        if os.fork() == 0:
            asked.close()
            _watch(lambda line=line: _call(*json.loads(line)), *places)
        for place in places:
            os.close(place)


def _call(where: str, function: str, arguments: list[str]) -> int:
    if not where.endswith(".py"):
        return getattr(importlib.import_module(where), function)(arguments)
    spec = spec_from_file_location("called", where)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)(arguments)


def _watch(call: Callable[[], int], out: int, err: int, told: int) -> None:
    """Fork for the call, and tell its pid and, when it has ended, how."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        os.write(told, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(told, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    os.close(told)
    for place, standard in ((out, 1), (err, 2)):
        os.dup2(place, standard)
        os.close(place)
    status = 1
    try:
        status = call()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
