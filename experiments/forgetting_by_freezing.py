"""What BERT-mini forgets of its pre-training when it learns BBC topics from 200 labels, by what of it may train.

Needs experiments/pretrain_english.py to have run. Forgetting is measured, for the best model on validation rows, on the
beginnings of the 45 documents that the pre-training held out: the loss of masked words before and after with the head
of the pre-training, how far the parameters drifted, and the debiased CKA of the first and the last layer's hidden
states with what they were. Three seeds, which also choose the labelled articles; within a seed all ways see the same
ones and the same steps. BERT-mini came without a pooler, which therefore starts afresh and trains in every way.

    all layers          rate 2.5e-4, chosen by one seed's validation among 1e-4, 2.5e-4 and 5e-4; that of all others,
                        but where it says x 8
    L2 to pre-trained   .05 on what was imported, .005 on the rest: no freezing, for comparison (Li et al. 2018)
    rates by layer      .8 (Clark et al. 2020)
    gradual             a layer more each .15 of the steps, from the top, the embeddings last (Howard and Ruder 2018)
    top 2, top 1        these layers
    biases              and pooler and head (BitFit, Ben Zaken et al. 2022), rate x 8
    LoRA                rank 8, alpha 8, query and value (Hu et al. 2021), rate x 8
    head alone          pooler and classifier, rate x 8

Only reports of the runs are kept, and runs that are done are not run again.

Command:  python experiments/forgetting_by_freezing.py
Result:   all layers .605 at .28 nats of forgetting; top layer alone .548 at .01; head alone .435: LOG.md
"""

import argparse
import json
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jaxptft import data
from jaxptft.recipes import finetune
from jaxptft.recipes.demo import write_csv
from jaxptft.recipes.training_settings import Unfreeze

MODEL, PICTURE = "runs/bert-mini-english", Path(__file__).parent / "results" / "forgetting.png"
HELD_OUT, BEGINNING = 0.05, 4000  # the share of documents in the pre-training's config, and characters of each
RATE, FEW = 2.5e-4, {"learning_rate": 2e-3}  # the second for ways that train few parameters
WAYS: dict[str, dict[str, Any]] = {
    "all layers": {},
    "L2 to pre-trained": {"l2_to_pretrained": 0.05, "l2": finetune.L2(new=0.005)},
    "rates by layer": {"layer_decay": 0.8},
    "gradual": {"unfreeze": Unfreeze(every=0.15)},
    "top 2": {"freeze": "all-but-top-2"},
    "top 1": {"freeze": "all-but-top-1"},
    "biases": {"bitfit": True, **FEW},
    "LoRA": {"lora": finetune.Lora(rank=8, alpha=8.0), **FEW},
    "head alone": {"freeze": "backbone", **FEW},
}


def held_text(path: Path) -> Path:
    """The beginnings of the documents that MODEL was evaluated on and never trained on."""
    corpus = (str(data.brown_corpus()), str(data.sotu_corpus()))
    whole = data.tokenize_corpus(corpus, data.load_tokenizer(Path(MODEL) / "model"))
    held = set(_documents(data.split_documents(whole, HELD_OUT, seed=0)[1]))
    texts = [text for text, own in zip(data.read_corpus(corpus), _documents(whole), strict=True) if own in held]
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text[:BEGINNING]}) + "\n" for text in texts)
    return path


def _documents(store: data.TokenStore) -> list[bytes]:
    """The tokens of each document."""
    bounds = store.sentences[store.documents].tolist()
    return [store.tokens[start:end].tobytes() for start, end in pairwise(bounds)]


