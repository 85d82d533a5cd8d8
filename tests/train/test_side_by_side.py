"""Runs in threads whose steps are one program come to what each comes to alone."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxptft import objectives, train
from jaxptft.objectives import Mean

STEPS = 12


def batch_at(seed):
    """Eight rows of some seed; every fifth batch has four."""

    def at(step):
        rng = np.random.default_rng((seed, step))
        x = rng.standard_normal((4 if (step + seed) % 5 == 0 else 8, 3)).astype(np.float32)
        return {"x": x, "y": x.sum(1) + 1, "valid": np.ones(len(x), bool)}

    return at


@pytest.fixture(scope="module")
def parts():
    """An objective of noise and data, whose rate of learning is the run's own constant."""

    def loss(params, batch, context):
        error = batch["x"] @ params["w"] - batch["y"] + 0.01 * jax.random.normal(context.rng, ())
        return {"fit": Mean((batch["valid"] * error**2).sum(), batch["valid"].sum())}

    objective = objectives.lift(loss, init=lambda rng, batch: {"w": jnp.zeros(3)})
    mesh, trainable = train.make_mesh(jax.devices()[:1]), {"w": True}

    def make(axis_name):
        def step(state, constants, batch):
            (rate,) = constants
            inner = train.make_step(objective, optax.sgd(rate), trainable=trainable, axis_name=axis_name)
            return inner(state, None, batch)

        return step

    def first(seed):
        optimizer = optax.sgd(0.1)
        rng = jax.random.key(seed)
        return train.create_state(objective, optimizer, {"w": jnp.zeros(3)}, {}, trainable=trainable, rng=rng)

    return mesh, make(None), first, make


def go(parts, folder, step, seed, rate, *, together=1, evaluate=lambda state: {"loss": 0.0}, steps=STEPS):
    mesh, _, first, *_ = parts
    place = (lambda b: train.shard(b, mesh)) if together == 1 else lambda b: train.shard_together(b, mesh, together)
    state, _ = train.fit(
        step,
        train.replicate(first(seed), mesh),
        (train.replicate(np.float32(rate), mesh),),
        batch_at(seed),
        schedule=train.Schedule(steps=steps, log_every=3, evaluate_every=4),
        evaluate=evaluate,
        journal=train.Journal(folder / "metrics.jsonl"),
        checkpoints=train.CheckpointStore(folder / "checkpoints", keep=1),
        best=train.CheckpointStore(folder / "best", keep=None),
        place=place,
        together=together,
    )
    return state.params["w"], [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


RUNS = [(0, 0.1), (0, 0.01), (1, 0.1), (2, 0.05), (3, 0.02)]


@pytest.mark.parametrize("together", [1, 4])
def test_each_run_comes_to_what_it_comes_to_alone(parts, tmp_path, together):
    """Of other rates, data and numbers of steps: one by one they end, and the last one is alone."""
    mesh, step, _, make = parts
    beside = train.SideBySide()
    shared, alone = beside.step(make, mesh, together=together), train.jit_step(step, mesh, together=together)
    beside.expect(len(RUNS))

    def one(number):
        seed, rate = RUNS[number]
        try:
            folder, steps = tmp_path / f"beside{number}", STEPS + 3 * number
            return go(parts, folder, shared, seed, rate, together=together, steps=steps)
        finally:
            beside.leave()

    with ThreadPoolExecutor(len(RUNS)) as threads:
        found = list(threads.map(one, range(len(RUNS))))
    for number, (w, lines) in enumerate(found):
        expected, logged = go(
            parts, tmp_path / f"alone{number}", alone, *RUNS[number], together=together, steps=STEPS + 3 * number
        )
        np.testing.assert_allclose(w, expected, rtol=1e-5, atol=1e-6)
        assert [line.pop("kind") for line in lines] == [line.pop("kind") for line in logged]
        for line, own in zip(lines, logged, strict=True):
            assert line == pytest.approx(own, rel=1e-4)
    assert len({tuple(np.asarray(w)) for w, _ in found}) == len(RUNS)


@pytest.mark.parametrize("together", [1, 4])
def test_eight_devices_take_the_steps_of_all_runs(parts, tmp_path, together):
    """As one device does: the axis crosses in each run, with the constant of its own."""
    _, _, first, make = parts
    found = []
    for mesh in (train.make_mesh(jax.devices()[:1]), train.make_mesh()):
        beside = train.SideBySide()
        shared = beside.step(make, mesh, together=together)
        beside.expect(2)

        def one(number, mesh=mesh, beside=beside, shared=shared):
            own = (mesh, None, first)
            try:
                folder = tmp_path / f"{mesh.size}-{number}"
                return go(own, folder, shared, number, 0.1 / (1 + number), together=together, steps=5)[0]
            finally:
                beside.leave()

        with ThreadPoolExecutor(2) as threads:
            found.append(np.asarray(list(threads.map(one, range(2)))))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    assert not np.allclose(found[0][0], found[0][1])


def test_a_run_that_is_stopped_does_not_hold_up_the_others(parts, tmp_path):
    mesh, step, _, make = parts
    beside = train.SideBySide()
    shared = beside.step(make, mesh)
    beside.expect(3)

    def stopping(state):
        if int(state.step) == 4:
            raise KeyError("outrun")
        return {"loss": 0.0}

    def one(number):
        try:
            evaluate = stopping if number == 1 else (lambda state: {"loss": 0.0})
            return go(parts, tmp_path / str(number), shared, number, 0.1, evaluate=evaluate)
        finally:
            beside.leave()

    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(one, number) for number in range(3)]
    with pytest.raises(KeyError, match="outrun"):
        runs[1].result()
    for number in (0, 2):
        expected, _ = go(parts, tmp_path / f"alone{number}", train.jit_step(step, mesh), number, 0.1)
        np.testing.assert_allclose(runs[number].result()[0], expected, rtol=1e-5, atol=1e-6)


def test_what_goes_wrong_in_the_program_is_raised_in_every_run(parts):
    mesh, _, first, _ = parts
    beside = train.SideBySide()

    def broken(state, constants, batch):
        raise ValueError("no such step")

    step = beside.step(lambda axis_name: broken, mesh)
    beside.expect(2)
    raised = []

    def one():
        try:
            step(first(0), (np.float32(0.1),), batch_at(0)(1))
        except ValueError as error:
            raised.append(str(error))
        finally:
            beside.leave()

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert raised == ["no such step"] * 2
