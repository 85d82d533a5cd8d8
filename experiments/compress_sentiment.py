"""The demo's sentiment model made small: distilled, pruned, quantized, and all of it, beside the model itself.

The teacher is MiniLM fine-tuned on 4,000 film sentences, as the demo's best. Whatever is smaller learns its answers
(temperature 2) on all film sentences that are neither validation nor test, on tweets, product reviews and leading
articles, all without their labels:

    3 layers            the teacher's layers 1, 3, 5, six passes
    8 heads, 768        of the teacher's 12 heads and 1,536 neurons a layer those that matter most, two passes
    both                the same of the three layers, two passes
    60 % zero           the teacher's weights, of which the smallest go in the first pass of two (the shapes stay)

Each is quantized as well, in the way that is faster here. Every model is compared on the demo's 2,000 test sentences.
What is made is not made again.

Command:  python experiments/compress_sentiment.py
Result:   LOG.md, "The demo's model made small"; results/compress_sentiment.json and .png
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from jaxptft import data
from jaxptft.recipes import compare, demo, distill, finetune, prune, quantize

RESULTS = Path(__file__).parent / "results"
LEFT: dict[str, Any] = {"heads": 8, "neurons": 768}
ZEROS: dict[str, Any] = {"method": "magnitude", "sparsity": 0.6, "end": 0.5}
OTHERS = ("tweets", "amazon", "nyt")


def sentences(out: Path, held_out: int, labelled: int, pool: int) -> dict[str, str]:
    """Files of the demo's splits, and all texts that a student may read, without labels."""
    held: dict[str, Any] = {"test_rows": held_out, "validation_rows": held_out // 2}
    splits = demo.read_splits(demo.Config(train_rows=labelled, **held))
    texts = demo.read_splits(demo.Config(train_rows=pool, **held))["train"].texts
    for domain in OTHERS:
        texts = [*texts, *(text for text, _ in data.hutto_sentences(domain))][:pool]
    kept = {split: set(splits[split].texts) for split in ("validation", "test")}
    lines = dict.fromkeys(" ".join(text.split()) for text in texts)
    (out / "data").mkdir(parents=True, exist_ok=True)
    unlabelled = out / "data" / "unlabelled.txt"
    chosen = [line for line in lines if line and not any(line in texts for texts in kept.values())]
    unlabelled.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    files = {name: str(demo.write_csv(out / "data" / f"{name}.csv", table)) for name, table in splits.items()}
    return files | {"unlabelled": str(unlabelled)}


def made(config: Any, run: Any, sign: str) -> Path:
    """The folder of a config, made unless it was made before."""
    if not (config.out / sign).is_file():
        run(config.model_copy(update={"overwrite": config.out.exists()}))
    return config.out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000, help="labelled training sentences")
    parser.add_argument("--pool", type=int, default=100_000, help="texts without labels at most")
    parser.add_argument("--held-out", type=int, default=2000, help="test sentences; half as many choose the best model")
    parser.add_argument("--epochs", type=float, default=6, help="of the student of three layers")
    parser.add_argument("--again", type=float, default=2, help="passes of what was pruned")
    parser.add_argument("--timed", type=int, default=500, help="test sentences that times are of")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/compress-sentiment"))
    given = parser.parse_args()

    files = sentences(given.out, given.held_out, given.rows, given.pool)
    shared: dict[str, Any] = {
        "eval": files["validation"],
        "test": files["test"],
        "learning_rate": 2e-4,
        "max_length": 64,
        "length_buckets": 3,
    }
    own = {**shared, "train": files["train"], "model": str(data.minilm_folder()), "epochs": 1}
    teacher = made(finetune.Config(**own, out=given.out / "teacher"), finetune.run, "report.json")
    models = {"fine-tuned MiniLM": teacher}
    taught = {**shared, "train": files["unlabelled"], "unlabelled": True, "teacher": str(teacher)}
    own = {**taught, "student": "layers:1,3,5", "epochs": given.epochs, "out": given.out / "layers"}
    models["3 layers"] = made(distill.Config(**own), distill.run, "report.json")
    for name, source, ending in (("8 heads, 768", teacher, "slim"), ("both", models["3 layers"], "both")):
        slim = prune.Config(model=str(source), **LEFT, data=files["validation"], out=given.out / f"{ending}-start")
        start = made(slim, prune.run, "pruning.json")
        own = {**taught, "student": str(start), "epochs": given.again, "out": given.out / ending}
        models[name] = made(distill.Config(**own), distill.run, "report.json")
    own = {**taught, "student": str(teacher), "epochs": given.again, "out": given.out / "zeros"}
    models["60 % zero"] = made(distill.Config(**own, pruning=finetune.Pruning(**ZEROS)), distill.run, "report.json")
    for name, folder in list(models.items()):
        config = quantize.Config(model=str(folder), patterns=("**",), out=given.out / f"{folder.name}-int8")
        out = made(config, quantize.run, "quantization.json")
        mode = json.loads((out / "quantization.json").read_text())["mode"]
        models[f"{name}, int8 {mode}"] = out

    folders = tuple(str(folder) for folder in models.values())
    out = given.out / "comparison"
    config = compare.Config(
        models=folders,
        names=tuple(models),
        data=files["test"],
        rows=given.timed,
        rounds=given.rounds,
        out=out,
        overwrite=True,
    )
    compare.run(config)
    for suffix in ("json", "png"):
        shutil.copy(out / f"comparison.{suffix}", RESULTS / f"compress_sentiment.{suffix}")


if __name__ == "__main__":
    main()
