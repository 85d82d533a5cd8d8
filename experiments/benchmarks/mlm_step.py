"""A step of masked language modelling: BERT of 4 layers, width 256, vocabulary 30,522, on 16 rows of 128 tokens.

    python experiments/benchmarks/mlm_step.py                         # results/mlm_step_cpu.json
    python experiments/benchmarks/mlm_step.py --rounds 1 --steps 8    # a smoke run

`p0` is transformers + torch as people run it: BertForMaskedLM, DataCollatorForLanguageModeling, fused AdamW, eager.
`p1` is the strongest honest torch setup: only the masked positions reach the vocabulary projection, and torch.compile
or large pages where a trial (which is recorded) finds them faster. `ours` is the library's objective and step with
eight steps a dispatch and large pages, `ours_plain` without either. Dropout .1, AdamW, clipping, fp32, all on the same
rows of the Brown corpus; masking, batching and the optimizer are inside the clock.

Before anything is timed, all must give the same loss of the same masked batch with dropout 0 (1e-4 relative); the loss
must fall over the timed steps. Model FLOPs count the matrix products of a forward pass of the tokens, and of the
projections of those that are masked (15 %), three times; MFU divides them by the best fp32 rate that either side's own
matmul reaches in this script.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import interleaved
import numpy as np
import parity
import peers

ROWS, LENGTH, WIDTH, LAYERS, VOCAB, RATE = 16, 128, 256, 4, 30522, 0.15
LEARNING_RATE, WARMUP, TOTAL = 3e-4, 100, 10_000
WORK, RESULT = parity.WORK.parent / "mlm_step", peers.RESULTS / "mlm_step_cpu.json"
CANDIDATES = [
    {"compile": False, "large_pages": False},
    {"compile": False, "large_pages": True},
    {"compile": True, "large_pages": True},
]
OURS = {"ours": {"together": 8, "large_pages": True}, "ours_plain": {"together": 1, "large_pages": False}}


def step_flops() -> float:
    """Model FLOPs of one step (see the module's docstring)."""
    tokens = ROWS * LENGTH
    layer = 2 * 12 * WIDTH**2 + 4 * LENGTH * WIDTH
    return 3 * tokens * (LAYERS * layer + RATE * 2 * (WIDTH**2 + WIDTH * VOCAB))


def prepare(work: Path) -> None:
    """Rows of the Brown corpus as token ids, and a model drawn by transformers."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    from jaxptft import data

    tokenizer = AutoTokenizer.from_pretrained(data.minilm_folder())
    lines = data.brown_corpus().read_text(encoding="utf-8").splitlines()
    found = tokenizer([json.loads(line)["text"] for line in lines], add_special_tokens=False)["input_ids"]
    tokens = np.concatenate([np.asarray(row, np.int32) for row in found])
    body = tokens[: len(tokens) // (LENGTH - 2) * (LENGTH - 2)].reshape(-1, LENGTH - 2)
    ends = [np.full((len(body), 1), token, np.int32) for token in (tokenizer.cls_token_id, tokenizer.sep_token_id)]
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    }
    BertForMaskedLM(BertConfig(vocab_size=VOCAB, **sizes)).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    np.save(work / "rows.npy", np.concatenate([ends[0], body, ends[1]], 1))


def masked_batch(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first rows with 15 % of their tokens masked, and the labels, -100 elsewhere: for the comparison of losses."""
    chosen = np.random.default_rng(0).random((ROWS, LENGTH)) < RATE
    chosen[:, [0, -1]] = False
    return np.where(chosen, 103, rows[:ROWS]), np.where(chosen, rows[:ROWS], -100)  # 103 is [MASK]


def ours(request: dict, rows: np.ndarray) -> dict:
    """The library's own step, from the same start."""
    import jax
    import jax.numpy as jnp

    from jaxptft import convert, data, losses, models, objectives, optim, train

    imported = convert.load(request["model"])
    tokenizer = data.load_tokenizer(request["model"])
    table = objectives.TokenTable(*data.token_table(tokenizer, VOCAB))
    model = models.build(imported.config, "masked_lm")
    if request["mode"] == "check":
        ids, labels = masked_batch(rows)
        logits = model.apply(imported.params, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        chosen = jnp.asarray(labels >= 0)
        total, count = losses.masked_token_cross_entropy(logits, jnp.maximum(labels, 0), chosen)
        return {"loss": float(total.sum() / count.sum())}
    together = request["options"]["together"]
    objective = objectives.masked_lm(model, tokens=table, group=ROWS)
    optimizer = optim.adamw(
        optim.schedule("linear", peak=LEARNING_RATE, steps=TOTAL, warmup=WARMUP),
        weight_decay=peers.DECAY,
        clip_norm=peers.CLIP,
    )
    trainable = jax.tree.map(lambda _: True, imported.params)
    mesh = train.make_mesh(jax.devices()[:1])

    def batch_at(step: int) -> dict[str, np.ndarray]:
        ids = np.arange(ROWS, dtype=np.int32) + step * ROWS
        full = np.ones((ROWS, LENGTH), np.int32)
        return {
            "input_ids": rows[ids % len(rows)],
            "attention_mask": full,
            "token_type_ids": 0 * full,
            "ids": ids,
            "valid": np.ones(ROWS, bool),
        }

    rng = jax.random.key(0)
    state = train.create_state(objective, optimizer, imported.params, batch_at(0), trainable=trainable, rng=rng)
    state, constants = train.replicate(state, mesh), train.replicate(objective.constants, mesh)
    step = train.jit_step(train.make_step(objective, optimizer, trainable=trainable), mesh, together=together)

    def dispatch(first: int) -> jax.Array:
        nonlocal state
        batches = [batch_at(first + number) for number in range(together)]
        placed: Any = train.shard(batches[0], mesh) if together == 1 else train.shard_together(batches, mesh, together)
        state, metrics = step(state, constants, placed)
        return metrics["loss"].total

    np.asarray(dispatch(0))
    found = []
    wall, cpu = time.perf_counter(), peers.cpu_seconds()
    for number in range(0, request["steps"], together):
        found.append(dispatch(together + number))
    values = np.concatenate([np.ravel(value) for value in found])
    wall, cpu = time.perf_counter() - wall, peers.cpu_seconds() - cpu
    return measured(request, values, wall, cpu) | {"versions": peers.versions("jax", "jaxlib", "flax", "optax")}


def measured(request: dict, values: np.ndarray, wall: float, cpu: float) -> dict:
    """A worker's answer."""
    return {
        "tokens": ROWS * LENGTH * request["steps"],
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_rss_mb": peers.peak_rss_mb(),
        "losses": [float(values[: len(values) // 2].mean()), float(values[len(values) // 2 :].mean())],
    }


def torchs(request: dict, rows: np.ndarray) -> dict:
    """transformers + torch: as people run it, or with the masked positions gathered and the request's options."""
    import torch
    from transformers import AutoTokenizer, BertForMaskedLM, DataCollatorForLanguageModeling

    torch.manual_seed(0)
    model: Any = BertForMaskedLM.from_pretrained(request["model"])
    gathered = request["worker"] == "p1"

    def loss_of(input_ids, attention_mask, labels):
        if not gathered:
            return model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
        hidden = model.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        chosen = (labels.view(-1) >= 0).nonzero().squeeze(1)
        logits = model.cls(hidden.view(-1, WIDTH)[chosen])
        return torch.nn.functional.cross_entropy(logits, labels.view(-1)[chosen])

    if request["mode"] == "check":
        ids, labels = (torch.from_numpy(part.astype(np.int64)) for part in masked_batch(rows))
        model.eval()
        with torch.no_grad():
            return {"loss": loss_of(ids, torch.ones_like(ids), labels).item()}
    model.train()
    if gathered and request["options"]["compile"]:
        model.bert = torch.compile(model.bert)  # the gather has another size each step
    collator = DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(request["model"]), mlm_probability=RATE)
    optimizer = peers.adamw(model, LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, peers.linear_with_warmup(TOTAL, WARMUP))
    loader = iter(
        torch.utils.data.DataLoader([{"input_ids": row} for row in rows], batch_size=ROWS, collate_fn=collator)  # pyright: ignore[reportArgumentType]
    )

    def step() -> torch.Tensor:
        batch = next(loader)
        ids = batch["input_ids"]
        loss = loss_of(ids, batch.get("attention_mask", torch.ones_like(ids)), batch["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), peers.CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return loss.detach()

    for _ in range(8):
        step().item()
    wall, cpu = time.perf_counter(), peers.cpu_seconds()
    values = np.asarray([step().item() for _ in range(request["steps"])])
    wall, cpu = time.perf_counter() - wall, peers.cpu_seconds() - cpu
    return measured(request, values, wall, cpu) | {"versions": peers.versions("torch", "transformers")}


def worker() -> None:
    request = json.load(sys.stdin)
    rows = np.load(Path(request["model"]).parent / "rows.npy")
    if request["worker"].startswith("ours"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: request["threads"]])
        print(json.dumps(ours(request, rows)))
    else:
        import torch

        torch.set_num_threads(request["threads"])
        print(json.dumps(torchs(request, rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24, help="timed steps a run, a multiple of 8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if not (WORK / "rows.npy").is_file():
        prepare(WORK)

    def ask(name: str, options: dict, *, mode: str = "time", steps: int = arguments.steps) -> dict:
        request = {"worker": name, "mode": mode, "options": options, "model": str(WORK / "model"), "steps": steps}
        pages = {"GLIBC_TUNABLES": interleaved.LARGE_PAGES} if options.get("large_pages") else {}
        return peers.ask(request | {"threads": arguments.threads}, script=Path(__file__), environment=pages)

    found = {name: ask(name, {}, mode="check")["loss"] for name in ("p0", "p1", "ours")}
    print(f"loss of one masked batch: {found}")
    if max(found.values()) - min(found.values()) > 1e-4 * min(found.values()):
        raise SystemExit("the workers do not compute the same: not timed")
    trials = [{"options": options, **ask("p1", options, steps=8)} for options in CANDIDATES]
    best = min(trials, key=lambda entry: entry["seconds"])["options"]
    print(f"p1: {best}")
    options = {"p0": {}, "p1": best, **OURS}
    rates = [interleaved.matmul_rates(arguments.threads)]
    in_turn = lambda name, _: ask(name, options[name])  # noqa: E731
    answers = interleaved.rounds(list(options), arguments.rounds, in_turn, amount="tokens")
    rates.append(interleaved.matmul_rates(arguments.threads))
    for name, rounds in answers.items():
        if arguments.steps >= 24 and any(answer["losses"][1] >= answer["losses"][0] for answer in rounds):
            raise SystemExit(f"{name}: the loss does not fall")
    rate = 1e9 * max(value for once in rates for side in once.values() for value in side.values())
    workers = interleaved.summary(answers, amount="tokens")
    for line in workers.values():
        line["model_flops_utilisation"] = line["tokens_per_second_median"] / (ROWS * LENGTH) * step_flops() / rate
    pairs = [("ours", "p0"), ("ours", "p1"), ("ours_plain", "p0"), ("ours", "ours_plain"), ("p1", "p0")]
    body = {
        "check": found,
        "p1_trials": trials,
        "options": options,
        "matmul_gflops_before_and_after": rates,
        "workers": workers,
        "ratios": interleaved.ratios(answers, pairs, amount="tokens"),
    }
    interleaved.write(arguments.out, answers, body)


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
