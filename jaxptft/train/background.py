"""Work that goes on while steps are taken: writing to disk what was copied to the host's memory.

Jobs run one after another, in the order in which they were given. What goes wrong in one is raised at the next call of
anything here, which is at the next step; the jobs behind it are dropped, since they may build on what it should have
left.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxptft.train.processes import to_host
from jaxptft.train.state import is_key


class Background:
    """A context manager around one thread; leaving it waits for the jobs that were given."""

    def __init__(self, *, most: int = 2) -> None:
        """`most` jobs wait or run at a time, each holding its copy; giving another waits for the oldest."""
        self._most = most
        self._jobs: list[Future[None]] = []
        self._failed = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="background")

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()  # which waits too

    def give(self, job: Callable[[], None]) -> None:
        """Have `job` done; raises what an earlier one raised."""
        self.check()
        while len(self._jobs) >= self._most:
            self._jobs.pop(0).result()
        self._jobs.append(self._thread.submit(self._do, job))

    def check(self) -> None:
        """Raise what a job has raised by now; costs nothing."""
        while self._jobs and self._jobs[0].done():
            self._jobs.pop(0).result()

    def wait(self) -> None:
        """Until every job is done; raises what one of them raised."""
        while self._jobs:
            self._jobs.pop(0).result()

    def _do(self, job: Callable[[], None]) -> None:
        if self._failed.is_set():
            return
        try:
            job()
        except BaseException:
            self._failed.set()
            raise


def copied_to_host(tree: PyTree) -> PyTree:
    """The tree as NumPy arrays of their own, which outlive the donation of what they were copied from.

    Keys become the numbers they are made of, which is how checkpoints hold them. An array that is spread over the
    devices of several processes is gathered, so all of them must call this together.
    """
    numbers = jax.tree.map(_without_key, tree)
    for leaf in jax.tree.leaves(numbers):
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()  # all are under way before the first is awaited
    return jax.tree.map(_on_host, numbers)


def _without_key(leaf: object) -> object:
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _on_host(leaf: object) -> np.ndarray:
    if isinstance(leaf, np.ndarray | jax.Array):
        return np.array(to_host(leaf), copy=True)
    return np.asarray(jnp.asarray(leaf))  # Python's scalars, in JAX's 32 bits
