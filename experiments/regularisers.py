"""Which regulariser helps with 50, 200 and 1,000 labels: BBC topics, 64 tokens of an article, pre-trained BERT-mini.

Needs experiments/pretrain_english.py to have run. BBC, since there BERT-mini is far from what labels alone can give
(.504, .610, .808 with 25, 100, 500 of them: experiments/pretraining_worth.py, whose rate this is). Three seeds, which
also choose the labelled articles; within a seed all ways see the same ones, the same steps and the same validation
rows, which choose the best model. Each way has one setting, taken beforehand from its paper, not tuned here:

    L2 to pre-trained   .05 on what was imported, .005 on the rest: Li et al. 2018, alpha .1 and beta .01, halved
    EWC                 lambda 400: Kirkpatrick et al. 2017 (Atari); importance by masked words of 64 pre-training rows
    mixout              .7, the least of .7, .8, .9: Lee et al. 2020
    R-Drop              alpha 1, of .1, .5, 1 for GLUE: Liang et al. 2021, whose alpha is twice our weight
    auxiliary MLM       .5: Radford et al. 2018, section 3.2; on all articles that labels come from, 8 rows a step
    top layer alone     a quarter of the layers: Lee, Tang and Lin 2019
    LoRA                rank 8, alpha 8, query and value, rate x 4: Hu et al. 2021 (RoBERTa; theirs is x 10 and more)
    rates by layer      .8: Clark et al. 2020 (ELECTRA-small and base)

Only reports of the runs are kept, and runs that are done are not run again.

Command:  python experiments/regularisers.py
Result:   none helps beyond the spread of seeds; what holds the backbone back costs .09 to .17 of 1,000 labels: LOG.md
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxptft import data
from jaxptft.recipes import finetune
from jaxptft.recipes.demo import write_csv

MODEL, PICTURE = "runs/bert-mini-english", Path(__file__).parent / "results" / "regularisers.png"
NONE, RATE, STEPS = "none", 5e-4, {50: 50, 200: 60, 1000: 180}  # labels -> steps of 8 articles


def ways(unlabelled: Path) -> dict[str, dict[str, Any]]:
    """What each way changes in the config of plain fine-tuning."""
    pretrained_on = (str(data.brown_corpus()), str(data.sotu_corpus()))
    return {
        NONE: {},
        "L2 to pre-trained": {"l2_to_pretrained": 0.05, "l2": finetune.L2(new=0.005)},
        "EWC": {"ewc": finetune.Ewc(weight=200.0, corpus=pretrained_on, rows=64)},
        "mixout": {"mixout": 0.7},
        "R-Drop": {"r_drop": 0.5},
        "auxiliary MLM": {"auxiliary": finetune.Auxiliary(weight=0.5, corpus=(str(unlabelled),), documents="line")},
        "top layer alone": {"freeze": "all-but-top-1"},
        "LoRA": {"lora": finetune.Lora(rank=8, alpha=8.0), "learning_rate": 4 * RATE},
        "rates by layer": {"layer_decay": 0.8},
    }


def accuracy_of(config: finetune.Config) -> float:
    """Accuracy on the test articles, trained unless that was done before."""
    report = config.out / "report.json"
    if not report.is_file():
        again = config.model_copy(update={"overwrite": (config.out / "config.yaml").exists()})
        finetune.run(again, say=lambda line: None)
    for folder in ("checkpoints", "model", "adapter"):  # 100 MB a run
        shutil.rmtree(config.out / folder, ignore_errors=True)
    return json.loads(report.read_text())["test"]["metrics"]["classification/accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps, to try things out")
    parser.add_argument("--ways", nargs="+", help="some of them (default: all); 'none' is always among them")
    parser.add_argument("--out", type=Path, default=Path("runs/regularisers"))
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()

    articles = dict(data.bbc_news())
    everything = data.make_table(list(articles), list(articles.values()), source="BBC news")
    rest, test = data.split(everything, 384, seed=0)  # multiples of 64, the rows of an evaluation's batches
    pool, validation = data.split(rest, 128, seed=0)
    assert pool.labels is not None
    unlabelled = given.out / "data" / "unlabelled.txt"
    files = {
        name: write_csv(given.out / "data" / f"{name}.csv", part)
        for name, part in (("validation", validation), ("test", test))
    }
    unlabelled.write_text("\n".join(" ".join(text.split()) for text in pool.texts) + "\n", encoding="utf-8")

    changes = ways(unlabelled)
    changes = {name: own for name, own in changes.items() if not given.ways or name in (NONE, *given.ways)}
    found: dict[str, dict[int, list[float]]] = {name: {rows: [] for rows in given.labels} for name in changes}
    for seed in range(given.seeds):
        for rows in given.labels:
            drawn = pool.select(data.draw_by_class(pool.labels, rows // len(pool.names), seed=seed))
            train = write_csv(given.out / "data" / f"train-{rows}-{seed}.csv", drawn)
            steps = max(3, round(given.share * STEPS[rows]))
            for name, own in changes.items():
                shared: dict[str, Any] = {
                    "model": MODEL,
                    "train": str(train),
                    "eval": str(files["validation"]),
                    "test": str(files["test"]),
                    "out": given.out / f"{name.replace(' ', '-')}-{rows}-{seed}",
                    "max_length": 64,
                    "length_buckets": 1,
                    "batch_size": 8,
                    "steps": steps,
                    "evaluate_every": steps // 3,
                    "checkpoint_every": steps,
                    "learning_rate": RATE,
                    "seed": seed,
                }
                began = time.perf_counter()
                found[name][rows].append(accuracy_of(finetune.Config(**{**shared, **own})))
                told = f"{found[name][rows][-1]:.4f}, {time.perf_counter() - began:.0f} s"
                print(f"seed {seed}, {rows} labels, {name}: {told}", flush=True)
    table = compared(found)
    (given.out / "table.json").write_text(json.dumps(table, indent=2) + "\n")
    for row in table:
        spread, error = ("" if row[name] is None else f" ± {row[name]:.3f}" for name in ("deviation", "standard_error"))
        gain = "" if row["way"] == NONE else f"  gain {row['gain']:+.3f}{error}"
        print(f"{row['labels']:5} labels, {row['way']:18} {row['mean']:.3f}{spread}{gain}")
    plot(given.picture, table)


def compared(found: dict[str, dict[int, list[float]]]) -> list[dict[str, Any]]:
    """Mean and deviation of each way and size, and its gain over `none` of the same seeds."""
    table = []
    for rows in found[NONE]:
        for name, by_rows in found.items():
            values = by_rows[rows]
            gains, several = np.subtract(values, found[NONE][rows]), len(values) > 1
            row = {
                "labels": rows,
                "way": name,
                "accuracy": values,
                "mean": float(np.mean(values)),
                "deviation": float(np.std(values, ddof=1)) if several else None,
                "gain": float(gains.mean()),
                "standard_error": float(gains.std(ddof=1) / len(gains) ** 0.5) if several else None,
            }
            table.append(row)
    return table


def plot(path: Path, table: list[dict[str, Any]]) -> None:
    """The gain of each way over plain fine-tuning, a panel for each number of labels."""
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(row["labels"] for row in table))
    figure = Figure(figsize=(3.2 * len(sizes) + 1, 3.5), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, labels in zip(panels, sizes, strict=True):
        (plain,) = (row for row in table if row["labels"] == labels and row["way"] == NONE)
        rows = [row for row in table if row["labels"] == labels and row["way"] != NONE][::-1]
        gains, errors = [row["gain"] for row in rows], [row["standard_error"] or 0.0 for row in rows]
        axes.errorbar(gains, range(len(rows)), xerr=errors, fmt="o", capsize=3)
        axes.axvline(0.0, color="gray", linestyle=":", linewidth=1)
        axes.set_yticks(range(len(rows)), [row["way"] for row in rows])
        axes.set_title(f"{labels} labels: {plain['mean']:.3f} without", fontsize=10)
        axes.set_xlabel("gain in test accuracy")
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
