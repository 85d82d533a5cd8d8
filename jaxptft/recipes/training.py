"""One run's learning, whatever is learnt: state, step, loop, evaluation, checkpoints, and going on after a stop."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import jax

from jaxptft import data, optim, train
from jaxptft.objectives import Objective, Params
from jaxptft.recipes import device_mesh, run_folder, training_plan, training_state
from jaxptft.recipes.dials import Dials, Program, dials_of, turned
from jaxptft.recipes.pruning import Pruner
from jaxptft.recipes.training_settings import LearningSettings, total_steps

EVALUATION_ROWS = 64  # in a batch
_STUCK_AFTER = 1800.0  # seconds, where several processes may wait for each other
LAST = "pretraining/step"  # the monitor under which the last model is the best


class Batches(Protocol):
    """What batches of text and of images have in common."""

    steps_per_epoch: int

    @property
    def content(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def batch_at(self, step: int) -> dict[str, Any]: ...


class TextBatches(Batches, Protocol):
    """Those of text."""

    tokenized: data.Tokenized


class Training:
    """The parts that a recipe has chosen, and the loop over them.

    batches holds at least "train" and "eval". judge turns an evaluation of "eval" into further metrics; monitor names
    the one that decides which model is best. watch gives further numbers of a state, for the log. identity is what a
    resumed run must have in common with its beginning.

    trainable marks what may train at all (`adopt`); the config's plan says which of it does, from when on and how fast.
    objective is one, or a function that makes one for the trainable mask of a stage, so that what is frozen then runs
    without dropout; the state and constants of all stages are one. imported, where it is given, is what did not start
    afresh; a plan that would never train the rest is refused. prepare is called when the folder is the run's, before
    the first step. Leaves that match clip_apart are clipped by a norm of their own. A pruner changes the optimizer, and
    says from when on an evaluation may be the best.

    Where `program` is given, it is shared with other runs, and the steps take the dials of this one as arguments:
    objective_with makes the objective of a trainable mask with the dials that it is given.
    """

    def __init__(
        self,
        config: LearningSettings,
        *,
        name: str,
        say: Callable[[str], None],
        stop: train.StopFlag,
        mesh: Any,
        objective: Objective | Callable[[Any], Objective],
        params: Params,
        trainable: Any,
        rng: Any,
        batches: Mapping[str, Batches],
        judge: Callable[[train.Evaluation], dict[str, float]],
        monitor: str,
        higher_is_better: bool,
        identity: Mapping[str, str],
        imported: Params | None = None,
        watch: Callable[[train.State], dict[str, float]] | None = None,
        prepare: Callable[[], None] = lambda: None,
        clip_apart: Sequence[str] = (),
        pruner: Pruner | None = None,
        program: Program | None = None,
        objective_with: Callable[[Any, Dials], Objective] | None = None,
    ):
        self.config, self.name, self.say, self.stop, self.mesh = config, name, say, stop, mesh
        self.batches, self._judge, self._watch, self._prepare = batches, judge, watch, prepare
        per_epoch = batches["train"].steps_per_epoch
        steps = total_steps(config, per_epoch)
        self._program, self._objective_with = program, objective_with
        self.judged: Callable[[int, dict[str, float]], None] = lambda step, metrics: None  # told of every evaluation
        self.plan = training_plan.settle(
            config, params, trainable, multipliers=config.optimizer.multipliers, steps=steps, imported=imported
        )
        if imported is not None:
            training_plan.refuse_fresh(self.plan, imported)
        self._clip_apart, self._pruner = clip_apart, pruner
        self.learning_rate, self.optimizer = self._make_optimizer(config, steps)
        self._objectives = _by_stage(objective, self.plan, steps)
        self.objective = self._objectives[0]
        if self.objective.coupled and config.accumulate > 1:
            raise ValueError(
                f"accumulate is {config.accumulate}, but the objective compares the rows of a whole batch with each "
                "other; leave it out"
            )
        constants = self.objective.constants
        evaluate_every = config.evaluate_every or min(per_epoch, steps)
        self.schedule = train.Schedule(
            steps=steps,
            log_every=config.log_every,
            evaluate_every=evaluate_every,
            checkpoint_every=config.checkpoint_every or evaluate_every,
            monitor=monitor,
            higher_is_better=higher_is_better,
            patience=config.patience,
        )
        self._evaluator = self._part("evaluator", lambda: train.make_evaluator(self.objective))
        self._place = lambda batch: train.shard(batch, mesh)
        self._constants = train.spread(constants, mesh)
        folder = config.out / "checkpoints"
        self._checkpoints = train.CheckpointStore(folder, keep=config.keep_checkpoints)
        self._best = train.CheckpointStore(folder / "best", keep=None)
        self.journal = train.Journal(config.out / "metrics.jsonl")
        # In this order: the first that differs is named, and another tokenizer makes other data.
        spoken = {"train": "training_data", "eval": "evaluation_data", "test": "test_data"}
        self._identity = {
            **{name: identity[name] for name in identity if name != "initial_model"},
            **{spoken[split]: part.content for split, part in batches.items()},
            "batches": batches["train"].fingerprint,
            "initial_model": identity["initial_model"],
            "constants": train.fingerprint(constants),
            "plan": self.plan.fingerprint,
        }
        self.parameter_count = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.trainable_count = training_plan.count_trainable(params, self.plan.mask(steps - 1))
        first = batches["train"].batch_at(0)
        self._together, self._longest = self._part("together", lambda: device_mesh.steps_together(config, first))
        if program is not None and program.beside is not None:
            self._longest = None  # runs that meet must go on by as many steps
        self.state = training_state.first_state(
            self.objective, self.optimizer, params, first, trainable=self.plan.ever, rng=rng, mesh=mesh
        )
        for begin in set(self.plan.stages) - set(self._objectives):
            pieces = ", ".join(training_plan.unfrozen_at(self.plan, begin))
            say(f"note: {pieces} would be unfrozen at step {begin}, and the run ends at {steps}")

    def evaluate(self, state: train.State, split: str) -> train.Evaluation:
        """Every row of a split, once."""
        batches = self.batches[split]
        return train.evaluate(
            self._evaluator,
            state.params,
            state.objective_state,
            self._constants,
            (batches.batch_at(step) for step in range(batches.steps_per_epoch)),
            place=self._place,
            stop=self.stop,
        )

    def facts(self, loop: train.LoopState) -> dict[str, Any]:
        """How far the run came, and how much of the model it trained: for report.json."""
        return {
            "best_step": loop.best_step,
            "steps": int(self.state.step),
            "skipped_steps": loop.skipped,
            "parameters": self.parameter_count,
            "trainable_parameters": self.trainable_count,
        }

    def run(self) -> train.LoopState:
        """From the start, or from the newest good checkpoint when resuming, to the end."""
        loop = train.LoopState()
        for store in (self._checkpoints, self._best):
            store.clean()  # first, since it completes a save that was killed in the middle of a replacement
        if train.value_from_first(self.config.resume and bool(self._checkpoints.steps())):
            loop = self._restore()
        self._prepare()
        for lines in (self.journal, train.Journal(self.config.out / "speed.jsonl")):
            lines.rewind(int(self.state.step))
        if jax.process_count() > 1:
            self.stop.agree(train.Agreement(train.Bulletin()))

        def judged(state: train.State) -> dict[str, float]:
            evaluation = self.evaluate(state, "eval")
            found = evaluation.metrics | self._judge(evaluation)
            found = found if self._watch is None else found | self._watch(state)
            self.judged(int(state.step), found)
            return found

        with ExitStack() as around:
            alone = self._program is None or self._program.beside is None  # a terminal has room for one
            progress = train.Progress(self.name, self.schedule.steps) if train.is_first() and alone else None
            if progress is not None:
                around.enter_context(progress)
            limit = self.config.stuck_after or (_STUCK_AFTER if jax.process_count() > 1 else None)
            if limit is not None:
                around.enter_context(train.Watchdog(self.stop, limit=limit))
            self.state, loop = train.fit(
                self._stages(),
                self.state,
                self._constants if self._program is None else self._own_constants(),
                self._read_for(self.batches["train"]).batch_at,
                schedule=self.schedule,
                evaluate=judged,
                journal=self.journal,
                checkpoints=self._checkpoints,
                best=self._best,
                loop=loop,
                meta={
                    "config": self.config.model_dump(mode="json"),
                    "identity": self._identity,
                    "environment": self._environment(),
                    "steps": self.schedule.steps,
                },
                learning_rate=self.learning_rate,
                place=self._place_of_steps(),
                counts=partial(self._pruner.is_done, steps=self.schedule.steps) if self._pruner is not None else None,
                together=self._together,
                longest=self._longest,
                ahead=self.config.read_ahead,
                progress=progress,
                stop=self.stop,
            )
        return loop

    def release(self) -> None:
        """Let go of the state: a run that others share a program with may be held on to for long."""
        del self.state

    def refuse_shorter(self) -> None:
        """ValueError where the run that is resumed has done more steps than are asked for; nothing is touched."""
        done = self._checkpoints.steps()[-1:] if self.config.resume else []
        if done and done[0] > self.schedule.steps:
            raise ValueError(
                f"{self.config.out} has done {done[0]} steps already, and {self.schedule.steps} are asked for; ask more"
            )

    @property
    def charted(self) -> str:
        """The metric that is drawn beside the loss."""
        return "pretraining/loss" if self.schedule.monitor == LAST else self.schedule.monitor

    def best_state(self, loop: train.LoopState) -> train.State:
        """The state of the best evaluation; FloatingPointError where none was finite."""
        if loop.best is None:
            raise FloatingPointError(f"no evaluation gave a finite {self.schedule.monitor}; there is no best model")
        like = train.Best(self.state.params, self.state.objective_state)
        best, _ = train.restore(self._best, like, step=loop.best_step)
        params = self.objective.finish(best.params, best.objective_state)
        return self.state._replace(params=params, objective_state=best.objective_state)

    def _restore(self) -> train.LoopState:
        out = self.config.out
        if train.is_first():
            # Before the arrays: another model would differ in their shapes, and say less.
            with suppress(train.DamagedCheckpoint):  # which restoring passes over
                meta = self._checkpoints.read_meta(self._checkpoints.steps()[-1])
                run_folder.check_same(meta["identity"], self._identity, out)
        newest = train.newest_whole(self._checkpoints, self._best) if train.is_first() else None
        step, best_is_good = train.value_from_first(newest)
        self.state, meta = train.restore(self._checkpoints, self.state, step=step)
        run_folder.check_same(meta["identity"], self._identity, out)
        self._checkpoints.retire(step)
        for name, value in self._environment().items():
            if name in meta["environment"] and meta["environment"][name] != value:
                self.say(
                    f"note: {name} was {meta['environment'][name]} when the checkpoint was written and is {value} "
                    "now; results may differ in the last bits"
                )
        planned = meta.get("steps", self.schedule.steps)
        if planned != self.schedule.steps:
            self.say(
                f"note: {out} was planned for {planned} steps and goes on to {self.schedule.steps}; from here on its "
                "learning rate is that of the new length"
            )
        self.say(f"resuming {out} at step {step}")
        loop = train.LoopState(**meta["loop"])
        return loop if best_is_good else self._without_best(loop, step)

    def _without_best(self, loop: train.LoopState, step: int) -> train.LoopState:
        """The best model is damaged: if it is this step's it is saved again, else the next evaluation finds one."""
        if loop.best_step != step:
            self.say(f"note: the best model, of step {loop.best_step}, is damaged; the best is chosen anew")
            return replace(loop, best=None, best_step=-1, evaluated_step=-1)
        copied = train.copied_to_host(train.Best(self.state.params, self.state.objective_state))
        if train.is_first():
            self._best.save(step, copied, {})
        return loop

    def _read_for(self, batches: Batches) -> Batches:
        """Of several processes, each reads the images of its own rows; texts are read whole, since they are small."""
        if jax.process_count() == 1 or not isinstance(batches, data.ImageBatches):
            return batches
        return batches.only(train.own_rows(batches.rows_per_batch, self.mesh))

    def _place_of_steps(self) -> Callable[[Any], Any]:
        most = self._together
        if self.config.parallel == "pmap":
            return lambda batch: batch
        return self._place if most == 1 else lambda batches: train.shard_together(batches, self.mesh, most)

    def _environment(self) -> dict[str, Any]:
        mesh = {"data": self.mesh.shape["data"], "fsdp": self.mesh.shape["fsdp"]}
        return run_folder.environment() | {
            "mesh": mesh,
            "processes": jax.process_count(),
            "steps_per_dispatch": self._together,
            "features_kept": isinstance(self.batches["train"], data.KeptBatches),
            "scan_layers": self.config.scan_layers,
            "remat": self.config.remat,
        }

    def _stages(self) -> list[train.Stage]:
        stages = []
        for begin, objective in self._objectives.items():
            mask = self.plan.stages[begin]
            facts = {
                "unfrozen": training_plan.unfrozen_at(self.plan, begin),
                "trainable_parameters": training_plan.count_trainable(self.state.params, mask),
            }
            compiled = self._part(("step", begin), partial(self._compiled, objective, mask))
            stages.append(train.Stage(begin, compiled, facts))
        return stages

    def _compiled(self, objective: Objective, mask: Any) -> Any:
        def make(axis_name: str | None) -> Any:
            taken: dict[str, Any] = {"trainable": mask, "accumulate": self.config.accumulate, "axis_name": axis_name}
            if self._program is None:
                return train.make_step(objective, self.optimizer, **taken)
            assert self._objective_with is not None
            with_dials = self._objective_with

            def step_with_dials(state: train.State, constants: Any, batch: Any) -> Any:
                dials, shared = constants
                _, optimizer = self._make_optimizer(turned(self.config, dials), self.schedule.steps)
                return train.make_step(with_dials(mask, dials), optimizer, **taken)(state, shared, batch)

            return step_with_dials

        if self.config.parallel == "pmap":
            return train.pmap_step(make(axis_name="data"), axis_name="data", devices=list(self.mesh.devices.flat))
        beside = None if self._program is None else self._program.beside
        return (train.compile_step if beside is None else beside.step)(make, self.mesh, together=self._together)

    def _own_constants(self) -> Any:
        """What a step of a program that is shared takes: the dials of this run, and the constants."""
        return train.replicate(dials_of(self.config), self.mesh), self._constants

    def _make_optimizer(self, config: LearningSettings, steps: int) -> tuple[Any, Any]:
        """The learning rate by step, and the optimizer."""
        o = config.optimizer
        rate = optim.schedule(o.schedule, peak=config.learning_rate, steps=steps, warmup=o.warmup, cycles=o.cycles)
        chosen: dict[str, Any] = {"weight_decay": o.weight_decay, "clip_norm": o.clip_norm, "b1": o.b1, "b2": o.b2}
        made = optim.plan_adamw(rate, self.plan, **chosen, eps=o.eps, clip_apart=self._clip_apart)
        return rate, made if self._pruner is None else self._pruner.optimizer(made, steps)

    def _part(self, name: Any, make: Callable[[], Any]) -> Any:
        """A part of the program, which other runs may have made."""
        return make() if self._program is None else self._program.part(name, make)


