"""The loop: steps, evaluations, the best model, checkpoints, and leaving when asked to.

What happens between two steps is a function of the step number and of `LoopState`, which every checkpoint holds; so a
run that was killed anywhere and resumed does what the run that was not killed did, and logs the same lines.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxptft.objectives import Batch, Mean, Params
from jaxptft.train.background import Background, copied_to_host
from jaxptft.train.checkpoint import CheckpointStore, DamagedCheckpoint
from jaxptft.train.feed import Feed, Group
from jaxptft.train.journal import Journal
from jaxptft.train.processes import is_first
from jaxptft.train.progress import Progress
from jaxptft.train.state import State
from jaxptft.train.step import Step
from jaxptft.train.stop import StopFlag, Stopped

_IN_FLIGHT = 2  # dispatches under way before the metrics of an older one are read
_FREED = 0.003  # seconds in which XLA:CPU gives back what a dispatch worked with, after its results are there


@dataclass
class LoopState:
    """What the loop itself remembers between steps; JSON-able."""

    best: float | None = None
    best_step: int = -1
    evaluated_step: int = 0
    evaluations_without_gain: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    window: dict[str, list[float]] = field(default_factory=dict)  # metric -> [total, count] since the last log line
    finished: bool = False


class Stage(NamedTuple):
    """The compiled step that is taken from step number `begin` on; `facts`, JSON-able, are logged when it begins."""

    begin: int
    step: Step
    facts: Mapping[str, Any] = {}


class Best(NamedTuple):
    """What is kept of the best evaluation: enough to evaluate and export it."""

    params: Params
    objective_state: PyTree


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When things happen, in optimizer steps.

    `monitor` names the entry of `evaluate`'s result that decides which model is best; `higher_is_better` says how.
    `patience` ends the run after so many evaluations without a gain. `skipped_limit` ends it after so many steps in a
    row whose loss or gradient was not finite.
    """

    steps: int
    log_every: int = 10
    evaluate_every: int | None = None  # and always after the last step
    checkpoint_every: int | None = None  # and always after the last step
    monitor: str = "loss"
    higher_is_better: bool = False
    patience: int | None = None
    skipped_limit: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "evaluate_every", "checkpoint_every", "patience", "skipped_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")

    def due(self, every: int | None, step: int) -> bool:
        """Whether something that happens `every` so many steps, and at the end, happens after `step`."""
        return step == self.steps or (every is not None and step > 0 and step % every == 0)

    def next_stop(self, step: int) -> int:
        """The next step after this one at which the state is needed: for an evaluation, a checkpoint, or the end."""
        marks = ((step // every + 1) * every for every in (self.evaluate_every, self.checkpoint_every) if every)
        return min([self.steps, *marks])


def fit(
    step: Step | Sequence[Stage],
    state: State,
    constants: Any,
    batch_at: Callable[[int], Batch],
    *,
    schedule: Schedule,
    evaluate: Callable[[State], dict[str, float]],
    journal: Journal,
    checkpoints: CheckpointStore,
    best: CheckpointStore,
    loop: LoopState | None = None,
    meta: dict[str, Any] | None = None,
    learning_rate: Callable[[int], Any] | None = None,
    place: Callable[[Any], Any] = lambda batch: batch,
    together: int = 1,
    longest: float | None = None,
    ahead: int = 0,
    counts: Callable[[State], bool] | None = None,
    progress: Progress | None = None,
    stop: StopFlag | None = None,
) -> tuple[State, LoopState]:
    """Train from `state` to `schedule.steps`, or until patience runs out.

    Args:
        step: compiled, `(state, constants, batch) -> (state, metrics)`; or several, each taken from a step number on.
        batch_at: the batch of a step, a pure function of its number.
        evaluate: metrics of the model as it stands; must not change the state.
        journal: gets a line of training means every `log_every` steps, one for every evaluation, and one for every
            stage but the first.
        checkpoints: gets the whole state, `meta`, and the loop's own state.
        best: gets the parameters and objective state (as `Best`) of the best evaluation so far. It must keep all
            its steps (`keep=None`): those that no checkpoint names as the best are deleted here.
        loop: from the checkpoint, when resuming; `journal` must have been rewound to the same step.
        learning_rate: of an optimizer step, counted from 0; logged beside the means. Skipped steps move no schedule, so
            the count is of the others.
        place: puts a batch where the step wants it.
        together: how many steps are taken in one dispatch at most. Above 1 the steps must be of `several` (as
            `compile_step` makes them) and `place` gets a list of batches, for `shard_together`.
        longest: seconds that a dispatch of several steps may last: as few are taken as their pace demands, the first
            alone. Of several processes each would choose for itself, so there it must be None, for any time.
        ahead: how many dispatches' batches are read ahead of them, by a thread.
        counts: whether a state may be the best yet; before, evaluations are logged and decide nothing. The last does.

    Saving goes on in the background while steps are taken, and what goes wrong with it (OSError on a full disk) is
    raised at the next step. Where several processes run together, the first alone saves.

    Raises `Stopped`, after saving, when `stop` is set; FloatingPointError, after saving, when `skipped_limit` steps in
    a row were not finite; ValueError when `schedule.monitor` is not among the evaluation's metrics, or the stages are
    not in order from step 0.
    """
    stages = [Stage(0, step)] if callable(step) else list(step)
    begins = [stage.begin for stage in stages]
    if begins[:1] != [0] or begins != sorted(set(begins)):
        raise ValueError(f"stages begin at {begins}; expected rising steps, the first 0")
    stop = StopFlag() if stop is None else stop  # not `or`: a flag that is not set is false
    loop = loop or LoopState()
    now = int(state.step)
    pending: deque[tuple[Group, dict[str, Mean]]] = deque()

    def next_stop(step: int) -> int:
        return min([schedule.next_stop(step), *(begin for begin in begins if begin > step)])

    feed = Feed(batch_at, place, start=now, stops=next_stop, steps=schedule.steps, together=together, ahead=ahead)
    clock = _Clock(journal.path.with_name("speed.jsonl"), now, feed)
    # On CPU one that starts right behind another would hold its working memory beside that of the other.
    in_flight = 0 if jax.default_backend() == "cpu" else _IN_FLIGHT
    pace = _Pace(feed, together, longest)

    def absorb(keep: int) -> None:
        while len(pending) > keep:
            group, metrics = pending.popleft()
            columns = {
                name: (np.ravel(mean.total), np.ravel(mean.count)) for name, mean in jax.device_get(metrics).items()
            }
            for place_in_group, examples in enumerate(group.examples):
                values = {
                    name: (float(totals[place_in_group]), float(counts[place_in_group]))
                    for name, (totals, counts) in columns.items()
                }
                account(group.first + place_in_group + 1, examples, values)

    def account(number: int, examples: int, values: dict[str, tuple[float, float]]) -> None:
        _count(loop, values, schedule.skipped_limit)
        clock.examples += examples
        if progress is not None:
            progress.update(number, values["loss"][0], examples)
        if schedule.due(schedule.log_every, number):
            means = {name: total / count for name, (total, count) in sorted(loop.window.items()) if count}
            if learning_rate is not None:
                means["learning_rate"] = float(learning_rate(max(0, number - loop.skipped - 1)))
            journal.write(number, kind="train", **_finite(means))
            loop.window = {}
            clock.write(number)

    def write(store: CheckpointStore, tree: PyTree, about: dict[str, Any], then: Callable[[], None]) -> None:
        """In the background, once the tree is copied, since the next step reuses its memory."""
        stop.at(f"saving at step {now}")
        copied, step = copied_to_host(tree), now

        def job() -> None:
            store.save(step, copied, about)
            then()

        if is_first():
            background.give(job)

    def keep_named() -> None:
        # Only now may an earlier best go: a run that is killed goes back to a checkpoint, and to its best.
        with suppress(DamagedCheckpoint):
            best.keep_only({checkpoints.read_meta(step)["loop"]["best_step"] for step in checkpoints.steps()})

    def save() -> None:
        nonlocal saved
        pace.rest()
        absorb(0)
        if saved != (now, asdict(loop)):
            write(checkpoints, state, {**(meta or {}), "loop": asdict(loop)}, keep_named)
            saved = (now, asdict(loop))

    def judge() -> None:
        metrics = {name: float(value) for name, value in evaluate(state).items()}
        if schedule.monitor not in metrics:
            raise ValueError(f"monitor is {schedule.monitor!r}, which evaluation does not report: {sorted(metrics)}")
        finite = _finite(metrics)
        journal.write(now, kind="evaluation", **finite)
        value = metrics[schedule.monitor]
        loop.evaluated_step = now
        if counts is not None and now < schedule.steps and not counts(state):
            told(metrics)
            return
        if _better(value, loop.best, schedule.higher_is_better):
            loop.best, loop.best_step, loop.evaluations_without_gain = value, now, 0
            write(best, Best(state.params, state.objective_state), {"metrics": finite}, lambda: None)
        else:
            loop.evaluations_without_gain += 1
        told(metrics)

    def told(metrics: dict[str, float]) -> None:
        if progress is not None:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
            progress.note(f"{progress.name}: step {now}  {shown}" + ("  (best)" if loop.best_step == now else ""))

    saved = (now, asdict(loop)) if now in checkpoints.steps() else None
    if loop.evaluated_step != now:
        journal.forget(now, "evaluation")  # of a run that was killed after it, and before it was saved again
    if now in begins:
        journal.forget(now, "stage")  # which begins below
    with Background() as background, feed:
        while True:
            unjudged = schedule.due(schedule.evaluate_every, now) and loop.evaluated_step != now
            if unjudged:
                pace.rest()
                absorb(0)
            if loop.skipped_in_a_row >= schedule.skipped_limit:
                save()
                background.wait()
                raise FloatingPointError(
                    f"the loss or its gradient was not finite in {loop.skipped_in_a_row} steps in a row, up to step "
                    f"{now}; parameters are those of the last finite step; lower the learning rate or look at the data"
                )
            try:
                if unjudged:
                    stop.at(f"evaluating at step {now}")
                    judge()
            except Stopped:
                save()
                background.wait()
                raise
            impatient = schedule.patience is not None and loop.evaluations_without_gain >= schedule.patience
            loop.finished = now >= schedule.steps or impatient
            signum = stop.asked()
            if schedule.due(schedule.checkpoint_every, now) or loop.finished or signum is not None:
                save()
            if loop.finished:
                return state, loop
            if signum is not None:
                background.wait()
                raise Stopped(signum)
            background.check()
            stage = [stage for stage in stages if stage.begin <= now][-1]
            if stage.begin == now > 0:
                absorb(0)  # so that its line comes after those of this step, whether or not the run was interrupted
                journal.write(now, kind="stage", **stage.facts)
                if progress is not None:
                    shown = "  ".join(f"{name} {value}" for name, value in stage.facts.items())
                    progress.note(f"{progress.name}: step {now}, a new stage  {shown}")
            stop.at(f"reading the batch of step {now}")
            group = feed.next()
            stop.at(f"at step {now}")
            state, metrics = stage.step(state, constants, group.batch)
            now = group.end
            pending.append((group._replace(batch=None), metrics))
            if len(pending) > in_flight:
                steps = len(pending[0][0].examples)
                absorb(in_flight)
                seconds = pace.took(steps)
                if not in_flight:
                    time.sleep(min(_FREED, seconds / 200))


def _count(loop: LoopState, values: dict[str, tuple[float, float]], limit: int) -> None:
    if values["skipped"][0]:
        loop.skipped += 1
        loop.skipped_in_a_row += 1
        values = {"skipped": values["skipped"]}
    elif loop.skipped_in_a_row < limit:  # once reached it stays, whatever the steps in flight came to
        loop.skipped_in_a_row = 0
    for name, (total, count) in values.items():
        sums = loop.window.setdefault(name, [0.0, 0.0])
        sums[0] += total
        sums[1] += count


def _finite(means: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in means.items() if np.isfinite(value)}


def _better(value: float, best: float | None, higher_is_better: bool) -> bool:
    if not np.isfinite(value):
        return False
    return best is None or (value > best if higher_is_better else value < best)


class _Pace:
    """How many steps a dispatch may have to last no longer than `longest` seconds, by how long those before it took."""

    def __init__(self, feed: Feed, most: int, longest: float | None):
        self.feed, self.most, self.longest = feed, most, longest
        self.since: float | None = None
        if longest is not None:
            feed.limit = 1

    def rest(self) -> None:
        """What comes now is no step."""
        self.since = None

    def took(self, steps: int) -> float:
        """How many seconds (0: not known) a dispatch of so many steps took that has just ended, right after the one
        before it unless there was a rest."""
        now = time.perf_counter()
        seconds = 0.0 if self.since is None else now - self.since
        if self.since is not None and self.longest is not None:
            self.feed.limit = int(np.clip(self.longest * steps / max(seconds, 1e-9), 1, self.most))
        self.since = now
        return seconds


class _Clock:
    """Wall-clock seconds and examples between log lines, kept out of the journal, which repeats exactly.

    `waited` is the part of the seconds in which there was no batch to go on with.
    """

    def __init__(self, path: Path, step: int, feed: Feed):
        self.path, self.step, self.feed = path, step, feed
        self.examples, self.waited = 0, 0.0
        self.since = time.perf_counter()

    def write(self, step: int) -> None:
        now = time.perf_counter()
        seconds = now - self.since
        waited, self.waited = self.feed.waited - self.waited, self.feed.waited
        line = {
            "step": step,
            "seconds": round(seconds, 4),
            "waited": round(waited, 4),
            "examples": self.examples,
            "steps": step - self.step,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.step, self.examples, self.since = step, 0, now
