"""Several processes as one run: how they find each other, what the first of them knows, and what names a lost one.

Every process does the same, on its own devices; only the first writes. JAX's own service connects them, by what
`jaxptft launch` tells them on one host, and on a cluster by what Slurm, Open MPI, Kubernetes or a TPU pod says.
"""

import json
import os
import socket
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

COORDINATOR, COUNT, INDEX = "JAXPTFT_COORDINATOR", "JAXPTFT_PROCESSES", "JAXPTFT_PROCESS"
CLUSTER = "JAXPTFT_CLUSTER"
HEARTBEAT = 10  # seconds without one, after which JAX ends all other processes
_SHUTDOWN = 15  # seconds that a process which has ended waits for the others
_AHEAD = 4  # how many askings an agreed stop lies ahead: no process is as many steps before the first


def connect() -> None:
    """Join the processes that the environment names, before anything is computed; nothing where it names none.

    JAXPTFT_COORDINATOR (HOST:PORT of the first process), JAXPTFT_PROCESSES and JAXPTFT_PROCESS are what `launch` sets;
    JAXPTFT_CLUSTER=1 leaves it to JAX to ask the cluster. Raises ValueError where they do not fit together.
    """
    if jax.distributed.is_initialized():
        return
    options: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT, "shutdown_timeout_seconds": _SHUTDOWN}
    if os.environ.get(CLUSTER) == "1":
        try:
            jax.distributed.initialize(**options)
        except ValueError as error:
            raise ValueError(
                f"{CLUSTER} is set, but no cluster is found here ({error}); start the processes by srun, mpirun or the "
                "like, or on one host by jaxptft launch --processes"
            ) from error
        return
    given = {name: os.environ.get(name) for name in (COORDINATOR, COUNT, INDEX)}
    if not any(given.values()):
        return
    if missing := [name for name, value in given.items() if not value]:
        raise ValueError(f"{', '.join(missing)} must be set beside the others of {', '.join(given)}")
    try:
        count, index = int(given[COUNT] or ""), int(given[INDEX] or "")
    except ValueError:
        raise ValueError(f"{COUNT} is {given[COUNT]!r} and {INDEX} {given[INDEX]!r}; expected numbers") from None
    if not 0 <= index < count:
        raise ValueError(f"{INDEX} is {index}; expected 0 to {count - 1}, as {COUNT} is {count}")
    jax.distributed.initialize(given[COORDINATOR], count, index, **options)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def from_first(tree: PyTree) -> PyTree:
    """The first process's arrays, as NumPy's, in every process; all must call this, with equal shapes and dtypes."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    def told(leaf: Any) -> np.ndarray:
        own = np.ascontiguousarray(leaf)
        # As bytes: what is sent is a sum over all processes, which JAX would make in 32 bits.
        sent = multihost_utils.broadcast_one_to_all(own.reshape(-1).view(np.uint8))
        return np.asarray(sent, np.uint8).view(own.dtype).reshape(np.shape(leaf))

    return jax.tree.map(told, tree)


def value_from_first(value: Any) -> Any:
    """The first process's value, JSON-able, in every process; all must call this."""
    if jax.process_count() == 1:
        return value
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(from_first(np.int64(len(content))))
    return json.loads(from_first(content if is_first() else np.zeros(size, np.uint8)).tobytes())


class Bulletin:
    """Short texts by name that all processes of a run see; a failing service is as one without texts."""

    def __init__(self) -> None:
        from jax._src import distributed  # the service has no public name

        self._client: Any = distributed.global_state.client

    def put(self, name: str, text: str) -> None:
        self._client.key_value_set(f"jaxptft/{name}", text, allow_overwrite=True)

    def get(self, name: str) -> str | None:
        try:
            return self._client.key_value_try_get(f"jaxptft/{name}")
        except jax.errors.JaxRuntimeError:
            return None

    def all(self, prefix: str) -> dict[str, str]:
        """Name (what follows the prefix) -> text."""
        try:
            found = self._client.key_value_dir_get(f"jaxptft/{prefix}")
        except jax.errors.JaxRuntimeError:
            return {}
        return {name.rpartition("/")[2]: text for name, text in found}


class Agreement:
    """Lets all processes stop at the same place: each counts how often it has asked whether to, which must be equally
    often between two exchanges of values, and the first names the count at which all do."""

    def __init__(self, bulletin: Bulletin) -> None:
        self._bulletin, self._count, self._told = bulletin, 0, False
        self._place: tuple[int, int] | None = None  # the count, and the signal

    def __call__(self, own: int | None) -> int | None:
        """The signal that all stop for now; `own` is the one that came to this process."""
        self._count += 1
        if self._place is None and own is not None and not self._told:
            self._bulletin.put(f"stop/asked/{jax.process_index()}", str(own))
            self._told = True
        if self._place is None and is_first():
            if asked := own or next(map(int, self._bulletin.all("stop/asked").values()), None):
                self._place = self._count + _AHEAD, asked
                self._bulletin.put("stop/place", "{} {}".format(*self._place))
        elif self._place is None and (place := self._bulletin.get("stop/place")):
            count, signum = map(int, place.split())
            self._place = count, signum
        return self._place[1] if self._place is not None and self._count >= self._place[0] else None


def missing_processes() -> list[int]:
    """Those of all processes that no longer answer, once it is known; this takes as long as `HEARTBEAT`."""
    from jax._src import distributed

    every = list(range(jax.process_count()))
    client: Any = distributed.global_state.client
    try:
        return sorted(set(every) - set(client.get_live_nodes(every)))
    except jax.errors.JaxRuntimeError:  # it ran on the first
        return [0]


def own_name() -> str:
    """This process in words, for a message."""
    return f"process {jax.process_index()} ({socket.gethostname()}, pid {os.getpid()})"


def to_host(tree: PyTree) -> PyTree:
    """`jax.device_get`, also of what is spread over the devices of several processes, who must call this together."""

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))
