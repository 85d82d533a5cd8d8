"""The loop on a linear model: what it decides, what it logs, and that no interruption changes either."""

import contextlib
import errno
import json
import os
import threading
import time
from dataclasses import asdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxptft import objectives, optim, train
from jaxptft.objectives import Mean

STEPS = 12
RATE = optim.schedule("linear", peak=0.1, steps=STEPS, warmup=3)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


class MemoryStore:
    """A CheckpointStore without the disk, so that every interruption of every schedule can be tried."""

    def __init__(self):
        self.saved, self.saves = {}, 0

    def steps(self):
        return sorted(self.saved)

    def save(self, step, tree, meta):
        keys = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf  # noqa: E731
        self.saves += 1
        self.saved[step] = (jax.tree.map(lambda leaf: np.array(keys(leaf)), tree), json.dumps(meta))

    def read_meta(self, step):
        return json.loads(self.saved[step][1])

    def keep_only(self, steps):
        self.saved = {step: entry for step, entry in self.saved.items() if step in steps}

    def restore(self, like, *, step=None):
        step = max(self.saved) if step is None else step
        tree, meta = self.saved[step]
        place = lambda leaf, old: jax.random.wrap_key_data(leaf) if old.dtype != leaf.dtype else jnp.array(leaf)  # noqa: E731
        return step, jax.tree.map(place, tree, like), json.loads(meta)


def batch_at(step):
    """Eight rows of which 1 to 8 count, so that a mean of per-step means is not the mean over all rows."""
    rng = np.random.default_rng(step)
    x = rng.standard_normal((8, 3)).astype(np.float32)
    return {"x": x, "y": x.sum(1) + 1, "valid": np.arange(8) < rng.integers(1, 9), "ids": np.arange(8, dtype=np.int32)}


def with_nans_at(*bad):
    def poisoned(step):
        batch = batch_at(step)
        return batch | {"x": batch["x"] * np.float32(np.nan)} if step in bad else batch

    return poisoned


@pytest.fixture(scope="module")
def linear():
    """A compiled step (state donated), and what makes a first state of it."""

    def loss(params, batch, context):
        error = batch["x"] @ params["w"] + params["b"] - batch["y"]
        noise = jax.random.normal(context.rng, ()) * 0.01  # so that a key that is lost or reused shows
        counted = batch["valid"].sum()
        terms = {"fit": Mean((batch["valid"] * (error + noise) ** 2).sum(), counted)}
        return terms, {"fit/error": Mean((batch["valid"] * jnp.abs(error)).sum(), counted)}

    objective = objectives.lift(loss, init=lambda rng, batch: {"w": jnp.zeros(3), "b": jnp.zeros(())})
    optimizer = optim.adamw(RATE)
    trainable = {"w": True, "b": True}
    params = objective.init(None, None)
    mesh = train.make_mesh(jax.devices()[:1])
    step = train.make_step(objective, optimizer, trainable=trainable)

    def first():
        rng = jax.random.key(0)
        return train.create_state(objective, optimizer, params, batch_at(0), trainable=trainable, rng=rng)

    return SimpleNamespace(step=train.jit_step(step, mesh), first=first, mesh=mesh, plain=step, dispatch={})


@pytest.fixture(scope="module")
def grouped(linear):
    """The same, four steps a dispatch, their batches read ahead."""
    step = train.jit_step(linear.plain, linear.mesh, together=4)
    place = lambda batches: train.shard_together(batches, linear.mesh, 4)  # noqa: E731
    return SimpleNamespace(step=step, first=linear.first, dispatch={"place": place, "together": 4, "ahead": 2})


def mean_loss(state):
    """The squared error over 32 fixed rows, in numpy."""
    x = np.random.default_rng(99).standard_normal((32, 3)).astype(np.float32)
    return {"loss": float(np.mean((x @ np.asarray(state.params["w"]) + float(state.params["b"]) - x.sum(1) - 1) ** 2))}


