"""Tokens a second of the input pipeline alone: masking, padding or packing, batching; and how long steps wait for it.

    python experiments/benchmarks/pipeline.py             # results/pipeline_cpu.json
    python experiments/benchmarks/pipeline.py --smoke

Film-review sentences, tokenized beforehand, one epoch. `ours` packs them into rows of 128 tokens with numpy and masks
them on the device, compiled, as a training step does; `ours_batches` pads them to fitted lengths instead. `p0` is a
DataLoader with transformers' DataCollatorForLanguageModeling, `p1` its masking alone, on batches of sorted lengths
padded by numpy. Real tokens count. All must see the same tokens and treat the same shares of them alike (15 %; of these
80 / 10 / 10). The time of a wait is that of a pre-training by the recipe, from its speed.jsonl.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import interleaved
import numpy as np
import peers
import workload

WORK, ROWS, LENGTH, RATE = Path("runs/benchmarks/pipeline"), 64, 128, workload.RATE
NAMES = ("p0", "p1", "ours", "ours_batches")


def prepare(folder: Path, sentences: int | None) -> None:
    from jaxptft import data

    texts = sorted({text for text, _ in data.hutto_sentences("movies")})[:sentences]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(data.minilm_folder(), folder / "tokenizer", dirs_exist_ok=True)
    (folder / "texts.json").write_text(json.dumps(texts))
    (folder / "corpus.txt").write_text("\n".join(" ".join(text.split()) for text in texts) + "\n")


def ours(request: dict) -> dict:
    if request["mode"] == "waits":
        return waits(request)
    import jax

    from jaxptft import data, objectives

    folder = Path(request["folder"])
    tokenizer = data.load_tokenizer(folder / "tokenizer")
    texts = json.loads((folder / "texts.json").read_text())
    tokenized = data.tokenize(data.make_table(texts), tokenizer, LENGTH, cache=False)
    table = objectives.TokenTable(*data.token_table(tokenizer, len(tokenizer)))
    if request["worker"] == "ours":
        batches: Any = data.PackedBatches(tokenized, batch_size=ROWS, length=LENGTH)
    else:
        buckets = data.fitted_buckets(tokenized.lengths, 6, most=LENGTH)
        batches = data.Batches(tokenized, batch_size=ROWS, buckets=buckets)
    rng = jax.random.key(0)

    @jax.jit
    def mask(batch):
        corrupted, chosen = objectives.corrupt(rng, batch, table, objectives.Masking(rate=RATE))
        return corrupted, chosen

    shapes = {}
    for step in range(batches.steps_per_epoch):  # every shape compiled
        batch = batches.batch_at(step)
        if shapes.setdefault(batch["input_ids"].shape, step) == step:
            jax.block_until_ready(mask(batch))

    def epoch() -> Iterator[Any]:
        for step in range(batches.steps_per_epoch):
            batch = batches.batch_at(step)
            yield batch, mask(batch)

    wall, cpu = time.perf_counter(), peers.cpu_seconds()
    kept = list(epoch())
    jax.block_until_ready([found for _, found in kept])
    wall, cpu = time.perf_counter() - wall, peers.cpu_seconds() - cpu
    seen = [(b["input_ids"], np.asarray(c), np.asarray(chosen), b["attention_mask"] > 0) for b, (c, chosen) in kept]
    return measured(seen, wall, cpu, tokenizer)


def theirs(request: dict) -> dict:
    import torch
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    folder = Path(request["folder"])
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenizer")
    texts = json.loads((folder / "texts.json").read_text())
    rows = tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=RATE)
    torch.manual_seed(0)
    special = torch.tensor(tokenizer.all_special_ids)

    def p1() -> Iterator[Any]:
        for chosen in peers.bucketed_batches([len(row) for row in rows], 0, ROWS):
            batch = peers.tensors(peers.collate(rows, None, chosen))
            never = torch.isin(batch["input_ids"], special)
            ids, labels = collator.torch_mask_tokens(batch["input_ids"].clone(), never)
            yield {"input_ids": ids, "labels": labels, "attention_mask": batch["attention_mask"]}

    examples: Any = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    loader = torch.utils.data.DataLoader(examples, batch_size=ROWS, shuffle=True, collate_fn=collator)
    epoch = p1 if request["worker"] == "p1" else lambda: iter(loader)
    next(iter(epoch()))
    wall, cpu = time.perf_counter(), peers.cpu_seconds()
    kept = list(epoch())
    wall, cpu = time.perf_counter() - wall, peers.cpu_seconds() - cpu
    seen = []
    for batch in kept:
        ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
        chosen = labels != -100
        seen.append((np.where(chosen, labels, ids), ids, chosen, batch["attention_mask"].numpy() > 0))
    return measured(seen, wall, cpu, tokenizer)


def measured(seen: list, wall: float, cpu: float, tokenizer: Any) -> dict:
    """A worker's answer; `seen` holds what the tokens were, what they became, which were chosen, which are real."""
    special = np.asarray(tokenizer.all_special_ids)
    totals, known = np.zeros(5), 0
    for before, after, chosen, real in seen:
        ordinary = real & ~np.isin(before, special)
        masked, same = chosen & (after == tokenizer.mask_token_id), chosen & (after == before)
        totals += [real.sum(), ordinary.sum(), chosen.sum(), masked.sum(), same.sum()]
        known += int(before[real].astype(np.int64).sum())
    return {
        "tokens": int(totals[0]),
        "sum_of_ids": known,
        "shares": {
            "chosen": totals[2] / totals[1],
            "masked": totals[3] / totals[2],
            "kept": totals[4] / totals[2],
        },
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_rss_mb": peers.peak_rss_mb(),
    }


