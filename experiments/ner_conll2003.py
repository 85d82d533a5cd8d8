"""Entities in news (CoNLL-2003) with MiniLM, beside transformers + torch: same sentences, hyper-parameters and steps.

Both fine-tune all layers with AdamW (rate 2e-4, linear with a tenth of warm-up, decay .01 but for biases and norms,
clip 1), dropout .1, batches of 32 sentences of nearly one length, and keep the best of the evaluations after each
epoch. Heads start at random, each side's own. Strict F1 on the test sentences. Each run is a process of its own on one
core, and its time is the process's CPU seconds: start, reading, compiling, training and evaluations. Runs that are done
are not run again.

Command:  python experiments/ner_conll2003.py
Result:   F1 .8666 (sd .0028) against torch's .8629 (.0015), at 1.78 times its CPU seconds: LOG.md
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIDES, SEEDS, EPOCHS, RATE, BATCH, LENGTH = ("jaxptft", "torch"), (0, 1, 2), 2, 2e-4, 32, 256
WORK = Path("runs/ner-conll2003")


def files_of(work: Path, rows: int | None) -> dict[str, Path]:
    """The three files; the first `rows` sentences of each where fewer are asked for."""
    from jaxptft import data

    files = data.conll2003()
    if rows is None:
        return files
    cut = {split: work / f"{split}-{rows}.txt" for split in files}
    for split, path in cut.items():
        sentences = files[split].read_text().split("\n\n")[1 : rows + 1]
        path.write_text("\n\n".join(sentences) + "\n")
    return cut


def jaxptft_side(work: Path, seed: int, rows: int | None) -> dict:
    """The finetune recipe."""
    from jaxptft import data
    from jaxptft.recipes import finetune

    files = files_of(work, rows)
    config = finetune.Config(
        task="token_classification",
        model=str(data.minilm_folder()),
        train=str(files["train"]),
        eval=str(files["valid"]),
        test=str(files["test"]),
        out=work / f"run-{seed}",
        epochs=EPOCHS,
        learning_rate=RATE,
        batch_size=BATCH,
        max_length=LENGTH,
        seed=seed,
        overwrite=(work / f"run-{seed}" / "config.yaml").exists(),
    )
    result = finetune.run(config)
    report = result.reports["test"]
    scores = {name.rpartition("/")[2]: value for name, value in report.metrics.items()}
    return {**scores, "types": report.details["types"]}


def torch_side(work: Path, seed: int, rows: int | None) -> dict:
    """The same with transformers + torch, as its examples do it, but in batches of nearly one length."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer, get_linear_schedule_with_warmup

    from jaxptft import data
    from jaxptft.recipes.metrics.spans import span_scores

    torch.manual_seed(seed)
    folder = data.minilm_folder()
    parts = {split: data.read_taggings(path) for split, path in files_of(work, rows).items()}
    names = data.read_taggings(data.conll2003()["train"]).names
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"is_split_into_words": True, "truncation": True, "max_length": LENGTH}
    encoded, labels, firsts = {}, {}, {}
    for split, part in parts.items():
        found = tokenizer(part.words, **options)
        encoded[split] = found["input_ids"]
        owners = [found.word_ids(row) for row in range(len(part))]
        firsts[split] = [[row.index(word) if word in row else None for word in range(len(words))]
                         for row, words in zip(owners, part.words, strict=True)]  # fmt: skip
        labels[split] = []
        for row, tags in enumerate(part.tags or []):
            label = np.full(len(encoded[split][row]), -100, np.int64)
            for place, tag in zip(firsts[split][row], tags, strict=True):
                if place is not None:
                    label[place] = names.index(tag)
            labels[split].append(label)

    def collate(split: str, chosen: np.ndarray) -> dict:
        longest = max(len(encoded[split][row]) for row in chosen)
        ids, mask = np.zeros((2, len(chosen), longest), np.int64)
        label = np.full((len(chosen), longest), -100, np.int64)
        for place, row in enumerate(chosen):
            length = len(encoded[split][row])
            ids[place, :length], mask[place, :length] = encoded[split][row], 1
            label[place, :length] = labels[split][row]
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids), "labels": label}
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def shuffled(epoch: int) -> list[np.ndarray]:
        """Sorted by length within windows of 50 batches; the batches in random order."""
        rng, lengths = np.random.default_rng((seed, epoch)), np.array([len(row) for row in encoded["train"]])
        order, batches = rng.permutation(len(lengths)), []
        for start in range(0, len(order), BATCH * 50):
            window = order[start : start + BATCH * 50]
            window = window[np.argsort(lengths[window], kind="stable")]
            batches += [window[first : first + BATCH] for first in range(0, len(window), BATCH)]
        return [batches[number] for number in rng.permutation(len(batches))]

    def score(split: str):
        model.eval()
        order = np.argsort([len(row) for row in encoded[split]], kind="stable")
        tags: list[list[str]] = [[]] * len(order)
        with torch.no_grad():
            for start in range(0, len(order), 64):
                chosen = order[start : start + 64]
                batch = collate(split, chosen)
                batch.pop("labels")
                for row, best in zip(chosen, model(**batch).logits.argmax(-1).numpy(), strict=True):
                    tags[row] = ["O" if place is None else names[best[place]] for place in firsts[split][row]]
        model.train()
        return span_scores(parts[split].tags or [], tags, "IOB2")

    model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=len(names)).train()
    plain = {name for name, _ in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name}
    groups = [
        {"params": [value for name, value in model.named_parameters() if name not in plain], "weight_decay": 0.01},
        {"params": [value for name, value in model.named_parameters() if name in plain], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    steps = EPOCHS * math.ceil(len(encoded["train"]) / BATCH)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(0.1 * steps), steps)
    best, kept = -1.0, {}
    for epoch in range(EPOCHS):
        for chosen in shuffled(epoch):
            model(**collate("train", chosen)).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        f1 = score("valid").micro.f1
        print(f"torch, seed {seed}, epoch {epoch + 1}: validation F1 {f1:.4f}", flush=True)
        if f1 > best:
            best, kept = f1, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    scores = score("test")
    types = {kind: found._asdict() for kind, found in scores.types.items()}
    return {**scores.micro._asdict(), "types": types}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--rows", type=int, help="sentences of each file, to try the script")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "SEED"), help="one run, in this process")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.one:
        side, seed = options.one[0], int(options.one[1])
        found = {"jaxptft": jaxptft_side, "torch": torch_side}[side](options.work, seed, options.rows)
        found["cpu_seconds"] = time.process_time()
        (options.work / f"{side}-{seed}.json").write_text(json.dumps(found, indent=2) + "\n")
        return
    table = {}
    for seed in SEEDS:
        for side in SIDES:
            path = options.work / f"{side}-{seed}.json"
            if not path.exists():
                rest = ["--rows", str(options.rows)] if options.rows else []
                command = [sys.executable, __file__, "--work", str(options.work), "--one", side, str(seed), *rest]
                subprocess.run(command, check=True)
            table[side, seed] = json.loads(path.read_text())
    for side in SIDES:
        rows = [table[side, seed] for seed in SEEDS]
        f1, seconds = (np.array([row[name] for row in rows]) for name in ("f1", "cpu_seconds"))
        types = ", ".join(
            f"{kind} {np.mean([row['types'][kind]['f1'] for row in rows]):.3f}" for kind in rows[0]["types"]
        )
        spread = f1.std(ddof=1)
        print(f"{side:8} F1 {f1.mean():.4f} (sd {spread:.4f}; {types}); {np.median(seconds):.0f} CPU s a run")


if __name__ == "__main__":
    main()
