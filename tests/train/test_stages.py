"""Stages: the loop takes each step from its own, logs the change, and goes on from any interruption alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft import objectives, optim, train
from jaxptft.objectives import Mean
from jaxptft.train.parallel import DATA

STEPS, BEGINS = 8, (0, 3, 6)
RATE = optim.schedule("linear", peak=0.1, steps=STEPS, warmup=2)
PLAN = optim.Plan({"low": optim.Rule(unfreeze=6, rate=0.5), "middle": optim.Rule(unfreeze=3)})


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


def batch_at(step):
    x = np.random.default_rng(step).standard_normal((8, 3)).astype(np.float32)
    return {"x": x, "y": x.sum(1) + 1, "valid": np.ones(8, bool), "ids": np.arange(8, dtype=np.int32)}


def loss(params, batch, context):
    noise = jax.random.normal(context.rng, ()) * 0.01
    error = (batch["x"] * params["low"] + params["middle"]).sum(-1) + params["top"] - batch["y"] + noise
    return {"fit": Mean((error**2).sum(), jnp.float32(len(error)))}


PARAMS = {"low": jnp.zeros(3), "middle": jnp.zeros(3), "top": jnp.zeros(())}
OBJECTIVE = objectives.lift(loss, init=lambda rng, batch: PARAMS)
TABLE = optim.timetable(PARAMS, PLAN)
OPTIMIZER = optim.plan_adamw(RATE, TABLE)


def first_state():
    key = jax.random.key(0)
    return train.create_state(OBJECTIVE, OPTIMIZER, PARAMS, batch_at(0), trainable=TABLE.ever, rng=key)


@pytest.fixture(scope="module")
def linear():
    """A function: folder -> the state, its bits and the journal of a run started or continued there; killed before
    step `until`."""
    mesh = train.make_mesh(jax.devices()[:1])
    make = lambda mask: train.jit_step(train.make_step(OBJECTIVE, OPTIMIZER, trainable=mask), mesh)  # noqa: E731
    stages = [train.Stage(begin, make(mask), {"begins": begin}) for begin, mask in TABLE.stages.items()]

    def run(folder, *, until=None, every=2, stages=stages, poison=None):
        state = first_state()
        loop, journal = train.LoopState(), train.Journal(folder / "metrics.jsonl")
        checkpoints = train.CheckpointStore(folder / "checkpoints", keep=9)
        if checkpoints.steps():
            _, state, meta = checkpoints.restore(state)
            loop = train.LoopState(**meta["loop"])
        journal.rewind(int(state.step))

        def batch_or_death(step):
            if step == until:
                raise Killed
            batch = batch_at(step)
            return batch | {"x": batch["x"] * np.float32(np.nan)} if step == poison else batch

        state, _ = train.fit(
            stages,
            state,
            None,
            batch_or_death,
            schedule=train.Schedule(steps=STEPS, log_every=1, evaluate_every=3, checkpoint_every=every),
            evaluate=lambda state: {"loss": float(jnp.abs(state.params["low"]).sum())},
            journal=journal,
            checkpoints=checkpoints,
            best=train.CheckpointStore(folder / "best", keep=None),
            loop=loop,
            learning_rate=RATE,
        )
        leaves = jax.tree.leaves(state._replace(rng=jax.random.key_data(state.rng)))
        return state, [np.asarray(leaf).tobytes() for leaf in leaves], journal

    return run


def test_each_stage_moves_what_it_has_unfrozen_and_says_so_once(linear, tmp_path):
    state, _, journal = linear(tmp_path)
    lines = [entry for entry in journal.read() if entry["kind"] == "stage"]
    assert lines == [{"step": 3, "kind": "stage", "begins": 3}, {"step": 6, "kind": "stage", "begins": 6}]
    kinds = [entry["kind"] for entry in journal.read() if entry["step"] == 3]
    assert kinds == ["train", "evaluation", "stage"]
    assert {name: int(group.count) for name, group in state.opt_state[1].items()} == dict(from_0=8, from_3=5, from_6=2)
    store = train.CheckpointStore(tmp_path / "checkpoints", keep=9)
    for step, moved in ((2, {"top"}), (4, {"top", "middle"}), (6, {"top", "middle"}), (8, {"top", "middle", "low"})):
        _, saved, _ = store.restore(state, step=step)
        assert {name for name, leaf in saved.params.items() if np.any(leaf)} == moved


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_killed_at_or_around_a_boundary_ends_with_the_same_bits(every, linear, tmp_path):
    _, bits, journal = linear(tmp_path / "whole", every=every)
    for number, killed in enumerate([(2,), (3,), (4,), (3, 3, 6), (5, 6, 7)]):
        folder = tmp_path / f"killed_{number}"
        for until in killed:
            with pytest.raises(Killed):
                linear(folder, until=until, every=every)
        _, found, own = linear(folder, every=every)
        assert found == bits, killed
        assert own.path.read_bytes() == journal.path.read_bytes(), killed


def test_the_first_step_of_a_stage_can_be_skipped(linear, tmp_path):
    """A step that is not finite moves neither the schedule nor any count, and the stage begins all the same."""
    state, _, journal = linear(tmp_path, poison=3)
    assert {name: int(group.count) for name, group in state.opt_state[1].items()} == dict(from_0=7, from_3=4, from_6=2)
    assert [entry["step"] for entry in journal.read() if entry["kind"] == "stage"] == [3, 6]


@pytest.mark.parametrize("begins", [(1, 3), (0, 3, 3), (0, 5, 3), ()])
def test_stages_out_of_order_are_refused(begins, linear, tmp_path):
    with pytest.raises(ValueError, match="expected rising steps, the first 0"):
        linear(tmp_path, stages=[train.Stage(begin, lambda *_: None) for begin in begins])


def test_pmap_and_sharded_jit_agree_over_stages():
    """On eight devices; what has not begun keeps its bits in both."""
    mesh, found = train.make_mesh(), {}
    for kind in ("jit", "pmap"):
        axis = DATA if kind == "pmap" else None
        state, stages = first_state(), {}
        for begin, mask in TABLE.stages.items():
            step = train.make_step(OBJECTIVE, OPTIMIZER, trainable=mask, axis_name=axis)
            stages[begin] = train.pmap_step(step) if kind == "pmap" else train.jit_step(step, mesh)
        moved = []
        for number in range(STEPS):
            batch = batch_at(number)
            begin = max(begin for begin in BEGINS if begin <= number)
            state, _ = stages[begin](state, None, batch if kind == "pmap" else train.shard(batch, mesh))
            moved.append({name for name, leaf in state.params.items() if np.any(leaf)})
        # At step 0 the warmup's rate is 0.
        assert moved == [set(), *[{"top"}] * 2, *[{"top", "middle"}] * 3, *[{"top", "middle", "low"}] * 2]
        found[kind] = state
    for one, other in zip(*(jax.tree.leaves(found[kind].opt_state) for kind in found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for one, other in zip(*(jax.tree.leaves(found[kind].params) for kind in found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