def waits(request: dict) -> dict:
    """The share of a run's steps in which there was no batch to go on with."""
    from jaxptft.recipes import pretrain

    folder, out = Path(request["folder"]), Path(request["folder"]) / "run"
    config = pretrain.Config(
        corpus=(str(folder / "corpus.txt"),),
        documents="line",
        tokenizer=str(folder / "tokenizer"),
        size="tiny" if request["smoke"] else "mini",
        out=out,
        max_length=LENGTH,
        rows="documents",
        pack=True,
        batch_size=16,
        steps=request["steps"],
        eval_rows=64,
        log_every=5,
        overwrite=out.exists(),
    )
    pretrain.run(config, say=lambda line: None)
    lines = [json.loads(line) for line in (out / "speed.jsonl").read_text().splitlines()][1:]  # the first compiles
    shutil.rmtree(out)
    return {"share": sum(line["waited"] for line in lines) / sum(line["seconds"] for line in lines)}


def agree(answers: interleaved.Answers) -> None:
    """SystemExit where workers saw other tokens, or treated other shares of them."""
    wanted = {"chosen": RATE, "masked": 0.8, "kept": 0.1}
    for name, found in answers.items():
        first = found[0]
        if any(first[key] != answers["p0"][0][key] for key in ("tokens", "sum_of_ids")):
            raise SystemExit(f"{name} has other tokens than p0")
        number = first["tokens"] * RATE
        for key, value in wanted.items():
            if abs(first["shares"][key] - value) > 6 * (value / number) ** 0.5 + 1e-3:
                raise SystemExit(f"{name}: the share {key} is {first['shares'][key]:.4f}, expected {value}")


def main() -> None:
    made = interleaved.parser(__doc__, "pipeline_cpu.json")
    made.add_argument("--steps", type=int, default=60, help="of the pre-training whose waits are measured")
    arguments = interleaved.parse(made)
    work = WORK / ("smoke" if arguments.smoke else "all")
    prepare(work, 640 if arguments.smoke else None)
    steps = 15 if arguments.smoke else arguments.steps

    def ask(name: str, mode: str = "time") -> dict:
        request = {"worker": name, "mode": mode, "folder": str(work), "steps": steps, "smoke": arguments.smoke}
        return peers.ask(request | {"threads": arguments.threads}, script=Path(__file__))

    answers = interleaved.rounds(NAMES, arguments.rounds, lambda name, _: ask(name), amount="tokens")
    agree(answers)
    waited = statistics.median(ask("ours", "waits")["share"] for _ in range(arguments.rounds))
    pairs = [("ours", "p0"), ("ours", "p1"), ("ours_batches", "p0"), ("p1", "p0")]
    ratios = interleaved.ratios(answers, pairs, amount="tokens")
    workers = interleaved.summary(answers, amount="tokens")
    goals = [
        interleaved.goal(">= 20x HF's collator", ratios["ours/p0"]["paired_median"], least=20.0),
        interleaved.goal("steps wait < 2 %", waited, most=0.02),
    ]
    rate = {name: workers[name]["tokens_per_second_median"] for name in ("p0", "p1", "ours")}
    line = interleaved.line("input pipeline", "tokens/s", **rate, goals=goals)
    body = {"table": [line], "waited_share": waited, "workers": workers, "ratios": ratios}
    interleaved.write(arguments.out, answers, body)


if __name__ == "__main__":
    interleaved.answer(ours, theirs) if sys.argv[1:] == ["worker"] else main()
