"""Frozen layers run once: what they make of each row is kept, and only the rest of the model works in each step."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxptft import data, models, train
from jaxptft.recipes.finetune import Config
from jaxptft.recipes.tasks.contract import Task
from jaxptft.recipes.training import EVALUATION_ROWS
from jaxptft.recipes.training_settings import total_steps


def kept(
    config: Config,
    task: Task,
    batches: Mapping[str, Any],
    *,
    architecture: Any,
    depth: int | None,
    params: Any,
    mesh: Any,
    say: Callable[[str], None],
    stop: train.StopFlag,
) -> tuple[int | None, dict[str, Any]]:
    """After how many layers the model starts, and batches with what these make of each row; None and `batches` as they
    are where that is switched off or cannot be.

    `depth` is how far the backbone is frozen in all of the run, as `optim.frozen_prefix` counts. Frozen layers run
    without dropout, so what they make of a row is the same each time, but for the last bits: those depend on the rows
    beside it.
    """
    as_they_are = None, dict(batches)
    if config.cache_features == "off":
        return as_they_are
    start = _deepest(task, architecture, depth or 0)
    against = {
        "no whole layer is frozen, or another objective reads what it computes": start is None,
        "several processes share the run": jax.process_count() > 1,
        "fsdp cuts them over devices": config.fsdp > 1,
        "rows are packed, changed or no texts": any(not hasattr(own, "texts_of") for own in batches.values()),
    }
    reason = next((reason for reason, holds in against.items() if holds), None)
    if start is None or reason is not None:
        if config.cache_features == "on":
            say(f"note: cache_features keeps nothing: {reason}")
        return as_they_are
    if config.cache_features == "auto" and not _pays(config, batches):
        return as_they_are
    folder = data.cache_folder() / "features"
    compute = jax.jit(models.features(architecture, stop=start))
    backbone = train.replicate({"backbone": params["backbone"]}, mesh)

    def states(batch: Mapping[str, Any]) -> Any:
        stop.raise_if_set()
        return compute(backbone, train.shard({name: batch[name] for name in batch if name != "label"}, mesh))

    room = int(config.cache_features_gb * 1e9)
    found = {}
    for split, own in batches.items():
        options: dict[str, Any] = {"rows": EVALUATION_ROWS, "multiple_of": mesh.size, "memory": room}
        try:
            found[split] = data.keep_states(own, states, **options, folder=folder)
        except OSError as error:
            if config.cache_features == "on":
                raise OSError(error.errno, f"{error.strerror}; cache_features=off needs no file", str(folder)) from None
            say(f"note: cache_features keeps nothing: {folder}: {error.strerror}")
            return as_they_are
        room -= found[split].states.nbytes if found[split].states.in_memory else 0
    rows = sum(len(own.batches.tokenized) for own in found.values())
    size = sum(own.states.nbytes for own in found.values()) / 1e9
    where = "memory" if all(own.states.in_memory for own in found.values()) else "a file"
    what = f"lower {start} layers are" if start <= architecture.layers else "whole backbone is"
    say(f"frozen: the {what} computed once for {rows:,} texts, {size:.2f} GB in {where}")
    return start, found


def _pays(config: Config, batches: Mapping[str, Any]) -> bool:
    """Whether the training rows come at least twice each: a pass over all of them is then no more than the steps."""
    per_epoch = batches["train"].steps_per_epoch
    return total_steps(config, per_epoch) >= 2 * per_epoch


def _deepest(task: Task, architecture: Any, depth: int) -> int | None:
    """The deepest start below which all is frozen; a task that does not read the pooler starts below it."""
    for start in (depth, depth - 1):
        if start > 0:
            try:
                models.build(architecture, task.model_task, classes=task.classes, frozen_layers=start, start=start)
            except ValueError:
                continue
            return start
    return None
