"""Fine-tunings that differ in their dials, seeds and folders: read once, compiled once, and on request side by side."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from jaxptft import train
from jaxptft.recipes import finetune
from jaxptft.recipes.carry_out import carry_out
from jaxptft.recipes.dials import Program
from jaxptft.recipes.finetune_run import FinetuneRun


class Runs:
    """Runs of one program; the first that is built decides which.

    With `side_by_side`, those of one `at_once` take their steps together, by `vmap`; else each takes its own, and they
    follow each other. Either way a run comes to what it would come to alone, but for the last bits.
    """

    def __init__(self, *, side_by_side: bool):
        self._beside = train.SideBySide() if side_by_side else None
        self._program = Program(self._beside)
        self._first: FinetuneRun | None = None
        self._building = threading.Lock()

    def run(
        self,
        config: finetune.Config,
        *,
        name: str,
        say: Callable[[str], None],
        judged: Callable[[FinetuneRun, int, dict[str, float]], None] | None = None,
        stop: train.StopFlag | None = None,
    ) -> finetune.Result:
        """As `finetune.run`. `judged` is told of each evaluation by the run, its step and metrics; what it raises ends
        the run.

        Raises ValueError, naming the key, too where the config is of another program than the first one's.
        """

        def build(own: finetune.Config, say: Callable[[str], None], stop: train.StopFlag) -> FinetuneRun:
            values: dict[str, Any] = {"name": name, "say": say, "stop": stop}
            with self._building:
                if self._first is None:
                    work = self._first = FinetuneRun(own, **values, program=self._program)
                else:
                    work = self._first.sibling(own, **values)
            if judged is not None:
                work.training.judged = partial(judged, work)
            works.append(work)
            return work

        works: list[FinetuneRun] = []
        try:
            done = carry_out(config, say, build, stop)
        finally:
            for work in works:
                work.training.release()
        facts = done.work.training
        return finetune.Result(
            config.out, done.found, facts.trainable_count, facts.parameter_count, done.seconds, done.loop.best_step
        )

    def at_once(self, jobs: Sequence[Callable[[train.StopFlag | None], Any]]) -> None:
        """Jobs that each call `run` once, with the flag that they are given; the first error of theirs is raised."""
        if self._beside is None:
            for job in jobs:
                job(None)
            return
        beside = self._beside

        def guarded(job: Callable[[train.StopFlag | None], Any]) -> None:
            try:
                job(stop)
            except BaseException:
                stop.request()  # so that the others save, and end too
                raise
            finally:
                beside.leave()

        beside.expect(len(jobs))
        with train.StopFlag() as stop:
            with ThreadPoolExecutor(len(jobs), thread_name_prefix="run") as threads:
                ended = [threads.submit(guarded, job) for job in jobs]
            errors = [error for error in (job.exception() for job in ended) if error is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, train.Stopped)), errors[0])