class Run:
    """One run folder; `go` starts or continues it as a recipe does."""

    def __init__(self, linear, folder, *, store=None, **schedule):
        self.linear, self.journal = linear, train.Journal(folder / "metrics.jsonl")
        self.checkpoints = store() if store else train.CheckpointStore(folder / "checkpoints", keep=2)
        self.best = store() if store else train.CheckpointStore(folder / "checkpoints" / "best", keep=None)
        self.schedule = train.Schedule(**{"steps": STEPS, **schedule})
        self.state, self.loop = None, None

    def go(self, *, batch_at=batch_at, evaluate=mean_loss, stop=None, step=None, learning_rate=RATE, progress=None):
        state, loop = self.linear.first(), train.LoopState()
        if self.checkpoints.steps():
            _, state, meta = self.checkpoints.restore(state)
            loop = train.LoopState(**meta["loop"])
        self.journal.rewind(int(state.step))
        self.state, self.loop = train.fit(
            step or self.linear.step,
            state,
            None,
            batch_at,
            schedule=self.schedule,
            evaluate=evaluate,
            journal=self.journal,
            checkpoints=self.checkpoints,
            best=self.best,
            loop=loop,
            meta={"note": "kept"},
            learning_rate=learning_rate,
            progress=progress,
            stop=stop,
            **getattr(self.linear, "dispatch", {}),
        )
        return self

    def outcome(self):
        """Everything that has to be equal, bit for bit."""
        like = train.Best(self.state.params, self.state.objective_state)
        _, best, meta = self.best.restore(like, step=self.loop.best_step)
        tree = (self.state._replace(rng=jax.random.key_data(self.state.rng)), best)
        leaves = [(str(path), np.asarray(leaf).tobytes()) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
        return leaves, asdict(self.loop), meta, self.journal.path.read_bytes()

    def lines(self, kind):
        return [entry for entry in self.journal.read() if entry["kind"] == kind]


def stopping_at(step, flag, inner=batch_at):
    def at(now):
        if now == step:
            flag.request()
        return inner(now)

    return at


def raising_at(step, inner=batch_at):
    def at(now):
        if now == step:
            raise Killed
        return inner(now)

    return at


SCHEDULES = [
    {"log_every": 3, "evaluate_every": 4, "checkpoint_every": 5},
    {"log_every": 5, "evaluate_every": 3, "checkpoint_every": 2},
    {"log_every": 7, "evaluate_every": 5, "checkpoint_every": None},
    {"log_every": 1, "evaluate_every": 1, "checkpoint_every": 1},
    {"log_every": 4, "evaluate_every": None, "checkpoint_every": 3},
    {"log_every": 2, "evaluate_every": 2, "checkpoint_every": 6, "patience": 1},
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_stop_or_a_kill_at_any_step_changes_no_bit(linear, tmp_path, schedule):
    poisoned = with_nans_at(2, 7)
    whole = Run(linear, tmp_path / "whole", store=MemoryStore, **schedule).go(batch_at=poisoned)
    end = int(whole.state.step)
    assert whole.outcome()[1]["finished"]
    for k in range(end):
        flag = train.StopFlag()
        run = Run(linear, tmp_path / f"stopped{k}", store=MemoryStore, **schedule)
        if k + 1 < end:  # at the last step the run is done, and returns
            with pytest.raises(train.Stopped):
                run.go(batch_at=stopping_at(k, flag, poisoned), stop=flag)
            assert run.checkpoints.steps()[-1] == k + 1
        assert run.go(batch_at=poisoned).outcome() == whole.outcome(), f"stopped at {k}"

        run = Run(linear, tmp_path / f"killed{k}", store=MemoryStore, **schedule)
        with pytest.raises(Killed):
            run.go(batch_at=raising_at(k, poisoned))
        assert run.go(batch_at=poisoned).outcome() == whole.outcome(), f"killed at {k}"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nor_does_it_where_several_steps_are_one_dispatch(linear, grouped, tmp_path, schedule):
    """However a group was cut short, and where the shape of batches changes."""

    def varied(step):
        batch = with_nans_at(2, 7)(step)
        return {name: np.concatenate([leaf, leaf]) for name, leaf in batch.items()} if step in (5, 6) else batch

    whole = Run(grouped, tmp_path / "whole", store=MemoryStore, **schedule).go(batch_at=varied)
    end = int(whole.state.step)
    for k in range(end):
        run, flag = Run(grouped, tmp_path / f"stopped{k}", store=MemoryStore, **schedule), train.StopFlag()
        with contextlib.suppress(train.Stopped):  # in the last group there is nothing to stop for
            run.go(batch_at=stopping_at(k, flag, varied), stop=flag)
            assert int(run.state.step) == end
        assert run.go(batch_at=varied).outcome() == whole.outcome(), f"stopped at {k}"

        run = Run(grouped, tmp_path / f"killed{k}", store=MemoryStore, **schedule)
        with pytest.raises(Killed):
            run.go(batch_at=raising_at(k, varied))
        assert run.go(batch_at=varied).outcome() == whole.outcome(), f"killed at {k}"

    one = Run(linear, tmp_path / "one", store=MemoryStore, **schedule).go(batch_at=varied)
    for (name, together), (_, alone) in zip(whole.outcome()[0], one.outcome()[0], strict=True):
        if "step" not in name and "rng" not in name and "count" not in name:
            np.testing.assert_allclose(np.frombuffer(together, "f4"), np.frombuffer(alone, "f4"), rtol=1e-5, atol=1e-6)
    for together, alone in zip(whole.lines("train"), one.lines("train"), strict=True):
        assert together.pop("kind") == alone.pop("kind")
        assert together == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(("longest", "most"), [(1e-9, 1), (1e9, 4)])
def test_a_dispatch_has_as_many_steps_as_its_time_allows(linear, grouped, tmp_path, longest, most):
    """And it changes no bit."""
    found = []

    def placed(batches):
        found.append(len(batches))
        return grouped.dispatch["place"](batches)

    timed = SimpleNamespace(**vars(grouped) | {"dispatch": {"place": placed, "together": 4, "longest": longest}})
    whole = Run(grouped, tmp_path / "whole", store=MemoryStore, steps=40).go()
    assert Run(timed, tmp_path / "timed", store=MemoryStore, steps=40).go().outcome() == whole.outcome()
    assert (found[0], max(found)) == (1, most)
    assert sum(found) == 40


def test_stopped_and_killed_again_and_again_on_disk(linear, tmp_path):
    schedule = {"log_every": 3, "evaluate_every": 4, "checkpoint_every": 5}
    whole = Run(linear, tmp_path / "whole", **schedule).go()
    run = Run(linear, tmp_path / "run", **schedule)
    for k in (1, 2, 4, 5, 8, 10):
        flag = train.StopFlag()
        with pytest.raises(train.Stopped):
            run.go(batch_at=stopping_at(k, flag), stop=flag)
    with pytest.raises(Killed):
        run.go(batch_at=raising_at(11))
    assert run.go().outcome() == whole.outcome()


def test_a_stop_before_the_first_step_saves_the_first_state(linear, tmp_path):
    flag = train.StopFlag()
    flag.request()
    run = Run(linear, tmp_path, store=MemoryStore)
    with pytest.raises(train.Stopped):
        run.go(stop=flag)
    assert run.checkpoints.steps() == [0]
    assert int(run.go().state.step) == STEPS


@pytest.mark.parametrize("at", [4, 8, 12])
@pytest.mark.parametrize("then_killed", [False, True])
def test_a_stop_while_evaluating_changes_no_bit(linear, tmp_path, at, then_killed):
    """Killed later, before the next save, the evaluation at the stop's step must not be logged twice."""
    schedule = {"log_every": 3, "evaluate_every": 4, "checkpoint_every": 50}
    whole = Run(linear, tmp_path / "whole", store=MemoryStore, **schedule).go()
    run = Run(linear, tmp_path / "run", store=MemoryStore, **schedule)
    flag = train.StopFlag()

    def interrupted(state):
        if int(state.step) == at:
            flag.request()
            flag.raise_if_set()  # as train.evaluate does between batches
        return mean_loss(state)

    with pytest.raises(train.Stopped):
        run.go(evaluate=interrupted, stop=flag)
    assert run.checkpoints.steps() == [at]
    if then_killed and at < STEPS:
        with pytest.raises(Killed):
            run.go(batch_at=raising_at(at + 1))
    assert run.go().outcome() == whole.outcome()


@pytest.mark.parametrize("store", ["best", "checkpoints"])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_around_a_save_changes_no_bit(linear, tmp_path, store, after):
    schedule = {"log_every": 3, "evaluate_every": 2, "checkpoint_every": 4}
    whole = Run(linear, tmp_path / "whole", store=MemoryStore, **schedule).go()
    for count in range(getattr(whole, store).saves):
        run = Run(linear, tmp_path / f"run{count}", store=MemoryStore, **schedule)
        target, seen = getattr(run, store), []
        save = target.save

        def killing(*args, save=save, seen=seen, count=count):
            seen.append(args[0])
            if after:
                save(*args)
            if len(seen) == count + 1:
                raise Killed
            if not after:
                save(*args)

        target.save = killing
        with pytest.raises(Killed):
            run.go()
        target.save = save
        assert run.go().outcome() == whole.outcome()


def test_the_journal_holds_the_means_over_all_rows_of_its_window(linear, tmp_path):
    """Recomputed in numpy from the parameters before each step; step 5 is not finite and counts only as skipped."""
    before = []

    def watched(state, constants, batch):
        before.append(jax.tree.map(np.array, state.params))
        return linear.step(state, constants, batch)

    run = Run(linear, tmp_path, store=MemoryStore, log_every=5).go(step=watched, batch_at=with_nans_at(4))
    error, count, losses = np.zeros(STEPS), np.zeros(STEPS), np.zeros(STEPS)
    for k in range(STEPS):
        batch, params = batch_at(k), before[k]
        difference = batch["valid"] * (batch["x"] @ params["w"] + params["b"] - batch["y"])
        noise = 0.01 * float(jax.random.normal(jax.random.fold_in(jax.random.key(0), k), ()))
        error[k], count[k] = np.abs(difference).sum(), batch["valid"].sum()
        losses[k] = (batch["valid"] * (difference + noise) ** 2).sum() / count[k]
    error[4] = count[4] = 0
    lines = run.lines("train")
    assert [line["step"] for line in lines] == [5, 10, 12]
    for line, (start, end) in zip(lines, [(0, 5), (5, 10), (10, 12)], strict=True):
        np.testing.assert_allclose(line["fit/error"], error[start:end].sum() / count[start:end].sum(), rtol=1e-5)
        finite = [k for k in range(start, end) if k != 4]
        np.testing.assert_allclose(line["loss"], losses[finite].mean(), rtol=1e-4)
        assert line["skipped"] == ([k for k in range(start, end) if k not in finite] == [4]) / (end - start)
    window = error[:5].sum() / count[:5].sum()
    naive = np.mean([error[k] / count[k] for k in range(4)])
    assert abs(window - naive) > 1e-3  # the rows do tell the two means apart
    evaluations = run.lines("evaluation")
    assert evaluations == [{"step": STEPS, "kind": "evaluation", **mean_loss(run.state)}]


def test_the_learning_rate_that_is_logged_is_the_one_that_was_used(linear, tmp_path):
    """Plain descent on loss = w: each step moves w by the rate; a skipped step moves neither w nor the schedule."""

    def loss(params, batch, context):
        return {"w": Mean(params["w"] * batch["x"].sum(), 1)}

    objective = objectives.lift(loss, init=lambda rng, batch: {"w": jnp.zeros(())})
    optimizer = optax.sgd(RATE)
    state = train.create_state(objective, optimizer, {"w": 0.0}, {}, trainable={"w": True}, rng=jax.random.key(0))
    compiled, w = jax.jit(train.make_step(objective, optimizer, trainable={"w": True})), [0.0]

    def watched(*args):
        after, metrics = compiled(*args)
        w.append(float(after.params["w"]))
        return after, metrics

    def ones_but(step):
        return {"x": np.array([np.nan if step in (3, 4) else 1.0], np.float32), "valid": np.ones(1, bool)}

    tools = SimpleNamespace(first=lambda: state, step=watched)
    run = Run(tools, tmp_path, store=MemoryStore, log_every=1).go(batch_at=ones_but, evaluate=lambda state: {"loss": 0})
    logged = np.array([line["learning_rate"] for line in run.lines("train")])
    used = -np.diff(w)
    finite = np.array([step not in (3, 4) for step in range(STEPS)])
    np.testing.assert_allclose(logged[finite], used[finite], atol=1e-6)
    assert (used[~finite] == 0).all()


def scripted(values):
    """An evaluation that reports these values of `score`, one after the other, by step."""
    return lambda state: {"score": values[int(state.step) - 1], "loss": 0.0}


@pytest.mark.parametrize(
    ("values", "higher", "best_step", "best"),
    [
        ([0.5, 0.7, 0.7, 0.6], True, 2, 0.7),  # a tie keeps the first
        ([0.5, 0.2, 0.2, 0.3], False, 2, 0.2),
        ([np.nan, 0.1, np.nan, 0.0], True, 2, 0.1),  # not a number is never best, not even the first
        ([np.inf, 3.0, np.inf, 2.0], True, 2, 3.0),
        ([-np.inf, 3.0, 4.0, np.nan], False, 2, 3.0),
        ([np.nan] * 4, True, -1, None),
    ],
)
def test_which_model_is_best(linear, tmp_path, values, higher, best_step, best):
    seen = {}

    def evaluate(state):
        seen[int(state.step)] = np.array(state.params["w"])
        return scripted(values)(state)

    schedule = {"steps": 4, "evaluate_every": 1, "monitor": "score", "higher_is_better": higher}
    run = Run(linear, tmp_path, **schedule).go(evaluate=evaluate)
    assert (run.loop.best_step, run.loop.best) == (best_step, best)
    assert run.best.steps() == ([best_step] if best is not None else [])
    if best is not None:
        _, kept, meta = run.best.restore(train.Best(run.state.params, run.state.objective_state))
        np.testing.assert_array_equal(kept.params["w"], seen[best_step])
        assert meta["metrics"]["score"] == best
    logged = [line.get("score") for line in run.lines("evaluation")]
    assert logged == [value if np.isfinite(value) else None for value in values]


@pytest.mark.parametrize(
    ("patience", "last"),
    [(1, 3), (2, 7), (3, 8)],  # by hand: gains at 1, 2, 4 and 5, none at 3, 6, 7 and 8
)
def test_patience_ends_the_run_after_so_many_evaluations_without_a_gain(linear, tmp_path, patience, last):
    values = [9.0, 8.0, 8.0, 7.0, 6.0, 6.5, np.nan, 6.0] + [1.0] * 4
    schedule = {"evaluate_every": 1, "monitor": "score", "patience": patience}
    run = Run(linear, tmp_path, store=MemoryStore, **schedule).go(evaluate=scripted(values))
    assert int(run.state.step) == last
    assert run.loop.finished
    assert run.checkpoints.steps()[-1] == last


@pytest.mark.parametrize("schedule", [{}, {"evaluate_every": 1, "patience": 1, "higher_is_better": True}])
def test_a_finished_run_called_again_does_nothing(linear, tmp_path, schedule):
    run = Run(linear, tmp_path, store=MemoryStore, **schedule).go()
    before, saved = run.outcome(), dict(run.checkpoints.saved)

    def never(*_):
        raise AssertionError

    again = run.go(batch_at=never, evaluate=never, step=never)
    assert again.outcome() == before
    assert all(again.checkpoints.saved[step] is saved[step] for step in saved)


def test_steps_that_are_not_finite_are_skipped_and_counted(linear, tmp_path):
    run = Run(linear, tmp_path, store=MemoryStore, log_every=4).go(batch_at=with_nans_at(1, 5, 6))
    assert (run.loop.skipped, run.loop.skipped_in_a_row) == (3, 0)
    assert [line["skipped"] for line in run.lines("train")] == [0.25, 0.5, 0.0]
    assert np.isfinite(np.asarray(run.state.params["w"])).all()
    only_skipped = Run(linear, tmp_path / "b", store=MemoryStore, log_every=2).go(batch_at=with_nans_at(2, 3))
    assert only_skipped.lines("train")[1].keys() == {"step", "kind", "skipped", "learning_rate"}


@pytest.mark.parametrize("bad", [(3, 4, 5), tuple(range(3, 12)), (9, 10, 11)])
@pytest.mark.parametrize("stopped_at", [None, 2, 4, 5, 10, 11])
def test_too_many_skipped_steps_in_a_row_end_the_run_with_a_saved_state(linear, tmp_path, bad, stopped_at):
    """Also when finite steps were already in flight, at the very end of the run, and across a stop."""
    run = Run(linear, tmp_path, store=MemoryStore, skipped_limit=3, evaluate_every=50)
    if stopped_at is not None and stopped_at <= bad[2]:
        flag = train.StopFlag()
        with pytest.raises((train.Stopped, FloatingPointError)):
            run.go(batch_at=stopping_at(stopped_at, flag, with_nans_at(*bad)), stop=flag)
    for _ in range(2):  # and again when it is resumed
        with pytest.raises(FloatingPointError, match=r"not finite in [3-9] steps in a row, up to step \d+; parameters"):
            run.go(batch_at=with_nans_at(*bad))
    last, state, meta = run.checkpoints.restore(linear.first())
    assert last > bad[2]
    assert meta["loop"]["skipped_in_a_row"] >= 3
    assert np.isfinite(np.asarray(state.params["w"])).all()


def test_fewer_than_the_limit_in_a_row_do_not_end_the_run(linear, tmp_path):
    run = Run(linear, tmp_path, store=MemoryStore, skipped_limit=3).go(batch_at=with_nans_at(1, 2, 4, 5, 7, 8, 10, 11))
    assert int(run.state.step) == STEPS
    assert run.loop.skipped == 8


def test_a_metric_that_is_not_finite_is_left_out_of_the_journal(linear, tmp_path):
    def step(state, constants, batch):
        state, metrics = linear.step(state, constants, batch)
        return state, metrics | {
            "odd": Mean(jnp.array(jnp.inf), jnp.ones(())),
            "none": Mean(jnp.zeros(()), jnp.zeros(())),
        }

    run = Run(linear, tmp_path, store=MemoryStore).go(step=step)
    for line in run.lines("train"):
        assert "loss" in line
        assert not {"odd", "none"} & line.keys()


def test_metrics_of_numpy_types_are_fine(linear, tmp_path):
    run = Run(linear, tmp_path).go(evaluate=lambda state: {"loss": np.float32(0.5)})
    assert run.loop.best == 0.5


def test_a_monitor_that_is_not_reported_is_an_error(linear, tmp_path):
    run = Run(linear, tmp_path, store=MemoryStore, monitor="accuracy", evaluate_every=1)
    with pytest.raises(ValueError, match=r"monitor is 'accuracy', which evaluation does not report: \['loss'\]"):
        run.go()


@pytest.mark.parametrize(
    "name", ["steps", "log_every", "evaluate_every", "checkpoint_every", "patience", "skipped_limit"]
)
def test_a_schedule_refuses_what_is_below_one(name):
    with pytest.raises(ValueError, match=f"{name} is 0; expected at least 1"):
        train.Schedule(**{"steps": 1, name: 0})
    assert getattr(train.Schedule(**{"steps": 1, name: 1}), name) == 1


def test_when_things_are_due():
    schedule = train.Schedule(steps=7)
    assert [step for step in range(8) if schedule.due(3, step)] == [3, 6, 7]
    assert [step for step in range(8) if schedule.due(None, step)] == [7]


def test_checkpoints_hold_the_meta_and_come_when_they_are_due(linear, tmp_path):
    run = Run(linear, tmp_path, store=MemoryStore, checkpoint_every=5).go()
    assert run.checkpoints.steps() == [5, 10, 12]
    assert json.loads(run.checkpoints.saved[5][1])["note"] == "kept"


def test_a_run_goes_back_to_the_last_good_checkpoint(linear, tmp_path):
    schedule = {"checkpoint_every": 4, "evaluate_every": 3}
    whole = Run(linear, tmp_path / "whole", **schedule).go()
    run = Run(linear, tmp_path / "run", **schedule)
    with pytest.raises(Killed):
        run.go(batch_at=raising_at(10))
    assert run.checkpoints.steps() == [4, 8]
    meta = run.checkpoints.folder / "step_00000008" / "meta.json"
    meta.write_text(meta.read_text().replace("kept", "Kept"))
    assert run.go().outcome() == whole.outcome()


def test_how_long_it_took_goes_to_a_file_of_its_own(linear, tmp_path):
    run = Run(linear, tmp_path, store=MemoryStore, log_every=5).go()
    lines = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [(line["step"], line["steps"]) for line in lines] == [(5, 5), (10, 5), (12, 2)]
    assert lines[0]["examples"] == sum(int(batch_at(step)["valid"].sum()) for step in range(5))
    assert "seconds" not in run.journal.path.read_text()


def test_a_batch_of_several_sources_counts_the_valid_rows_of_all():
    from jaxptft.train.feed import _examples

    assert _examples({"task": {"valid": np.array([True, False])}, "other": {"valid": np.ones(3, bool)}}) == 4
    assert _examples({"valid": np.array([True, False, True])}) == 2


def test_a_best_that_a_checkpoint_still_names_is_kept_and_the_others_go(linear, tmp_path):
    """Scores rise at every evaluation; checkpoints come at every other one, and the last two are listed."""
    scores = iter(range(100))
    run = Run(linear, tmp_path, evaluate_every=2, checkpoint_every=4, higher_is_better=True)
    save, seen = run.best.save, []

    def watched(step, *args):  # in the background, so in the order in which they are saved
        save(step, *args)
        seen.append((step, run.best.steps()))

    run.best.save = watched
    run.go(evaluate=lambda state: {"loss": float(next(scores))})
    assert dict(seen)[6] == [4, 6]  # 6 is best, but a kill now goes back to checkpoint 4
    assert run.checkpoints.steps() == [8, 12]
    assert run.best.steps() == [8, 12]


def test_saving_does_not_keep_the_next_steps_from_being_taken(linear, tmp_path):
    run, released, taken = Run(linear, tmp_path, checkpoint_every=4), threading.Event(), []
    save = run.checkpoints.save

    def slow(step, *args):
        assert released.wait(60)
        save(step, *args)

    def counted(state, constants, batch):
        taken.append(int(state.step))
        if len(taken) == 7:  # two saves wait: that of step 4, and the best at no step
            released.set()
        return linear.step(state, constants, batch)

    run.checkpoints.save = slow
    run.go(step=counted)
    assert run.checkpoints.steps() == [8, 12]


def test_a_save_that_fails_ends_the_run_at_the_next_step_and_a_later_one_goes_on(linear, tmp_path):
    whole = Run(linear, tmp_path / "whole", checkpoint_every=2).go()
    run, taken = Run(linear, tmp_path / "run", checkpoint_every=2), []
    save = run.checkpoints.save

    def full(step, *args):
        if step == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")
        save(step, *args)

    def counted(state, constants, batch):
        taken.append(int(state.step))
        time.sleep(0.2 if int(state.step) == 6 else 0)  # so that it has failed by the next
        return linear.step(state, constants, batch)

    run.checkpoints.save = full
    with pytest.raises(OSError, match="No space left on device: 'disk'"):
        run.go(step=counted)
    assert taken[-1] == 6
    assert run.checkpoints.steps() == [2, 4]
    run.checkpoints.save = save
    assert run.go().outcome() == whole.outcome()


def test_a_save_that_fails_at_the_end_is_raised_too(linear, tmp_path):
    run = Run(linear, tmp_path)

    def full(*args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "disk")

    run.checkpoints.save = full
    with pytest.raises(OSError, match="Read-only file system"):
        run.go()
    flag = train.StopFlag()
    with pytest.raises(OSError, match="Read-only file system"):
        run.go(batch_at=stopping_at(3, flag), stop=flag)
