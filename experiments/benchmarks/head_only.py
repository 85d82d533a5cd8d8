"""Ten epochs of training a head on a frozen MiniLM: the backbone run once, against once an epoch.

    python experiments/benchmarks/head_only.py             # results/head_only_cpu.json
    python experiments/benchmarks/head_only.py --smoke

Film-review sentences (the split and the start of parity.py), batches of 32, rate 1e-3, linear with a tenth of warm-up,
dropout before the head, fp32. `ours` runs the frozen layers once for each sentence, as `finetune --cache-features auto`
does, and takes eight steps a dispatch; `p0` is the loop of any tutorial, the backbone without gradients in every step;
`p1` keeps the pooled vectors of length-sorted batches too, and trains dropout and a Linear on them. Batching, the
passes over the backbone and ten epochs of steps are inside the clock, tokenizing and compiling are not.

Before anything is timed, all take the same steps on the same batches with dropout 0: every loss must agree (1e-4
relative), and so must the classes of all but one in a hundred validation sentences.
"""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import interleaved
import numpy as np
import parity
import peers

NAMES, RATE, WARMUP, TOGETHER = ("p0", "p1", "ours"), 1e-3, 0.1, 8


class Side(NamedTuple):
    """What a worker can do with its model."""

    learn: Callable[[int], Any]  # from the start, for so many epochs in batches of its own making
    follow: Callable[[Sequence[np.ndarray]], tuple[Any, list[float]]]  # from the start, on batches of these rows
    classify: Callable[[Any], np.ndarray]  # the validation sentences


def read(request: dict, name: str) -> tuple[list[str], np.ndarray]:
    """The first texts and labels of a split, as many as the request asks for."""
    texts, labels = peers.read_rows(Path(request["data"]) / f"{name}.csv")
    return texts[: request[name]], labels[: request[name]]


