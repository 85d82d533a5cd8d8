"""What scanning layers and computing them again cost and save: seconds to compile, seconds a step, bytes of a step.

    python experiments/benchmarks/compile_time.py             # results/compile_time_cpu.json (on a GPU: _gpu)
    python experiments/benchmarks/compile_time.py --smoke     # a smoke run: 4 layers, narrow, one round

BERT of 12 layers (base) under masked language modelling: the library's objective and step (AdamW, dropout .1, fp32
parameters) on random tokens, in each way that its layers can run. Every measurement is a fresh process without a
compilation cache; ways take turns, and medians of the rounds are reported. `trace` is tracing and lowering, `compile`
XLA's own time, `step` the median of the timed steps, `temporary` what XLA reserves for a step beside parameters,
moments and batch. All ways must give the same losses, dropout included (1e-3 relative).
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import peers

WAYS: dict[str, dict[str, Any]] = {
    "one by one": {},
    "scan": {"scan_layers": True},
    "remat full": {"remat": "full"},
    "scan, remat full": {"scan_layers": True, "remat": "full"},
    "scan, remat dots": {"scan_layers": True, "remat": "dots"},
    "scan, remat dots_no_batch": {"scan_layers": True, "remat": "dots_no_batch"},
}
BASE = {"layers": 12, "width": 768, "heads": 12, "mlp_width": 3072, "vocab_size": 30522}
SMOKE = {"layers": 4, "width": 32, "heads": 2, "mlp_width": 64, "vocab_size": 200}
MEASURES = ("trace_seconds", "compile_seconds", "step_seconds", "temporary_mb")
AGREE = 1e-3


def measure(request: dict) -> dict:
    """One way, from nothing to its last timed step."""
    import jax

    from jaxptft import models, objectives, optim, train

    jax.config.update("jax_enable_compilation_cache", False)
    vocab, rows, length = request["shape"]["vocab_size"], request["rows"], request["length"]
    model = models.build(models.BertConfig(**request["shape"], dtype=request["dtype"], **request["way"]), "masked_lm")
    special = np.arange(vocab) < 5
    table = objectives.TokenTable(4, special, ~special)
    objective = objectives.masked_lm(model, tokens=table, group=rows)
    full = np.ones((rows, length), np.int32)
    batch = {
        "input_ids": np.random.default_rng(0).integers(5, vocab, (rows, length)).astype(np.int32),
        "attention_mask": full,
        "token_type_ids": 0 * full,
        "ids": np.arange(rows, dtype=np.int32),
        "valid": np.ones(rows, bool),
    }
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    trainable = jax.tree.map(lambda _: True, params)
    optimizer = optim.adamw(1e-4, weight_decay=0.01, clip_norm=1.0)
    state = train.create_state(objective, optimizer, params, batch, trainable=trainable, rng=jax.random.key(1))
    del params
    mesh = train.make_mesh(jax.devices()[:1])
    state, constants = train.replicate(state, mesh), train.replicate(objective.constants, mesh)
    placed = train.shard(batch, mesh)
    step: Any = train.jit_step(train.make_step(objective, optimizer, trainable=trainable), mesh)
    began = time.perf_counter()
    lowered = step.lower(state, constants, placed)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    losses, seconds = [], []
    for _ in range(request["steps"] + 1):
        start = time.perf_counter()
        state, metrics = compiled(state, constants, placed)
        losses.append(float(metrics["loss"].total))  # awaits the step
        seconds.append(time.perf_counter() - start)
    memory = compiled.memory_analysis()
    return {
        "trace_seconds": traced - began,
        "compile_seconds": done - traced,
        "step_seconds": statistics.median(seconds[1:]),
        "temporary_mb": None if memory is None else memory.temp_size_in_bytes / 2**20,
        "losses": losses,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "versions": peers.versions("jax", "jaxlib", "flax", "optax"),
    }


def summary(rounds: dict[str, list[dict]]) -> dict[str, dict[str, float | None]]:
    """Medians of each way, and each of them as a share of layers that run one by one."""
    table: dict[str, dict[str, float | None]] = {}
    for way, found in rounds.items():
        table[way] = {}
        for name in MEASURES:
            values = [one[name] for one in found]
            table[way][name] = None if None in values else statistics.median(values)
    for line in table.values():
        for name in MEASURES:
            own, usual = line[name], table["one by one"][name]
            line[f"{name}_ratio"] = None if own is None or not usual else own / usual
    return table


def check(rounds: dict[str, list[dict]]) -> None:
    """SystemExit where the ways do not compute the same."""
    expected = rounds["one by one"][0]["losses"]
    for way, found in rounds.items():
        for one in found:
            if not np.allclose(one["losses"], expected, rtol=AGREE):
                raise SystemExit(f"{way}: losses {one['losses']}, and one by one {expected}: not reported")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps a run")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--smoke", action="store_true", help="small, once; writes nothing without --out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    shape = dict(SMOKE if arguments.smoke else BASE)
    if arguments.layers is not None:
        shape["layers"] = arguments.layers
    options = {
        "shape": shape,
        "rows": 2 if arguments.smoke else arguments.rows,
        "length": 16 if arguments.smoke else arguments.length,
        "steps": 1 if arguments.smoke else arguments.steps,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
    }
    ways = list(dict.fromkeys(["one by one", *arguments.ways]))
    rounds: dict[str, list[dict]] = {way: [] for way in ways}
    for number in range(1 if arguments.smoke else arguments.rounds):
        turn = number % len(ways)
        for way in [*ways[turn:], *ways[:turn]]:
            request = options | {"worker": way, "mode": "measure", "way": WAYS[way]}
            found = peers.ask(request, script=Path(__file__))
            rounds[way].append(found)
            told = ", ".join(f"{name} {found[name]:.3f}" for name in MEASURES if found[name] is not None)
            print(f"round {number} {way}: {told}", flush=True)
    check(rounds)
    table, first = summary(rounds), rounds["one by one"][0]
    out = arguments.out
    if out is None and not arguments.smoke:
        out = peers.RESULTS / f"compile_time_{first['backend']}.json"
    if out is not None:
        head = {"machine": peers.machine(), "device": first["device"], "versions": first["versions"]}
        peers.write_json(out, {**head, "options": options, "ways": table, "rounds": rounds})
        print(f"written: {out}")


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        print(json.dumps(measure(json.load(sys.stdin))))
    else:
        main()
