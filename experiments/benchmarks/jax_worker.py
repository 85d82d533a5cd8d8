"""A fresh process that fine-tunes with the library and reports: `ours` of `finetune.py`, and our first losses.

As `ours-packed` it does so with several sentences in a row, in batches of mixed lengths.

One JSON request on stdin, one JSON answer as the last line of stdout; `finetune.py` describes both. Threads are the
cores this process may run on, set before XLA starts.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import peers

SHAPES = 3  # numbers of rows that packed batches have, as the recipe comes to on the whole of the sentences


class Given:
    """Batches that are at hand, as `data.PackedRows` reads them."""

    def __init__(self, batches: list[dict]):
        self._batches, self.steps_per_epoch, self.batch_size = batches, len(batches), len(batches[0]["ids"])
        lengths = np.concatenate([batch["attention_mask"].sum(1) for batch in batches])
        self.tokenized = SimpleNamespace(lengths=lengths, pad_id=0)

    def batch_at(self, step: int) -> dict:
        return self._batches[step]


class Training(NamedTuple):
    """A compiled step with everything it needs."""

    step: Callable
    state: Any
    constants: Any


def build(request: dict, batch: dict, *, dropout: bool, total: int, warmup: int) -> Training:
    """The library's own fine-tuning of the request's plan, from its starting folder."""
    import jax

    from jaxptft import convert, objectives, optim, train
    from jaxptft.models import bert

    plan = request["plan"]
    imported = convert.load(request["init"])
    params, config = imported.params, imported.config
    if not dropout:
        config = replace(config, dropout=0.0, attention_dropout=0.0, head_dropout=0.0)
    frozen = plan["frozen_layers"]
    trainable = optim.trainable_mask(params, "none" if frozen == 0 else f"all-but-top-{config.layers - frozen}")
    model = bert.classifier(config, len(peers.LABELS), frozen_layers=optim.frozen_prefix(trainable))
    objective = objectives.classification(model)
    if plan["l2_to_pretrained"]:
        learnt, _ = optim.partition(params, trainable)
        penalty = objectives.l2_to_pretrained({"backbone": learnt["backbone"]}, weights=plan["l2_to_pretrained"])
        objective = objectives.combine(objective, penalties=[penalty])
    rate = optim.schedule("linear", peak=plan["learning_rate"], steps=total, warmup=warmup)
    optimizer = optim.adamw(rate, weight_decay=peers.DECAY, clip_norm=peers.CLIP)
    rng = jax.random.key(request["seed"])
    state = train.create_state(objective, optimizer, params, batch, trainable=trainable, rng=rng)
    mesh = train.make_mesh()
    step = train.jit_step(train.make_step(objective, optimizer, trainable=trainable), mesh)
    return Training(step, train.replicate(state, mesh), train.replicate(objective.constants, mesh))


def task_loss(metrics: dict) -> float:
    """The mean cross-entropy of a step, without penalties."""
    total, count = metrics["classification/loss"]
    return float(total) / float(count)


def check(request: dict, texts: list[str], labels: np.ndarray) -> dict:
    """Task losses of the requested batches, dropout 0, padded to a multiple of 8."""
    wanted = sorted({row for rows in request["batches"] for row in rows})
    tokens = dict(zip(wanted, peers.encode(request["init"], [texts[row] for row in wanted]), strict=True))
    batches = []
    for rows in request["batches"]:
        given = peers.collate(tokens, labels, np.asarray(rows), multiple=8)
        batch = {name: value.astype(np.int32) for name, value in given.items()}
        batch["label"] = batch.pop("labels")
        batches.append({**batch, "ids": np.asarray(rows, np.int32), "valid": np.ones(len(rows), bool)})
    if request["worker"] == "ours-packed":
        from jaxptft import data

        packed = data.PackedRows(cast(Any, Given(batches)), shapes=SHAPES)
        batches = [packed.batch_at(number) for number in range(len(batches))]
    step, state, constants = build(request, batches[0], dropout=False, total=request["total"], warmup=request["warmup"])
    losses = []
    for batch in batches:
        state, metrics = step(state, constants, batch)
        losses.append(task_loss(metrics))
    return {"losses": losses}


def timed(request: dict, texts: list[str], labels: np.ndarray) -> dict:
    """Wall and CPU seconds of one epoch over the requested sentences, batching included.

    The warm-up runs one batch of every shape, so that nothing compiles inside the clock.
    """
    from jaxptft import data

    chosen = np.asarray(request["rows"])
    table = data.make_table([texts[row] for row in chosen], labels[chosen].tolist())
    tokenized = data.tokenize(table, data.load_tokenizer(request["init"]), peers.MAX_LENGTH, cache=False)
    options: dict[str, Any] = {"batch_size": request["batch"], "seed": request["seed"]}
    if request["worker"] == "ours-packed":
        batches = data.PackedRows(data.Batches(tokenized, table.labels, window=1, **options), shapes=SHAPES)
    else:
        batches = data.Batches(tokenized, table.labels, **options)
    first = batches.batch_at(0)
    step, state, constants = build(request, first, dropout=True, total=10_000, warmup=1_000)
    state, metrics = step(state, constants, first)
    task_loss(metrics)
    to_first_step = time.time() - request["sent"]
    by_shape = {(batch := batches.batch_at(i))["input_ids"].shape: batch for i in range(batches.steps_per_epoch)}
    for batch in [*by_shape.values(), *map(batches.batch_at, range(request["warm_steps"]))]:
        state, metrics = step(state, constants, batch)
    task_loss(metrics)

    padded, losses = 0, []
    wall, cpu = time.perf_counter(), peers.cpu_seconds()
    for number in range(batches.steps_per_epoch):
        batch = batches.batch_at(number)
        padded += batch["input_ids"].size
        state, metrics = step(state, constants, batch)
        losses.append(task_loss(metrics))  # awaited, as the training loop does on CPU
    wall, cpu = time.perf_counter() - wall, peers.cpu_seconds() - cpu
    return {
        "sentences": len(chosen),
        "steps": len(losses),
        "seconds": wall,
        "cpu_seconds": cpu,
        "real_tokens": int(tokenized.lengths.sum()),
        "padded_tokens": padded,
        "peak_rss_mb": peers.peak_rss_mb(),
        "seconds_to_first_step": to_first_step,
        "last_loss": losses[-1],
    }


def matmul(shapes: list[list[int]], repeats: int = 20) -> dict:
    """Best fp32 GFLOP/s of [m, k] @ [k, n] for each (m, k, n)."""
    import jax
    import jax.numpy as jnp

    rates = {}
    product = jax.jit(jnp.matmul)
    for m, k, n in shapes:
        a, b = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((m, k), (k, n))))
        product(a, b).block_until_ready()
        best = float("inf")
        for _ in range(repeats):
            begun = time.perf_counter()
            product(a, b).block_until_ready()
            best = min(best, time.perf_counter() - begun)
        rates[f"{m}x{k}x{n}"] = 2e-9 * m * k * n / best
    return {"gflops": rates}


def main() -> None:
    request = json.load(sys.stdin)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: request["threads"]])
    if request["mode"] == "matmul":
        answer = matmul(request["shapes"])
    else:
        texts, labels = peers.read_rows(Path(request["data"]))
        answer = (check if request["mode"] == "check" else timed)(request, texts, labels)
    print(json.dumps({**answer, "versions": peers.versions("jax", "jaxlib", "flax", "optax", "jaxptft", "numpy")}))


if __name__ == "__main__":
    main()