def steps_in_all(request: dict) -> tuple[int, int]:
    """The steps of all epochs, and those of the warm-up."""
    steps = request["epochs"] * -(-request["train"] // peers.BATCH)
    return steps, round(WARMUP * steps)


def answer(request: dict, side: Side) -> dict:
    """What a worker is asked for: its losses on given batches, or its time."""
    if request["mode"] == "check":
        rows = np.random.default_rng(0).permutation(request["train"] // peers.BATCH * peers.BATCH)
        trained, losses = side.follow(2 * np.split(rows, len(rows) // peers.BATCH))
        return {"losses": losses, "classes": side.classify(trained).tolist()}
    side.learn(1)  # whatever compiles or warms up
    wall, cpu = time.perf_counter(), peers.cpu_seconds()
    trained = side.learn(request["epochs"])
    wall, cpu = time.perf_counter() - wall, peers.cpu_seconds() - cpu
    return {
        "sentences": request["epochs"] * request["train"],
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_rss_mb": peers.peak_rss_mb(),
        "accuracy": float((side.classify(trained) == read(request, "validation")[1]).mean()),
    }


def ours(request: dict) -> dict:
    from dataclasses import replace

    import jax

    from jaxptft import convert, data, models, objectives, optim, train

    imported: Any = convert.load(request["init"])
    config = replace(imported.config, head_dropout=0.0 if request["mode"] == "check" else 0.1)
    whole, mesh = config.layers + 1, train.make_mesh()
    model = models.build(config, "classification", classes=len(peers.LABELS), frozen_layers=whole, start=whole)
    objective = objectives.classification(model)
    trainable = optim.trainable_mask(imported.params, "backbone")
    steps, warmup = steps_in_all(request)
    rate = optim.schedule("linear", peak=RATE, steps=steps, warmup=warmup)
    optimizer = optim.adamw(rate, weight_decay=peers.DECAY, clip_norm=peers.CLIP)
    backbone = train.replicate({"backbone": imported.params["backbone"]}, mesh)
    compute, apply = jax.jit(models.features(config, stop=whole)), jax.jit(model.apply)
    made = train.make_step(objective, optimizer, trainable=trainable)
    step: Callable[..., Any] = train.jit_step(made, mesh, together=TOGETHER)
    tokenizer = data.load_tokenizer(request["init"])

    def batches(name: str, **options: Any) -> data.Batches:
        texts, labels = read(request, name)
        tokenized = data.tokenize(data.make_table(texts), tokenizer, peers.MAX_LENGTH, cache=False)
        return data.Batches(tokenized, labels, batch_size=peers.BATCH, **options)

    def kept(own: data.Batches) -> data.KeptBatches:
        def states(batch: Any) -> Any:
            return compute(backbone, train.shard({name: batch[name] for name in batch if name != "label"}, mesh))

        return data.keep_states(own, states, rows=64, multiple_of=mesh.size, memory=10**9, folder=Path("runs"))

    rows, held = batches("train", seed=request["seed"]), batches("validation", shuffle=False)

    def take(given: Iterable[dict]) -> tuple[Any, list[float]]:
        given = list(given)
        rng = jax.random.key(request["seed"])
        start = train.create_state(objective, optimizer, imported.params, given[0], trainable=trainable, rng=rng)
        state, constants, found = train.replicate(start, mesh), train.replicate(objective.constants, mesh), []
        for first in range(0, len(given), TOGETHER):
            several = given[first : first + TOGETHER]
            state, metrics = step(state, constants, train.shard_together(several, mesh, TOGETHER))
            found.append((metrics["classification/loss"], len(several)))
        losses = [np.divide(total, count)[:several] for (total, count), several in jax.device_get(found)]
        return state.params, np.concatenate(losses).tolist()

    def learn(epochs: int) -> Any:
        found = kept(rows)
        return take(found.batch_at(place) for place in range(epochs * found.steps_per_epoch))[0]

    def follow(chosen: Sequence[np.ndarray]) -> tuple[Any, list[float]]:
        states, (_, labels) = kept(rows).states, read(request, "train")
        valid = np.ones(peers.BATCH, bool)
        return take({"hidden": states.of(ids), "ids": ids, "valid": valid, "label": labels[ids]} for ids in chosen)

    def classify(trained: Any) -> np.ndarray:
        found, classes = kept(held), np.zeros(request["validation"], np.int64)
        for place in range(found.steps_per_epoch):
            batch = found.batch_at(place)
            guessed = np.asarray(apply(trained, batch)).argmax(-1)
            classes[batch["ids"][batch["valid"]]] = guessed[batch["valid"]]
        return classes

    return answer(request, Side(learn, follow, classify))


def theirs(request: dict) -> dict:
    import torch
    import torch_worker

    gathered = request["worker"] == "p1"
    (texts, labels), (judged, _) = read(request, "train"), read(request, "validation")
    tokens, held = peers.encode(request["init"], texts), peers.encode(request["init"], judged)
    everything = list(range(len(tokens)))
    steps, warmup = steps_in_all(request)

    def begin() -> tuple[Any, Callable[[dict], Any]]:
        """The model at its start, and its step on a batch: of tokens, or of pooled vectors."""
        torch.manual_seed(request["seed"])
        model = peers.load(request["init"], dropout=request["mode"] == "time")
        model.bert.requires_grad_(False).eval()
        optimizer = peers.adamw(model, RATE, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, peers.linear_with_warmup(steps, warmup))
        if not gathered:
            return model, torch_worker.p0_step(model, optimizer, schedule, [], 0.0)

        def forward(vectors: Any, labels: Any) -> Any:
            logits = model.classifier(model.dropout(vectors))
            return SimpleNamespace(loss=torch.nn.functional.cross_entropy(logits, labels))

        return model, torch_worker.p1_step(model, forward, optimizer, schedule, [], 0.0)

    def pooled(model: Any) -> Any:
        """The vectors of all rows, length-sorted."""
        order = np.argsort([len(row) for row in tokens], kind="stable")
        found = torch.empty(len(tokens), model.config.hidden_size)
        with torch.inference_mode():
            for first in range(0, len(order), 64):
                chosen = order[first : first + 64]
                batch = peers.tensors(peers.collate(tokens, None, chosen))
                found[chosen] = model.bert(**batch).pooler_output
        return found

    def of_rows(model: Any) -> Callable[[np.ndarray], dict]:
        if not gathered:
            return lambda chosen: peers.tensors(peers.collate(tokens, labels, chosen))
        vectors, answers = pooled(model), torch.from_numpy(labels)
        return lambda chosen: {"vectors": vectors[chosen], "labels": answers[chosen]}

    def learn(epochs: int) -> Any:
        model, step = begin()
        make = of_rows(model) if gathered else None
        for epoch in range(epochs):
            seed = request["seed"] + 1000 * epoch
            if make is None:
                coming: Iterable[dict] = torch_worker.p0_batches({**request, "seed": seed}, tokens, labels, everything)
            else:
                lengths = [len(row) for row in tokens]
                coming = map(make, peers.random_batches(lengths, seed))
            for batch in coming:
                loss = step(batch)
                if not gathered:
                    loss.item()
        return model

    def follow(chosen: Sequence[np.ndarray]) -> tuple[Any, list[float]]:
        model, step = begin()
        make = of_rows(model)
        return model, [step(make(ids)).item() for ids in chosen]

    return answer(request, Side(learn, follow, lambda model: peers.predict(model, held)))


def compare(answers: dict[str, dict]) -> dict[str, dict]:
    """How far the others are from p0; SystemExit where one does not compute the same."""
    report = {}
    for name, found in answers.items():
        reference = answers["p0"]
        apart = np.abs(np.divide(found["losses"], reference["losses"]) - 1).max()
        other = np.mean(np.asarray(found["classes"]) != reference["classes"])
        half = len(found["losses"]) // 2
        means = [float(np.mean(found["losses"][:half])), float(np.mean(found["losses"][half:]))]
        report[name] = {"loss": float(apart), "classes": float(other), "mean_of_passes": means}
        print(f"check {name}: losses {apart:.1e} from p0's, {other:.2%} of the classes others, passes {means}")
        if apart > 1e-4 or other > 0.01:
            raise SystemExit(f"{name} does not compute what p0 computes: not timed")
        if means[1] >= means[0]:
            raise SystemExit(f"{name}: the loss does not fall: not timed")
    return report


def main() -> None:
    made = interleaved.parser(__doc__, "head_only_cpu.json")
    made.add_argument("--sentences", type=int, default=1280, help="to learn from")
    made.add_argument("--epochs", type=int, default=10)
    arguments = interleaved.parse(made)
    smoke = arguments.smoke
    if not (parity.WORK / "init-0").exists():
        parity.prepare(parity.WORK)
    base = {
        "init": str(parity.WORK / "init-0"),
        "data": str(parity.WORK / "data"),
        "options": peers.EAGER,
        "threads": arguments.threads,
        "batch": peers.BATCH,
        "epochs": 2 if smoke else arguments.epochs,
        "train": 128 if smoke else arguments.sentences,
        "validation": 64 if smoke else 500,
    }

    def ask(name: str, seed: int, **changes: Any) -> dict:
        request = {**base, "mode": "time", "worker": name, "seed": seed, **changes}
        return peers.ask(request, script=Path(__file__), environment=interleaved.as_it_runs(name))

    few = {"train": min(base["train"], 640)}
    check = compare({name: ask(name, 0, mode="check", **few) for name in NAMES})
    answers = interleaved.rounds(NAMES, arguments.rounds, ask, amount="sentences")
    ratios = interleaved.ratios(answers, [("ours", "p0"), ("ours", "p1"), ("p1", "p0")], amount="sentences")
    workers = interleaved.summary(answers, amount="sentences")
    accuracies = {name: [run["accuracy"] for run in found] for name, found in answers.items()}
    speed = {name: workers[name]["sentences_per_second_median"] for name in NAMES}
    goals = [interleaved.goal(">= 9x P0", ratios["ours/p0"]["paired_median"], least=9.0)]
    line = interleaved.line(f"head-only training, {base['epochs']} epochs", "sentences/s", **speed, goals=goals)
    body = {"table": [line], "check": check, "accuracies": accuracies, "workers": workers, "ratios": ratios}
    interleaved.write(arguments.out, answers, body)


if __name__ == "__main__":
    interleaved.answer(ours, theirs) if sys.argv[1:] == ["worker"] else main()