def _by_stage(
    objective: Objective | Callable[[Any], Objective], plan: optim.Timetable, steps: int
) -> dict[int, Objective]:
    """The objective of each stage that the run comes to, by the step at which it begins."""
    masks = {begin: mask for begin, mask in plan.stages.items() if begin < steps}
    if isinstance(objective, Objective):
        return dict.fromkeys(masks, objective)
    found = {begin: objective(mask) for begin, mask in masks.items()}
    shapes = {begin: jax.tree.map(jax.numpy.shape, own.constants) for begin, own in found.items()}
    if differing := [begin for begin in shapes if shapes[begin] != shapes[0]]:
        raise ValueError(f"the objective of the stage from step {differing[0]} has other constants than the first's")
    return found


def frozen_depth(trainable: Any, config: Any) -> int | None:
    """`optim.frozen_prefix` in the model's own layers, which may share their parameters.

    A shared group of layers is frozen whole or not at all, and layers that share can only be frozen together with all
    those below them; so all of the backbone counts, or the embeddings alone.
    """
    depth = optim.frozen_prefix(trainable)
    if depth is None or getattr(config, "layer_groups", None) is None:
        return depth
    groups = config.layer_groups
    return config.layers + 1 if depth > groups else config.layers if depth == groups else 0


def last(state: train.State) -> dict[str, float]:
    """What makes every later model the better one, as LAST."""
    return {LAST: float(state.step)}
