"""What pre-training is worth: BBC topics from 5, 20 or 100 labels a class, pre-trained BERT-mini against scratch.

Needs experiments/pretrain_english.py to have run. Five seeds, which also choose the labelled articles.

Command:  python experiments/pretraining_worth.py
Result:   test accuracy with 5, 20, 100 labels a class: .504, .610, .808 pre-trained; .411, .499, .781 from scratch
"""

import json
from pathlib import Path

import numpy as np

from jaxptft import data
from jaxptft.recipes import finetune
from jaxptft.recipes.demo import write_csv

SEEDS, STEPS, OUT = range(5), {5: 60, 20: 60, 100: 200}, Path("runs/pretraining-worth")  # labels a class -> steps
MODEL, PICTURE = "runs/bert-mini-english", Path(__file__).parent / "results" / "pretraining_worth.png"


def accuracy_of(files: dict[str, Path], a_class: int, seed: int, *, from_scratch: bool) -> float:
    out = OUT / f"{'scratch' if from_scratch else 'pretrained'}-{a_class}-{seed}"
    if (out / "report.json").exists():  # of a run that came to its end
        return json.loads((out / "report.json").read_text())["test"]["metrics"]["classification/accuracy"]
    config = finetune.Config(
        model=MODEL,
        train=str(files["train"]),
        eval=str(files["validation"]),
        test=str(files["test"]),
        out=out,
        max_length=64,
        steps=STEPS[a_class],
        batch_size=16,
        length_buckets=1,
        learning_rate=5e-4,
        evaluate_every=20,
        seed=seed,
        from_scratch=from_scratch,
        overwrite=(out / "config.yaml").exists(),
    )
    return finetune.run(config, say=lambda line: None).reports["test"].metrics["classification/accuracy"]


def main() -> None:
    articles = dict(data.bbc_news())
    table = data.make_table(list(articles), list(articles.values()), source="BBC news")
    rest, test = data.split(table, 400, seed=0)
    pool, validation = data.split(rest, 100, seed=0)
    assert pool.labels is not None
    files = {"validation": write_csv(OUT / "validation.csv", validation), "test": write_csv(OUT / "test.csv", test)}
    found: dict[str, dict[int, list[float]]] = {"from scratch": {}, "pre-trained": {}}
    for a_class in STEPS:
        for seed in SEEDS:
            drawn = pool.select(data.draw_by_class(pool.labels, a_class, seed=seed))
            files["train"] = write_csv(OUT / f"train-{a_class}-{seed}.csv", drawn)
            for arm in found:
                value = accuracy_of(files, a_class, seed, from_scratch=arm == "from scratch")
                found[arm].setdefault(a_class, []).append(value)
                print(f"{a_class} a class, seed {seed}, {arm}: {value:.4f}", flush=True)
    plot(found)
    print(json.dumps(found))
    for arm, values in found.items():
        print(arm, {n: f"{np.mean(v):.3f} +- {np.std(v, ddof=1):.3f}" for n, v in values.items()})


def plot(found: dict[str, dict[int, list[float]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for arm, values in found.items():
        means, spread = ([f(each) for each in values.values()] for f in (np.mean, lambda v: np.std(v, ddof=1)))
        axes.errorbar(list(values), means, spread, marker="o", capsize=3, label=arm)
    axes.set(
        xscale="log",
        xticks=list(STEPS),
        xticklabels=list(STEPS),
        xlabel="labelled articles a class",
        ylabel="test accuracy",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    main()
