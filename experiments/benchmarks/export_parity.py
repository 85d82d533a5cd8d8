"""How far every export of a fine-tuned model is from the model, over 1,000 real sentences.

    python experiments/benchmarks/export_parity.py             # the demo's model; results/export_parity.json
    python experiments/benchmarks/export_parity.py --smoke     # a tiny random model and made-up sentences

Each format is written by `jaxptft export` and read twice. First by this library, from disk, before the export is kept
(`max_difference`). Then by those it is for, on the same token ids (`elsewhere`): `run.py` in a process that finds jax
and numpy alone (`alone.py`); torch with transformers; onnxruntime; and `flax.serialization`, whose parameters must be
the model's bit for bit. Differences are absolute. The sentences are film reviews that the demo's model has not seen.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import interleaved
import numpy as np
import peers

from jaxptft import data
from jaxptft.recipes import demo, export, export_formats, export_rows
from jaxptft.recipes.inference import Opened
from jaxptft.recipes.tasks.settings import Columns

RESULT, RUN, ROWS = "export_parity.json", Path("runs/demo/all-layers"), 1000
WORDS = ["a", "the", "film", "plot", "cast", "is", "was", "very", "so", "good", "bad", "dull", "long", "and", "not"]


def through_run_py(folder: Path, rows: dict[str, np.ndarray]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as place:
        given, out = Path(place) / "in.npz", Path(place) / "out.npz"
        np.savez(given, **rows)  # pyright: ignore[reportArgumentType]
        alone = Path(__file__).with_name("alone.py")
        words = [alone, folder / "run.py", given, "--out", out]
        subprocess.run([sys.executable, "-I", *map(str, words)], check=True)
        with np.load(out) as stored:
            return stored["logits"]


def through_torch(folder: Path, rows: dict[str, np.ndarray]) -> np.ndarray:
    import torch
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array).long() for name, array in rows.items()}).logits.numpy()


def through_onnxruntime(folder: Path, rows: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    return session.run(["logits"], rows)[0]


def same_parameters(folder: Path, opened: Opened) -> bool:
    import jax
    from flax.serialization import msgpack_restore

    params = msgpack_restore((folder / "params.msgpack").read_bytes())
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, params, opened.params)))


READERS = {"stablehlo": through_run_py, "hf": through_torch, "onnx": through_onnxruntime}


def measure(model: Path, source: Path, count: int, work: Path) -> dict[str, Any]:
    """Every format's differences from the model at `model`, over the first rows of `source`."""
    opened = Opened(model)
    live = export_formats.live(opened)
    asked: dict[str, Any] = {"run": None, "columns": Columns(), "split": None, "count": count, "say": print}
    batches, _ = export_rows.rows_of(opened, str(source), **asked)
    batches = [{name: batch[name][batch["valid"]] for name in live.inputs} for batch in batches]
    expected = [np.asarray(live.runs()(batch)["logits"]) for batch in batches]
    # One process reads all rows, as one array.
    length = max(batch["input_ids"].shape[1] for batch in batches)
    rows = {
        name: np.concatenate([np.pad(b[name], ((0, 0), (0, length - b[name].shape[1]))) for b in batches])
        for name in live.inputs
    }
    found: dict[str, Any] = {}
    for format in export.TOLERANCES:
        out = work / format
        values: dict[str, Any] = {"model": str(model), "format": format, "out": out, "data": str(source), "rows": count}
        export.run(export.Config(**values))
        record = json.loads((out / "export.json").read_text(encoding="utf-8"))
        line: dict[str, Any] = record["compared"] | {"tolerance": record["tolerance"]}
        line["source"] = source.name
        line["megabytes"] = round(sum(path.stat().st_size for path in out.iterdir()) / 1e6, 2)
        if format in READERS:
            logits = READERS[format](out, rows)
            line["elsewhere"] = float(np.abs(logits - np.concatenate(expected)).max())
        else:
            line["elsewhere"] = 0.0 if same_parameters(out, opened) else float("inf")
        found[format] = line
        print(f"{format}: elsewhere {line['elsewhere']:.2g}")
    return found


def tiny(folder: Path) -> tuple[Path, Path]:
    """A random model over a few words, and sentences of them."""
    import torch
    import transformers

    library: Any = transformers
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    config = transformers.BertConfig(vocab_size=len(special) + len(WORDS), initializer_range=0.5, **shape)
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "model")
    (folder / "model" / "vocab.txt").write_text("\n".join([*special, *WORDS]) + "\n")
    library.BertTokenizerFast(str(folder / "model" / "vocab.txt")).save_pretrained(folder / "model")
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 30))) for _ in range(64)]
    table = data.make_table(texts, [str(number % 2) for number in range(64)])
    return folder / "model", demo.write_csv(folder / "rows.csv", table)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--smoke", action="store_true", help="a tiny random model: only whether it runs")
    made.add_argument("--run", type=Path, default=RUN, help=f"a fine-tuned model of sentences (default: {RUN})")
    made.add_argument("--rows", type=int, default=ROWS)
    made.add_argument("--out", type=Path, help=f"the record (default: results/{RESULT})")
    asked = made.parse_args()
    out = asked.out or (interleaved.SMOKE if asked.smoke else peers.RESULTS) / RESULT
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        if asked.smoke:
            model, source = tiny(work)
        else:
            model, test = asked.run, demo.read_splits(demo.Config())["test"]
            source = demo.write_csv(work / "film-reviews.csv", test)
        exports = measure(model, source, asked.rows, work)
    record = {
        "command": "python experiments/benchmarks/" + " ".join([Path(__file__).name, *sys.argv[1:]]),
        "machine": peers.machine(),
        "versions": peers.versions("jax", "flax", "numpy", "torch", "transformers", "jax2onnx", "onnxruntime"),
        "model": "a tiny random model" if asked.smoke else str(RUN),
        "exports": exports,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
