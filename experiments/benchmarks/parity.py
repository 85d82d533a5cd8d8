"""Accuracy parity on movie-review sentiment: the library against transformers + torch from the same start.

Two rows: `all` (every layer, rate 1e-4) and `top` (layers 4, 5, pooler and classifier, rate 2e-4, the rest frozen
with dropout off, plus 0.01 * ||theta - theta_pre||^2 over the trainable backbone), three seeds, 2 epochs, one split.

    python experiments/benchmarks/parity.py prepare   # split and starting folders
    python experiments/benchmarks/parity.py torch     # reference, resumable
    python experiments/benchmarks/parity.py jaxptft    # the library's finetune recipe
    python experiments/benchmarks/parity.py losses     # first 20 losses, dropout 0
    python experiments/benchmarks/parity.py compare    # table and results/parity_sentiment.json
"""

import argparse
import csv
import fcntl
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import peers

SEEDS, EPOCHS, WARMUP, LAYERS, FIRST = (0, 1, 2), 2, 0.1, 6, 20
ROWS = {
    "all": {"learning_rate": 1e-4, "frozen_layers": 0, "l2_to_pretrained": 0.0},
    "top": {"learning_rate": 2e-4, "frozen_layers": 4, "l2_to_pretrained": 0.01},
}
WORK = Path("runs/parity")


def movie_sentences() -> tuple[list[str], list[str]]:
    """Texts and label names of the movie-review sentences; the first of equal texts is kept, neutral ones are not."""
    from jaxptft.data import hutto_sentences

    kept: dict[str, str] = {}
    for text, score in hutto_sentences("movies"):
        kept.setdefault(text, peers.LABELS[int(score > 0)])
    return list(kept), list(kept.values())


def prepare(work: Path) -> None:
    """Writes the split and one starting folder a seed."""
    import torch
    from sklearn.model_selection import train_test_split
    from transformers import AutoTokenizer, BertForSequenceClassification

    from jaxptft.data import minilm_folder

    texts, labels = movie_sentences()
    rest, test, rest_labels, test_labels = train_test_split(
        texts, labels, test_size=2000, stratify=labels, random_state=0
    )
    train, validation, train_labels, validation_labels = train_test_split(
        rest, rest_labels, test_size=1000, stratify=rest_labels, random_state=0
    )
    for name, x, y in (
        ("train", train, train_labels),
        ("validation", validation, validation_labels),
        ("test", test, test_labels),
    ):
        stream = io.StringIO(newline="")
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([("text", "label"), *zip(x, y, strict=True)])
        path = work / "data" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stream.getvalue(), encoding="utf-8", newline="")
        print(f"{path}: {len(x)} rows, {list(y).count('positive')} positive")
    source = minilm_folder()
    names = dict(enumerate(peers.LABELS))
    for seed in SEEDS:
        model = BertForSequenceClassification.from_pretrained(
            source, num_labels=len(names), id2label=names, label2id={name: i for i, name in names.items()}
        )
        weight = np.random.default_rng(seed).normal(0.0, 0.02, tuple(model.classifier.weight.shape))
        with torch.no_grad():
            model.classifier.weight.copy_(torch.from_numpy(weight))
            model.classifier.bias.zero_()
        model.save_pretrained(work / f"init-{seed}")
        AutoTokenizer.from_pretrained(source).save_pretrained(work / f"init-{seed}")
        print(work / f"init-{seed}")


def splits(work: Path) -> dict[str, tuple[list[list[int]], np.ndarray]]:
    """Token ids and labels of each split; all starting folders share one tokenizer."""
    found = {}
    for name in ("train", "validation", "test"):
        texts, labels = peers.read_rows(work / "data" / f"{name}.csv")
        found[name] = (peers.encode(work / "init-0", texts), labels)
    return found


