"""A run from its config to its end: built, its folder taken, trained, finished; in one process or in several."""

import atexit
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol, TypeVar

import jax

from jaxptft import train
from jaxptft.recipes import run_folder, runtime
from jaxptft.recipes.training import Training
from jaxptft.recipes.training_settings import LearningSettings

Config = TypeVar("Config", bound=LearningSettings)
Say = Callable[[str], None]


class Work(Protocol):
    """A recipe's run, built whole: what is learnt, and what is made of the best model."""

    training: Training

    def finish(self, loop: train.LoopState) -> Any: ...


class Done(NamedTuple):
    """A run that has come to its end; `found` is what `finish` returned."""

    work: Any
    loop: train.LoopState
    found: Any
    seconds: float  # of training, evaluations included; of this process


def carry_out(
    config: Config, say: Say, build: Callable[[Config, Say, train.StopFlag], Work], stop: train.StopFlag | None = None
) -> Done:
    """Build a run, take its folder, train, and finish, so that a mistake costs nothing and a stop can be resumed.

    Where the environment names several processes (`jaxptft launch`), they are one run: only the first writes to the
    config's folder and speaks. `stop` is a flag that somebody else sets, in the place of one that signals set, for runs
    in threads. Raises what `build` and `run_folder` refuse, before the first step; `train.Stopped`
    after saving when SIGTERM or Ctrl-C asks for it.
    """
    train.connect()
    runtime.keep_compiled_programs()
    config, say = _own(config, say)
    try:
        return _carry_out(config, say, build, stop)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1:
            _leave(error)
        raise


def _carry_out(
    config: Config, say: Say, build: Callable[[Config, Say, train.StopFlag], Work], given: train.StopFlag | None
) -> Done:
    claim = {"resume": config.resume, "overwrite": config.overwrite}
    run_folder.check(config.out, config, **claim)
    with train.StopFlag() if given is None else nullcontext(given) as stop:
        try:
            work = build(config, say, stop)
        except train.Stopped:
            run_folder.claim(config.out, config, **claim)  # so that --resume finds what to do
            raise
        work.training.refuse_shorter()
        # Only now: a mistake in the data or the model must neither take the folder nor cost the run that is in it.
        run_folder.claim(config.out, config, **claim)
        with run_folder.lock(config.out):
            began = time.perf_counter()
            loop = work.training.run()
            seconds = time.perf_counter() - began
            return Done(work, loop, work.finish(loop), seconds)


@lru_cache(maxsize=1)
def _thrown_away() -> Path:
    folder = TemporaryDirectory(prefix="jaxptft-process-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _own(config: Config, say: Say) -> tuple[Config, Say]:
    """What a process is to do: all but the first the same, silently, into a folder that is thrown away."""
    if train.is_first():
        return config, say
    changes: dict[str, Any] = {"resume": False, "overwrite": True}
    if not config.out.is_relative_to(_thrown_away()):
        changes["out"] = _thrown_away() / config.out.name
    return config.model_copy(update=changes), lambda told: None


def _leave(error: Exception) -> None:
    """A collective failed: say who is gone. Leaving as usual would wait for that process."""
    missing = train.missing_processes()
    told = ", ".join(f"process {index}" for index in missing) or "another process"
    print(f"jaxptft: error: {told} is gone ({str(error).splitlines()[0][:200]})", file=sys.stderr, flush=True)
    os._exit(1)
