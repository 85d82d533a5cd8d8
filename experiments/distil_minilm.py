"""MiniLM's 6 layers distilled to 3 and 2: what is kept of a sentiment classifier, and what is gained in speed.

The teacher is MiniLM fine-tuned on 2,000 film sentences (as in finetune_sentiment.py, one pass); a student has layers
1, 3, 5 or 2, 5, counted from 0. Each size is trained five ways, and each way over several seeds, every seed with a
teacher of its own:

    labels, pre-trained layers    MiniLM's own layers, fine-tuned on the labels alone
    labels, teacher's layers      the teacher's layers, trained on the labels alone
    labels + answers              and on the teacher's answers (temperature 2)
    labels + answers + inside     and on its hidden states and MiniLMv2's relations, 12 heads
    answers, no labels            on the answers alone, over 4,000 training sentences without their labels

Speed is sentences a second over the 2,000 test sentences, batches of 64 of nearly one length, the best of three passes.
Runs that are done are not run again.

Command:  python experiments/distil_minilm.py
Result:   3 layers keep 97.5 % of the teacher's accuracy at 2.0 times its speed, 2 layers 94.4 % at 2.9: LOG.md
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxptft import convert, data, objectives, train
from jaxptft.convert.surgery import keep_layers
from jaxptft.recipes import demo, distill, finetune
from jaxptft.recipes.inference import Opened

KEPT = {3: (1, 3, 5), 2: (2, 5)}
INSIDE: dict[str, Any] = {"hidden": 0.1, "relation": 1.0, "matching": distill.Matching(relation_heads=12)}
TEACHER = "teacher, 6 layers"


def arms(
    layers: int, seed: int, teacher: Path, files: dict[str, Path], out: Path, shared: dict[str, Any]
) -> dict[str, Any]:
    """The configs of one size's students, by what they learn from."""
    kept = KEPT[layers]
    starts = {}
    for name, source in (("pre-trained layers", data.minilm_folder()), ("teacher's layers", teacher / "model")):
        starts[name] = out / "starts" / f"{name.replace(' ', '-')}-{layers}-{seed}"
        convert.save(starts[name], keep_layers(convert.load(source), kept), tokenizer_from=source, overwrite=True)
    student = "layers:" + ",".join(map(str, kept))
    taught: dict[str, Any] = {**shared, "teacher": str(teacher), "student": student, "seed": seed}
    without = {**taught, "train": str(files["all"]), "unlabelled": True}
    plain = {
        f"labels, {name}": finetune.Config(
            **shared, model=str(start), seed=seed, out=out / f"{name.split()[0]}-{layers}-{seed}"
        )
        for name, start in starts.items()
    }
    return {
        **plain,
        "labels + answers": distill.Config(**taught, out=out / f"answers-{layers}-{seed}"),
        "labels + answers + inside": distill.Config(**taught, **INSIDE, out=out / f"inside-{layers}-{seed}"),
        "answers, no labels": distill.Config(**without, out=out / f"unlabelled-{layers}-{seed}"),
    }


def accuracy_of(config: finetune.Config) -> float:
    """Accuracy on the test sentences, trained unless that was done before."""
    report = config.out / "report.json"
    if not report.is_file():
        again = config.model_copy(update={"overwrite": (config.out / "config.yaml").exists()})
        distill.run(again) if isinstance(again, distill.Config) else finetune.run(again)
    return json.loads(report.read_text())["test"]["metrics"]["classification/accuracy"]


def speed_of(model: Path, table: data.Table, passes: int = 3) -> float:
    """Sentences a second; a first pass, which compiles, is not counted."""
    opened, seconds = Opened(model), []
    batches = opened.batches(table, batch_size=64, max_length=64, say=lambda _: None)
    objective = objectives.classification(opened.model("classification", classes=len(opened.names)))
    evaluator, params = train.make_evaluator(objective, labelled=False), jax.device_put(opened.params)
    for _ in range(passes + 1):
        began = time.perf_counter()
        train.evaluate(evaluator, params, {}, None, map(batches.batch_at, range(batches.steps_per_epoch)))
        seconds.append(time.perf_counter() - began)
    return len(table) / min(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000, help="labelled training sentences")
    parser.add_argument("--pool", type=int, default=4000, help="unlabelled training sentences at most")
    parser.add_argument("--held-out", type=int, default=2000, help="test sentences; half as many choose the best model")
    parser.add_argument("--out", type=Path, default=Path("runs/distil-minilm"))
    given = parser.parse_args()

    held = {"test_rows": given.held_out, "validation_rows": given.held_out // 2}
    splits = demo.read_splits(demo.Config(train_rows=given.rows, **held))
    splits["all"] = demo.read_splits(demo.Config(train_rows=given.pool, **held))["train"]
    files = {name: demo.write_csv(given.out / "data" / f"{name}.csv", table) for name, table in splits.items()}
    shared: dict[str, Any] = {
        "train": str(files["train"]),
        "eval": str(files["validation"]),
        "test": str(files["test"]),
        "learning_rate": 2e-4,
        "max_length": 64,
        "length_buckets": 3,
    }
    accuracy: dict[str, list[float]] = {}
    folders: dict[str, Path] = {}
    for seed in range(given.seeds):
        teacher = given.out / f"teacher-{seed}"
        own = finetune.Config(**shared, model=str(data.minilm_folder()), epochs=1, seed=seed, out=teacher)
        accuracy.setdefault(TEACHER, []).append(accuracy_of(own))
        folders[TEACHER] = teacher
        for layers in KEPT:
            for name, config in arms(layers, seed, teacher, files, given.out, {**shared, "epochs": 2}).items():
                row = f"{layers} layers, {name}"
                accuracy.setdefault(row, []).append(accuracy_of(config))
                folders[f"{layers} layers"] = config.out
                print(f"seed {seed}: {row}: {accuracy[row][-1]:.4f}", flush=True)
    test = data.read_table(str(files["test"]))
    speed = {name: speed_of(folder, test) for name, folder in folders.items()}
    table = []
    for name, found in accuracy.items():
        # Each student against the teacher of its own seed.
        kept = np.divide(found, accuracy[TEACHER])
        fast = speed[name if name == TEACHER else name.split(",")[0]]
        row = {
            "name": name,
            "accuracy": found,
            "mean": float(np.mean(found)),
            "deviation": float(np.std(found, ddof=1)) if len(found) > 1 else None,
            "kept": float(kept.mean()),
            "sentences_a_second": fast,
            "times_as_fast": fast / speed[TEACHER],
        }
        table.append(row)
        spread = "" if row["deviation"] is None else f" ± {row['deviation']:.4f}"
        times = f"{fast:7.0f}/s  x{row['times_as_fast']:.2f}"
        print(f"{name:42} {row['mean']:.4f}{spread}  kept {row['kept']:.1%}  {times}")
    (given.out / "table.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
