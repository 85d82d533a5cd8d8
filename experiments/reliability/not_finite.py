"""NaN and infinity in a loss or a gradient: the step is skipped and counted, and nothing of it is kept."""

import json
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from trials import Trials, main

from jaxptft import objectives, optim, train
from jaxptft.objectives import Mean

BAD = (np.nan, np.inf, -np.inf, 3e38)  # the last overflows when it is squared
STEPS = 16
TRAINABLE = {"w": True, "b": True}


def clean_batch(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    x = rng.standard_normal((8, 3)).astype(np.float32)
    y = (x.sum(1) + 1).astype(np.float32)
    return {"x": x, "y": y, "valid": np.arange(8) < rng.integers(1, 9), "ids": np.arange(8, dtype=np.int32)}


def spoilt(batch: dict[str, np.ndarray], rng: random.Random) -> dict[str, np.ndarray]:
    """One number of a row that counts becomes bad, in what is read or in what is to be predicted."""
    name, value = rng.choice(["x", "y"]), np.float32(rng.choice(BAD))
    array = batch[name].copy()
    row = rng.randrange(int(batch["valid"].sum()))
    array[(row, rng.randrange(3)) if name == "x" else row] = value
    return batch | {name: array}


class Linear:
    """A linear model whose objective's state counts the steps it has seen, and follows the inputs' mean."""

    def __init__(self) -> None:
        def loss(params: Any, batch: Any, context: Any) -> Any:
            error = batch["x"] @ params["w"] + params["b"] - batch["y"]
            seen = context.state["seen"] + 1
            mean = 0.9 * context.state["mean"] + 0.1 * batch["x"].mean()
            term = Mean((batch["valid"] * error**2).sum(), batch["valid"].sum())
            return {"fit": term}, ({}, {"seen": seen, "mean": mean})

        self.objective = objectives.lift(
            loss,
            init=lambda rng, batch: {"w": jnp.zeros(3), "b": jnp.zeros(())},
            start=lambda params, batch: {"seen": jnp.zeros(()), "mean": jnp.zeros(())},
        )
        rate = optim.schedule("constant", peak=0.05, steps=STEPS)
        self.optimizer = optim.adamw(rate)
        step = train.make_step(self.objective, self.optimizer, trainable=TRAINABLE)
        self.step = train.jit_step(step, train.make_mesh(jax.devices()[:1]))

    def first(self) -> train.State:
        params = self.objective.init(jax.random.key(0), clean_batch(0))
        return train.create_state(
            self.objective, self.optimizer, params, clean_batch(0), trainable=TRAINABLE, rng=jax.random.key(0)
        )


def kept_of(state: train.State) -> list[bytes]:
    return [
        np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.params, state.opt_state, state.objective_state))
    ]


def is_finite(tree: Any) -> bool:
    return all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in jax.tree.leaves(tree))


def one_sequence(linear: Linear, folder: Path, rng: random.Random) -> str:
    """A run with bad steps, and bad evaluations; what is wrong with it, "" where nothing is."""
    share, limit = rng.choice([0.1, 0.3, 0.6]), rng.randrange(2, 6)
    bad = {step for step in range(STEPS) if rng.random() < share}
    batches = {step: spoilt(clean_batch(step), rng) if step in bad else clean_batch(step) for step in range(STEPS)}
    judged = {step: rng.choice([np.nan, np.inf, -np.inf]) for step in range(STEPS + 1) if rng.random() < 0.3}
    higher = rng.random() < 0.5
    in_a_row, stops_at = 0, None  # by counting: the step after which there were too many
    for step in range(STEPS):
        in_a_row = in_a_row + 1 if step in bad else 0
        if in_a_row == limit:
            stops_at = step + 1
            break
    changed: list[str] = []
    evaluations: dict[int, float] = {}

    def watched(state: train.State, constants: Any, batch: Any) -> Any:
        number, before = int(state.step), kept_of(state)  # before its memory is given away
        after, metrics = linear.step(state, constants, batch)
        skipped = float(metrics["skipped"].total) == 1.0
        if skipped != (number in bad):
            changed.append(f"step {number} was {'' if skipped else 'not '}skipped")
        if (kept_of(after) == before) != (number in bad):
            changed.append(f"step {number}, bad: {number in bad}, left all as it was: {kept_of(after) == before}")
        return after, metrics

    def evaluate(state: train.State) -> dict[str, float]:
        number = int(state.step)
        evaluations[number] = judged.get(number, float(np.asarray(state.params["w"]).sum()))
        return {"loss": evaluations[number]}

    checkpoints = train.CheckpointStore(folder / "checkpoints", keep=None)
    best = train.CheckpointStore(folder / "best", keep=None)
    journal = train.Journal(folder / "metrics.jsonl")
    loop = train.LoopState()
    schedule = train.Schedule(
        steps=STEPS, log_every=3, evaluate_every=4, checkpoint_every=8, skipped_limit=limit, higher_is_better=higher
    )
    try:
        train.fit(
            watched,
            linear.first(),
            None,
            batches.__getitem__,
            schedule=schedule,
            evaluate=evaluate,
            journal=journal,
            checkpoints=checkpoints,
            best=best,
            loop=loop,
        )
        stopped = False
    except FloatingPointError:
        stopped = True
    if changed:
        return changed[0]
    if stopped != (stops_at is not None):
        return f"bad steps {sorted(bad)}, limit {limit}: {'stopped' if stopped else 'went on'}"
    last = checkpoints.steps()[-1]
    meta = checkpoints.read_meta(last)["loop"]
    # Steps that were under way when the limit was reached are counted too.
    expected = {
        len({step for step in bad if step < end}) for end in (range(stops_at, last + 1) if stops_at else [STEPS])
    }
    if meta["skipped"] not in expected:
        return f"{meta['skipped']} skipped steps were counted, and {expected} came"
    for step in checkpoints.steps():
        _, state, _ = checkpoints.restore(linear.first(), step=step)
        if not is_finite(state._replace(rng=None)):
            return f"the checkpoint of step {step} holds what is not finite"
    finite = {step: value for step, value in evaluations.items() if np.isfinite(value)}
    chosen = (max if higher else min)(finite.values()) if finite else None
    if loop.best != chosen or (finite and finite.get(loop.best_step) != chosen):
        return f"the best is {asdict(loop)}, of evaluations {evaluations}"
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    return "" if is_finite([list(line.values())[2:] for line in lines]) else "a line of the log is not finite"


def sequences(trials: Trials, lane: str) -> None:
    rng, linear = random.Random(0), Linear()
    while trials.trials < (1000 if lane == "full" else 40):
        with tempfile.TemporaryDirectory() as scratch:
            complaint = one_sequence(linear, Path(scratch), rng)
        trials.check(not complaint, f"sequence {trials.trials}: {complaint}")


if __name__ == "__main__":
    sys.exit(main({"sequences": sequences}, script=__file__))