def torch_run(work: Path, data: dict, row: str, seed: int, steps: int | None = None) -> dict:
    """Trains one row with one seed; validation accuracy after each epoch chooses the weights that are tested."""
    import torch

    plan = ROWS[row]
    torch.manual_seed(seed)
    model = peers.load(work / f"init-{seed}")
    peers.freeze(model, plan["frozen_layers"])
    reference = peers.reference_of(model) if plan["l2_to_pretrained"] else []
    optimizer = peers.adamw(model, plan["learning_rate"])
    tokens, labels = data["train"]
    lengths = [len(row) for row in tokens]
    total = EPOCHS * -(-len(tokens) // peers.BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, peers.linear_with_warmup(total, math.ceil(WARMUP * total)))
    losses, penalties, validation = [], [], []
    best, kept, started, cpu = -1.0, {}, time.perf_counter(), peers.cpu_seconds()
    for epoch in range(EPOCHS):
        peers.training_mode(model, plan["frozen_layers"])
        batches = peers.bucketed_batches(lengths, seed=1000 * seed + epoch)[:steps]
        for rows in peers.progress(batches):
            batch = peers.tensors(peers.collate(tokens, labels, rows))
            task, penalty = peers.train_step(model, optimizer, schedule, batch, reference, plan["l2_to_pretrained"])
            losses.append(task)
            penalties.append(penalty)
        validation.append(peers.score(data["validation"][1], peers.predict(model, data["validation"][0])))
        print(
            f"{row} seed {seed} epoch {epoch}: loss {np.mean(losses[-50:]):.4f}, validation {validation[-1]}",
            flush=True,
        )
        if validation[-1]["accuracy"] > best:
            best = validation[-1]["accuracy"]
            kept = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    test = peers.score(data["test"][1], peers.predict(model, data["test"][0]))
    print(f"{row} seed {seed}: test {test}", flush=True)
    return {
        "row": row,
        "seed": seed,
        "plan": plan,
        "test": test,
        "validation": validation,
        "best_epoch": int(np.argmax([epoch["accuracy"] for epoch in validation])),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": peers.cpu_seconds() - cpu,
        "losses": losses,
        "penalties": penalties,
        "threads": torch.get_num_threads(),
        "versions": peers.versions("torch", "transformers", "numpy", "scikit-learn"),
    }


def runs(path: Path) -> list[dict]:
    """The finished runs of a results file, if there is one."""
    return json.loads(path.read_text())["runs"] if path.exists() else []


def add_run(path: Path, run: dict) -> None:
    """Adds one run to the file, in the place of an earlier one of the same row and seed."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be working on other rows
        others = [old for old in runs(path) if (old["row"], old["seed"]) != (run["row"], run["seed"])]
        together = sorted([*others, run], key=lambda one: (one["row"], one["seed"]))
        peers.write_json(path, {"machine": peers.machine(), "runs": together})


def torch_side(work: Path, rows: list[str], steps: int | None, threads: int) -> None:
    """All rows and seeds that the file does not hold yet."""
    import torch

    torch.set_num_threads(threads)
    data = splits(work)
    path = work / ("torch.json" if steps is None else "torch_trial.json")
    done = {(run["row"], run["seed"]) for run in runs(path)} if steps is None else set()
    for seed in SEEDS:
        for row in rows:
            if (row, seed) not in done:
                add_run(path, torch_run(work, data, row, seed, steps))
        if steps is not None:
            return


def jaxptft_run(work: Path, row: str, seed: int, steps: int | None) -> dict:
    """One row with one seed through the finetune recipe, in the run folder WORK/runs/ROW-SEED."""
    from jaxptft.recipes import finetune, settings

    plan = ROWS[row]
    texts, _ = peers.read_rows(work / "data" / "train.csv")
    total = EPOCHS * -(-len(texts) // peers.BATCH)
    frozen, said, cpu = plan["frozen_layers"], [], peers.cpu_seconds()
    values = {
        "model": str(work / f"init-{seed}"),
        "train": str(work / "data" / "train.csv"),
        "eval": str(work / "data" / "validation.csv"),
        "test": str(work / "data" / "test.csv"),
        "out": work / "runs" / f"{row}-{seed}",
        "max_length": peers.MAX_LENGTH,
        "steps": steps or total,
        "batch_size": peers.BATCH,
        "learning_rate": plan["learning_rate"],
        "optimizer": {
            "weight_decay": peers.DECAY,
            "clip_norm": peers.CLIP,
            # The share that gives torch's number of warm-up steps, whichever way it is rounded.
            "warmup": (math.ceil(WARMUP * total) - 0.25) / total,
        },
        "freeze": "none" if frozen == 0 else f"all-but-top-{LAYERS - frozen}",
        "l2_to_pretrained": plan["l2_to_pretrained"],
        "seed": seed,
        "overwrite": True,
    }
    config = settings.build(finetune.Config, values)
    result = finetune.run(config, name=f"{row} seed {seed}", say=said.append)
    if not any("head imported" in line for line in said):
        raise RuntimeError(f"the head of {config.model} was not imported, so the starts differ: {said}")
    journal = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    metrics = result.reports["test"].metrics
    test = {name: metrics[f"classification/{name}"] for name in ("accuracy", "macro_f1")}
    print(f"{row} seed {seed}: test {test}", flush=True)
    return {
        "row": row,
        "seed": seed,
        "plan": plan,
        "test": test,
        "validation": [line for line in journal if line["kind"] == "evaluation"],
        "best_step": result.best_step,
        "trainable_parameters": result.trainable,
        "seconds": result.seconds,
        "cpu_seconds": peers.cpu_seconds() - cpu,
        "losses": [line["classification/loss"] for line in journal if line["kind"] == "train"],  # means of 10 steps
        "versions": peers.versions("jaxptft", "jax", "flax", "optax", "numpy"),
    }


def jaxptft_side(work: Path, rows: list[str], steps: int | None) -> None:
    """All rows and seeds that the file does not hold yet."""
    path = work / ("jaxptft.json" if steps is None else "jaxptft_trial.json")
    done = {(run["row"], run["seed"]) for run in runs(path)} if steps is None else set()
    for seed in SEEDS if steps is None else SEEDS[:1]:
        for row in rows:
            if (row, seed) not in done:
                add_run(path, jaxptft_run(work, row, seed, steps))


def losses_side(work: Path, threads: int) -> None:
    """Both sides' first 20 training losses with dropout 0, on the same batches, from the same folder; seed 0."""
    texts, _ = peers.read_rows(work / "data" / "train.csv")
    lengths = [len(row) for row in peers.encode(work / "init-0", texts)]
    batches = peers.bucketed_batches(lengths, seed=0)
    total = EPOCHS * len(batches)
    report = {}
    for row, plan in ROWS.items():
        request = {
            "mode": "check",
            "init": str(work / "init-0"),
            "data": str(work / "data" / "train.csv"),
            "plan": plan,
            "batches": [rows.tolist() for rows in batches[:FIRST]],
            "total": total,
            "warmup": math.ceil(WARMUP * total),
            "threads": threads,
            "seed": 0,
            "options": peers.EAGER,
        }
        ours, theirs = (np.asarray(peers.ask({**request, "worker": name})["losses"]) for name in ("ours", "p0"))
        apart = np.abs(ours - theirs) / np.abs(theirs)
        report[row] = {
            "jaxptft": ours.tolist(),
            "torch": theirs.tolist(),
            "largest_relative_difference": float(apart.max()),
        }
        print(
            f"{row}: {FIRST} losses from {theirs[0]:.6f} to {theirs[-1]:.6f}, "
            f"largest relative difference {apart.max():.2e}"
        )
    found = peers.versions("jax", "flax", "optax", "torch", "transformers", "numpy")
    peers.write_json(work / "losses.json", {"machine": peers.machine(), "versions": found, "rows": report})


def compare(work: Path) -> None:
    """Mean test accuracy of both sides over the seeds that both have, and whether they agree."""
    sides = {name: runs(work / f"{name}.json") for name in ("torch", "jaxptft")}
    report = {}
    print(f"{'row':4} {'seeds':>5} {'torch':>8} {'jaxptft':>8} {'differ':>8} {'error':>8}  verdict")
    for row in ROWS:
        found = {name: {run["seed"]: run for run in side if run["row"] == row} for name, side in sides.items()}
        seeds = sorted(found["torch"].keys() & found["jaxptft"].keys())
        if len(seeds) < 2:
            raise SystemExit(
                f"row {row}: both sides have the seeds {seeds}; at least 2 are needed, run `torch` and `jaxptft`"
            )
        accuracy = {name: np.asarray([of[seed]["test"]["accuracy"] for seed in seeds]) for name, of in found.items()}
        difference = float(accuracy["jaxptft"].mean() - accuracy["torch"].mean())
        error = float(np.sqrt(sum(values.var(ddof=1) / len(seeds) for values in accuracy.values())))
        agree = abs(difference) <= max(0.01, 2 * error)
        report[row] = {
            "seeds": seeds,
            "plan": ROWS[row],
            **{
                name: {
                    "test_accuracy": values.tolist(),
                    "test_accuracy_mean": float(values.mean()),
                    "test_macro_f1_mean": float(np.mean([found[name][seed]["test"]["macro_f1"] for seed in seeds])),
                    "seconds": [found[name][seed]["seconds"] for seed in seeds],
                    "versions": found[name][seeds[0]]["versions"],
                }
                for name, values in accuracy.items()
            },
            "difference": difference,
            "standard_error": error,
            "within_one_point_or_two_standard_errors": bool(agree),
        }
        means = " ".join(f"{accuracy[name].mean():8.4f}" for name in ("torch", "jaxptft"))
        verdict = "agree" if agree else "DIFFER"
        print(f"{row:4} {len(seeds):5} {means} {difference:+8.4f} {error:8.4f}  {verdict}")
    losses = work / "losses.json"
    peers.write_json(
        peers.RESULTS / "parity_sentiment.json",
        {
            "command": "python experiments/benchmarks/parity.py compare",
            "machine": peers.machine(),
            "verdict": "within 1 point or 2 standard errors of the difference of the means (seeds' sample variances)",
            "rows": report,
            "first_losses": json.loads(losses.read_text())["rows"] if losses.exists() else None,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("prepare", "torch", "jaxptft", "losses", "compare"))
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated; others may run in another process")
    parser.add_argument("--steps", type=int, help="a trial: this many steps an epoch, seed 0 only, to SIDE_trial.json")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    rows = arguments.rows.split(",")
    if arguments.command == "prepare":
        prepare(arguments.work)
    elif arguments.command == "torch":
        torch_side(arguments.work, rows, arguments.steps, arguments.threads)
    elif arguments.command == "jaxptft":
        jaxptft_side(arguments.work, rows, arguments.steps)
    elif arguments.command == "losses":
        losses_side(arguments.work, arguments.threads)
    else:
        compare(arguments.work)


if __name__ == "__main__":
    main()
