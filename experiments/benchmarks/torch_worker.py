"""A fresh process that fine-tunes with transformers + torch and reports: the two peers of `finetune.py`.

One JSON request on stdin, one JSON answer as the last line of stdout; `finetune.py` describes both.

- `p0`, as people run it: `DataLoader` with random batches and `DataCollatorWithPadding`, Trainer's default fused
  AdamW, clipping, schedule, eager.
- `p1`, the best honest torch setup: length-bucketed batches, numpy collation, loss read once at the end, the penalty
  added to the gradient by one foreach call, and the request's `options` (compile, attention, optimizer, multiple).
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import peers
import torch
from peers import cpu_seconds


def p0_batches(request: dict, tokens: peers.Tokens, labels: np.ndarray, rows: list[int]) -> Iterator[dict]:
    """Random batches through a DataLoader, padded by transformers' collator."""
    from transformers import AutoTokenizer, DataCollatorWithPadding

    examples = [
        {"input_ids": tokens[row], "attention_mask": [1] * len(tokens[row]), "label": int(labels[row])} for row in rows
    ]
    collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(request["init"]))
    generator = torch.Generator().manual_seed(request["seed"])
    loader = torch.utils.data.DataLoader(
        examples,  # pyright: ignore[reportArgumentType]  (any sequence will do)
        batch_size=request["batch"],
        shuffle=True,
        collate_fn=collator,
        generator=generator,
    )
    return iter(loader)


def p1_batches(request: dict, tokens: peers.Tokens, labels: np.ndarray, rows: list[int]) -> Iterator[dict]:
    """Length-bucketed batches, padded to a multiple of `options.multiple`."""
    chosen = np.asarray(rows)
    lengths = [len(tokens[row]) for row in rows]
    for batch in peers.bucketed_batches(lengths, request["seed"], request["batch"]):
        yield peers.tensors(peers.collate(tokens, labels, chosen[batch], request["options"]["multiple"]))


def p0_step(model, optimizer, schedule, reference: list, strength: float) -> Callable[[dict], torch.Tensor]:
    """The loop body of any tutorial."""

    def step(batch: dict) -> torch.Tensor:
        loss = task = model(**batch).loss
        if reference:
            loss = task + strength * sum(((tensor - start) ** 2).sum() for tensor, start in reference)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), peers.CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return task.detach()

    return step


def p1_step(model, forward, optimizer, schedule, reference: list, strength: float) -> Callable[[dict], torch.Tensor]:
    """The same mathematics with fewer small operations."""
    trainable = [tensor for tensor in model.parameters() if tensor.requires_grad]
    theta, start = ([pair[i] for pair in reference] for i in (0, 1))

    def step(batch: dict) -> torch.Tensor:
        loss = forward(**batch).loss
        loss.backward()
        if theta:
            with torch.no_grad():  # the gradient of strength * ||theta - start||^2
                away = torch._foreach_sub([tensor.detach() for tensor in theta], start)
                torch._foreach_add_([tensor.grad for tensor in theta], away, alpha=2.0 * strength)
        torch.nn.utils.clip_grad_norm_(trainable, peers.CLIP, foreach=True)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def build(request: dict, *, dropout: bool, total: int, warmup: int) -> Callable[[dict], torch.Tensor]:
    """The training step of the request's worker, on a model loaded from its folder."""
    plan, options = request["plan"], request["options"]
    torch.manual_seed(request["seed"])
    model = peers.load(request["init"], dropout=dropout)
    peers.freeze(model, plan["frozen_layers"])
    reference = peers.reference_of(model) if plan["l2_to_pretrained"] else []
    if request["worker"] == "p0":
        optimizer = peers.adamw(model, plan["learning_rate"], fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, peers.linear_with_warmup(total, warmup))
        return p0_step(model, optimizer, schedule, reference, plan["l2_to_pretrained"])
    model.set_attn_implementation(options["attention"])
    optimizer = peers.adamw(model, plan["learning_rate"], **{options["optimizer"]: True})
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, peers.linear_with_warmup(total, warmup))
    forward = model
    if options["compile"] != "no":
        torch._dynamo.config.cache_size_limit = 256
        forward = torch.compile(model, dynamic=options["compile"] == "dynamic")
    return p1_step(model, forward, optimizer, schedule, reference, plan["l2_to_pretrained"])


def check(request: dict, tokens: peers.Tokens, labels: np.ndarray) -> dict:
    """Task losses of the requested batches, dropout 0."""
    step = build(request, dropout=False, total=request["total"], warmup=request["warmup"])
    multiple = request["options"]["multiple"]
    batches = [peers.tensors(peers.collate(tokens, labels, np.asarray(rows), multiple)) for rows in request["batches"]]
    return {"losses": [step(batch).item() for batch in batches]}


def timed(request: dict, tokens: peers.Tokens, labels: np.ndarray) -> dict:
    """Wall and CPU seconds of one pass over the requested sentences, collation included, after a warm-up.

    The warm-up runs the first batches and, when compiled, one batch of every length that the timed pass will meet.
    """
    step = build(request, dropout=True, total=10_000, warmup=1_000)
    batches = partial(p0_batches if request["worker"] == "p0" else p1_batches, request, tokens, labels)
    warm = list(batches(request["rows"]))
    first = {batch["input_ids"].shape: batch for batch in warm}
    extra = list(first.values()) if request["options"]["compile"] != "no" else []
    step(warm[0]).item()
    to_first_step = time.time() - request["sent"]
    for batch in [*warm[1 : request["warm_steps"]], *extra]:
        step(batch)
    losses, padded = [], 0
    wall, cpu = time.perf_counter(), cpu_seconds()
    for batch in batches(request["rows"]):
        padded += batch["input_ids"].numel()
        loss = step(batch)
        losses.append(loss.item() if request["worker"] == "p0" else loss)
    last = float(losses[-1])
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return {
        "sentences": len(request["rows"]),
        "steps": len(losses),
        "seconds": wall,
        "cpu_seconds": cpu,
        "real_tokens": sum(len(tokens[row]) for row in request["rows"]),
        "padded_tokens": padded,
        "peak_rss_mb": peers.peak_rss_mb(),
        "seconds_to_first_step": to_first_step,
        "last_loss": last,
    }


def matmul(shapes: list[list[int]], repeats: int = 20) -> dict:
    """Best fp32 GFLOP/s of [m, k] @ [k, n] for each (m, k, n)."""
    rates = {}
    for m, k, n in shapes:
        a, b = torch.randn(m, k), torch.randn(k, n)
        best = float("inf")
        for _ in range(repeats):
            begun = time.perf_counter()
            torch.mm(a, b)
            best = min(best, time.perf_counter() - begun)
        rates[f"{m}x{k}x{n}"] = 2e-9 * m * k * n / best
    return {"gflops": rates}


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    if request["mode"] == "matmul":
        answer = matmul(request["shapes"])
    else:
        texts, labels = peers.read_rows(Path(request["data"]))
        wanted = sorted(set(request.get("rows", [])).union(*request.get("batches", [])))
        tokens = dict(zip(wanted, peers.encode(request["init"], [texts[row] for row in wanted]), strict=True))
        answer = (check if request["mode"] == "check" else timed)(request, tokens, labels)
    print(json.dumps({**answer, "versions": peers.versions("torch", "transformers", "numpy")}))


if __name__ == "__main__":
    main()
