"""Seconds from the start of a process until fine-tuning reaches an accuracy that both sides can reach, by seed.

    python experiments/benchmarks/time_to_quality.py             # results/time_to_quality_cpu.json
    python experiments/benchmarks/time_to_quality.py --smoke

MiniLM on film-review sentences (the split and the start of parity.py), all layers, batches of 32, rate 1e-4, linear
with a tenth of warm-up over the most steps that are allowed. Every ten steps the first 500 validation sentences are
classified; the clock stops at the first time that the target is reached, and does not run during these evaluations.
The seed decides the order of the sentences and dropout. `p0` and `p1` are those of torch_worker.py; ours is as the
command line does it: short sentences share rows, memory is in large pages, and programs were compiled by an earlier
process, as for a second run.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import interleaved
import numpy as np
import parity
import peers

NAMES, RATE, WARMUP = ("p0", "p1", "ours"), 1e-4, 0.1
PLAN = {"learning_rate": RATE, "frozen_layers": 0, "l2_to_pretrained": 0.0}


def until(request: dict, step: Callable[[], Any], accuracy: Callable[[], float]) -> dict:
    """Takes steps until the accuracy is the target; RuntimeError where it is not within the most steps allowed."""
    evaluating, began, found = 0.0, time.time(), []
    for number in range(1, request["most"] + 1):
        step()
        if number % request["every"]:
            continue
        before = time.time()
        found.append(accuracy())
        evaluating += time.time() - before
        if found[-1] >= request["target"]:
            now = time.time() - evaluating
            return {
                "runs": 1,
                "seconds": now - request["sent"],
                "training_seconds": now - began,
                "steps": number,
                "accuracies": found,
                "cpu_seconds": peers.cpu_seconds(),
                "peak_rss_mb": peers.peak_rss_mb(),
            }
    raise RuntimeError(f"{request['worker']}: {request['target']} is not reached in {request['most']} steps: {found}")


def _split(request: dict, name: str) -> tuple[list[str], np.ndarray]:
    texts, labels = peers.read_rows(Path(request["data"]) / f"{name}.csv")
    return (texts[: request["judged"]], labels[: request["judged"]]) if name == "validation" else (texts, labels)


def ours(request: dict) -> dict:
    import jax
    import jax_worker

    from jaxptft import convert, data
    from jaxptft.models import bert
    from jaxptft.recipes.runtime import keep_compiled_programs
    from jaxptft.recipes.training_settings import PROGRAM_STEPS

    keep_compiled_programs()
    tokenizer, batches = data.load_tokenizer(request["init"]), {}
    for name in ("train", "validation"):
        texts, labels = _split(request, name)
        tokenized = data.tokenize(data.make_table(texts), tokenizer, peers.MAX_LENGTH, cache=False)
        training = name == "train"
        options: dict[str, Any] = {"window": 1, "seed": request["seed"]} if training else {"shuffle": False}
        rows = data.Batches(tokenized, labels, batch_size=peers.BATCH, **options)
        batches[name] = data.PackedRows(rows, shapes=6, price=PROGRAM_STEPS) if training else rows
    warmup = round(WARMUP * request["most"])
    training = jax_worker.build(
        request, batches["train"].batch_at(0), dropout=True, total=request["most"], warmup=warmup
    )
    step, state, constants = training
    config: Any = convert.load(request["init"]).config
    classify = jax.jit(bert.classifier(config, len(peers.LABELS)).apply)
    number = 0

    def one() -> None:
        nonlocal state, number
        state, metrics = step(state, constants, batches["train"].batch_at(number))
        jax.block_until_ready(metrics)
        number += 1

    def accuracy() -> float:
        right = 0
        for place in range(batches["validation"].steps_per_epoch):
            batch = batches["validation"].batch_at(place)
            guessed = np.asarray(classify(state.params, batch)).argmax(-1)
            right += int(((guessed == batch["label"]) & batch["valid"]).sum())
        return right / request["judged"]

    return until(request, one, accuracy)


def theirs(request: dict) -> dict:
    import torch
    import torch_worker

    torch.manual_seed(request["seed"])
    model = peers.load(request["init"])
    texts, labels = _split(request, "train")
    judged, expected = _split(request, "validation")
    tokens, held = peers.encode(request["init"], texts), peers.encode(request["init"], judged)
    optimizer = peers.adamw(model, RATE, fused=True)
    factor = peers.linear_with_warmup(request["most"], round(WARMUP * request["most"]))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    if request["worker"] == "p0":
        step, batches = torch_worker.p0_step(model, optimizer, schedule, [], 0.0), torch_worker.p0_batches
    else:
        model.set_attn_implementation(request["options"]["attention"])
        step, batches = torch_worker.p1_step(model, model, optimizer, schedule, [], 0.0), torch_worker.p1_batches

    def endless() -> Iterator[dict]:
        for epoch in range(request["most"]):
            again = {**request, "seed": request["seed"] + 1000 * epoch}
            yield from batches(again, tokens, labels, list(range(len(tokens))))

    coming = endless()

    def accuracy() -> float:
        guessed = peers.predict(model, held)
        model.train()
        return float((guessed == expected).mean())

    return until(request, lambda: step(next(coming)), accuracy)


def main() -> None:
    made = interleaved.parser(__doc__, "time_to_quality_cpu.json")
    made.add_argument("--target", type=float, default=0.78, help="accuracy on the validation sentences")
    made.add_argument("--most", type=int, default=240, help="steps allowed")
    arguments = interleaved.parse(made)
    smoke = arguments.smoke
    if not (parity.WORK / "init-0").exists():
        parity.prepare(parity.WORK)
    base = {
        "init": str(parity.WORK / "init-0"),
        "data": str(parity.WORK / "data"),
        "mode": "time",
        "plan": PLAN,
        "options": peers.EAGER,
        "threads": arguments.threads,
        "batch": peers.BATCH,
        "target": 0.2 if smoke else arguments.target,
        "most": 4 if smoke else arguments.most,
        "every": 2 if smoke else 10,
        "judged": 64 if smoke else 500,
    }
    cache = {"JAX_COMPILATION_CACHE_DIR": str((parity.WORK / "cache").absolute())}

    def ask(name: str, seed: int) -> dict:
        return peers.ask(
            {**base, "worker": name, "seed": seed},
            script=Path(__file__),
            environment=cache | interleaved.as_it_runs(name),
        )

    for seed in range(arguments.rounds):  # which fills the cache
        ask("ours", seed)
    answers = interleaved.rounds(NAMES, arguments.rounds, ask, amount="runs")
    ratios = interleaved.ratios(answers, [("ours", "p0"), ("ours", "p1"), ("p1", "p0")], amount="runs")
    seconds = {name: statistics.median(run["seconds"] for run in found) for name, found in answers.items()}
    training = {name: statistics.median(run["training_seconds"] for run in found) for name, found in answers.items()}
    steps = {name: [run["steps"] for run in found] for name, found in answers.items()}
    goals = [interleaved.goal(">= 4x P0", ratios["ours/p0"]["paired_median"], least=4.0)]
    what = f"fine-tuning to accuracy {base['target']}, {arguments.rounds} seeds"
    line = interleaved.line(what, "seconds", **seconds, goals=goals)
    body = {"table": [line], "seconds": seconds, "training_seconds": training, "steps": steps, "ratios": ratios}
    interleaved.write(arguments.out, answers, body | {"workers": interleaved.summary(answers, amount="runs")})


if __name__ == "__main__":
    interleaved.answer(ours, theirs) if sys.argv[1:] == ["worker"] else main()