def report_of(config: finetune.Config) -> dict[str, Any]:
    """The numbers of a run, trained unless that was done before."""
    report = config.out / "report.json"
    if not report.is_file():
        again = config.model_copy(update={"overwrite": (config.out / "config.yaml").exists()})
        finetune.run(again, say=lambda line: None)
    for folder in ("checkpoints", "model", "adapter"):  # 100 MB a run
        shutil.rmtree(config.out / folder, ignore_errors=True)
    found = json.loads(report.read_text())
    forgotten = found["forgetting"]
    cka = [layer["cka_debiased"] for layer in forgotten["layers"] if layer["name"].startswith("layer_")]
    return {
        "accuracy": found["test"]["metrics"]["classification/accuracy"],
        "loss_before": forgotten["pretraining_loss"]["before"],
        "loss_after": forgotten["pretraining_loss"]["after"],
        "loss_rise": forgotten["pretraining_loss"]["after"] - forgotten["pretraining_loss"]["before"],
        "drift": forgotten["drift"],
        "drift_cosine": forgotten["drift_cosine"],
        "cka_first": cka[0],
        "cka_last": cka[-1],
        "best_step": found["best_step"],
        "suggested": forgotten["freeze"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--held-rows", type=int, default=256, help="held texts of 64 tokens")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, default=Path("runs/forgetting-by-freezing"))
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()

    articles = dict(data.bbc_news())
    everything = data.make_table(list(articles), list(articles.values()), source="BBC news")
    rest, test = data.split(everything, 384, seed=0)  # multiples of 64, the rows of an evaluation's batches
    pool, validation = data.split(rest, 128, seed=0)
    assert pool.labels is not None
    files = {
        name: str(write_csv(given.out / "data" / f"{name}.csv", part))
        for name, part in (("eval", validation), ("test", test))
    }
    held = held_text(given.out / "data" / "held.jsonl")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in given.ways}
    for seed in range(given.seeds):
        drawn = pool.select(data.draw_by_class(pool.labels, given.labels // len(pool.names), seed=seed))
        train = write_csv(given.out / "data" / f"train-{seed}.csv", drawn)
        for name, own in found.items():
            shared: dict[str, Any] = {
                **files,
                "model": MODEL,
                "train": str(train),
                "out": given.out / f"{name.replace(' ', '-')}-{seed}",
                "max_length": 64,
                "length_buckets": 1,
                "batch_size": 8,
                "steps": given.steps,
                "evaluate_every": max(1, given.steps // 3),
                "checkpoint_every": given.steps,
                "learning_rate": RATE,
                "seed": seed,
                "forgetting": finetune.Forgetting(corpus=(str(held),), rows=given.held_rows, every="run"),
            }
            began = time.perf_counter()
            own.append(report_of(finetune.Config(**{**shared, **WAYS[name]})))
            told = ", ".join(f"{key} {own[-1][key]:.4f}" for key in ("accuracy", "loss_before", "loss_after", "drift"))
            print(f"seed {seed}, {name}: {told}, {time.perf_counter() - began:.0f} s", flush=True)
    (given.out / "table.json").write_text(json.dumps(found, indent=2) + "\n")
    for name, own in found.items():
        print(f"{name:18} {shown(own)}")
    plot(given.picture, found)


def of(runs: list[dict[str, Any]], key: str) -> tuple[float, float]:
    """Mean and deviation over the seeds."""
    values = [run[key] for run in runs]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def shown(runs: list[dict[str, Any]]) -> str:
    """One line of the table."""
    spreads = {"accuracy": "accuracy", "loss_before": "loss", "loss_after": "->", "drift": "drift"}
    cells = [f"{word} {of(runs, key)[0]:.3f} ± {of(runs, key)[1]:.3f}" for key, word in spreads.items()]
    plain = {"drift_cosine": "its cosine", "cka_first": "CKA, first layer", "cka_last": "last"}
    cells += [f"{word} {of(runs, key)[0]:.4f}" for key, word in plain.items()]
    return "  ".join([*cells, "suggested " + ", ".join(run["suggested"] for run in runs)])


def plot(path: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """Accuracy on the task against the rise of the pre-training loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for marker, (name, runs) in zip("os^vDPXd<", found.items(), strict=False):
        (rise, rise_spread), (accuracy, spread) = of(runs, "loss_rise"), of(runs, "accuracy")
        axes.errorbar(rise, accuracy, spread, rise_spread, fmt=marker, capsize=3, label=name)
    axes.set(xlabel="rise of the pre-training loss on held text, nats a token", ylabel="test accuracy")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
