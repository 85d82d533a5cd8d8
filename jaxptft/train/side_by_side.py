"""Several runs, each in a thread of its own, whose steps are one program: `vmap` over all that have come to theirs.

Each run goes through `fit` by itself, with its own batches, evaluations and checkpoints; only what `SideBySide.step`
compiles is shared. It waits until every run that still goes on has asked for its next step (or left), and takes the
steps of those together whose batches have one shape.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxptft.objectives import Batch, Mean
from jaxptft.train.dispatch import Together, several
from jaxptft.train.parallel import axis_of, batch_specs, on_own_rows
from jaxptft.train.state import State
from jaxptft.train.step import Step


class _Asked:
    """One run's next step, and what came of it."""

    def __init__(self, kind: Any, arguments: tuple[State, PyTree, Any]):
        self.kind, self.arguments = kind, arguments
        self.found: tuple[State, dict[str, Mean]] | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.found is not None or self.error is not None


class SideBySide:
    """The meeting point of runs.

    Each must be driven by a thread of its own, be told of by `expect` before any of them begins, and call `leave` when
    it ends, however it ends: the others wait for it.
    """

    def __init__(self) -> None:
        self._going, self._asked = 0, list[_Asked]()
        self._met = threading.Condition()
        self._programs: dict[Any, Any] = {}

    def step(self, make: Callable[..., Step], mesh: Mesh, *, together: int = 1) -> Step:
        """The step that `make(axis_name=...)` gives, compiled for however many runs ask for it at once, in the place of
        `compile_step`'s.

        Every run must be given what one call of this returns. Its first constants, `constants[0]`, are each run's own;
        all others, `constants[1:]`, must be equal in all runs. With `together` above 1 it takes up to so many steps of
        each, on what `shard_together` gives. State is whole on every device.
        """
        program = _compiled(make(axis_name=axis_of(mesh)), mesh, together)

        def run(state: State, constants: PyTree, batch: Any) -> tuple[State, dict[str, Mean]]:
            return self._meet(_Asked((id(run), _kind(batch)), (state, constants, batch)), program)

        return run

    def expect(self, runs: int) -> None:
        """So many more runs are to come."""
        with self._met:
            self._going += runs

    def leave(self) -> None:
        """One of the runs has ended."""
        with self._met:
            self._going -= 1
            self._take()

    def _meet(self, asked: _Asked, program: Any) -> tuple[State, dict[str, Mean]]:
        with self._met:
            self._programs[asked.kind] = program
            self._asked.append(asked)
            self._take()
            while not asked.done:
                self._met.wait()
        if asked.error is not None:
            raise asked.error
        assert asked.found is not None
        return asked.found

    def _take(self) -> None:
        """The steps of all, once all have asked."""
        if not self._asked or len(self._asked) < self._going:
            return
        for kind in dict.fromkeys(asked.kind for asked in self._asked):
            own = [asked for asked in self._asked if asked.kind == kind]
            try:
                found = self._programs[kind]([asked.arguments for asked in own])
            except Exception as error:
                for asked in own:
                    asked.error = error
            else:
                for asked, result in zip(own, found, strict=True):
                    asked.found = result
        self._asked.clear()
        self._met.notify_all()


def _kind(batch: Any) -> Any:
    """What the batches of one call must have in common: their shapes, and how many steps they are for."""
    leaves, tree = jax.tree.flatten(batch)
    count = int(batch.count) if isinstance(batch, Together) else 1
    return count, tree, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _compiled(step: Step, mesh: Mesh, together: int) -> Any:
    run: Any = step if together == 1 else several(step, together)
    batch_axes: Any = 0 if together == 1 else Together(0, None)  # pyright: ignore[reportArgumentType]

    def all_of_them(states: Sequence[State], own: Sequence[PyTree], shared: PyTree, batches: Sequence[Batch]) -> Any:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        if together > 1:
            stacked = stacked._replace(count=batches[0].count)  # pyright: ignore[reportAttributeAccessIssue]
        one = lambda state, own, batch: run(state, (own, *shared), batch)  # noqa: E731
        found = jax.vmap(one, in_axes=(0, 0, batch_axes))(_stacked(states), _stacked(own), stacked)
        return [jax.tree.map(lambda leaf: leaf[place], found) for place in range(len(states))]  # noqa: B023

    def placed(*trees: Any) -> Any:
        if axis_of(mesh) is None:
            return all_of_them(*trees)
        return on_own_rows(all_of_them, mesh, [batch_specs(together)] * len(trees[-1]))(*trees)

    compiled = jax.jit(placed, out_shardings=NamedSharding(mesh, PartitionSpec()), donate_argnums=0)

    def call(asked: Sequence[tuple[State, PyTree, Any]]) -> Sequence[tuple[State, dict[str, Mean]]]:
        states, constants, batches = (list(part) for part in zip(*asked, strict=True))
        missing = _size(len(asked)) - len(asked)  # as runs leave, few programs shall do: the first is taken again
        states += [jax.tree.map(jnp.copy, states[0]) for _ in range(missing)]
        own = [constants[0][0] for _ in range(missing)]
        own = [each[0] for each in constants] + own
        return compiled(states, own, constants[0][1:], batches + [batches[0]] * missing)[: len(asked)]

    return call


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _size(runs: int) -> int:
    """The least power of two that takes so many."""
    return 1 << (runs - 1).bit_length()
