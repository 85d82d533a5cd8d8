"""What a GPU gives: one script of under ten minutes.

    python experiments/benchmarks/gpu.py             # results/gpu.json
    python experiments/benchmarks/gpu.py --smoke     # tiny sizes, on whatever device there is

Each part is processes of its own and guarded, so that one that fails leaves its error and the others their figures; the
record is written after each. BERT-base, bf16 over fp32 parameters, dropout .1, AdamW.

- matmul: the best bf16 rate of either side's product, which MFU is a share of.
- step_128, step_512: masked language modelling on rows of this length, the same number of tokens a step. `p0` is
  transformers + torch under autocast as people run it, `p1` and `p1_compiled` project only the masked positions and
  read ahead in four processes, `ours` has eight steps a dispatch, `ours_free` no dropout of attention either.
- attention: forward and backward of attention alone, by implementation; packed means eight segments a row.
- together: 1, 8 and 32 steps a dispatch, 32 rows. vmap: 1, 4 and 16 tiny runs as one program.
- dropout: one mask drawn by threefry, by XLA's generator (rbg), and by the library's mixer.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import interleaved
import numpy as np
import peers
import workload

WORK, LIMIT = Path("runs/benchmarks/gpu"), 150  # seconds that a process may take
TOKENS = 2**15  # a step
SMALL = workload.Size(2, 128, 2, 30522, 64)


def clocked(run: Callable[[], Any], *, repeats: int) -> float:
    """Median seconds of `run`, whose result is awaited, after two that are not counted."""
    import jax

    found = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - began)
    return statistics.median(found[2:])


def matmul(request: dict) -> dict:
    import jax
    import jax.numpy as jnp

    size = request["matmul"]
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in (0, 1))
    product = jax.jit(jnp.matmul)
    return {"flops_per_second": 2 * size**3 / clocked(lambda: product(a, b), repeats=20)}


def torch_matmul(request: dict) -> dict:
    import torch

    size, device = request["matmul"], request["device"]
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    found = []
    for _ in range(22):
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        found.append(time.perf_counter() - began)
    return {"flops_per_second": 2 * size**3 / statistics.median(found[2:])}


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def train(request: dict) -> dict:
    """Our step, `together` at once."""
    folder = Path(request["folder"])
    rows = np.load(folder / "rows.npy")
    if request["mode"] == "check":
        return {"loss": workload.our_loss(folder / "model", rows[:4])}
    together, free = request["together"], request["worker"] == "ours_free"
    changes: dict[str, Any] = {"attention_dropout": 0.0} if free else {}
    training = workload.Training(
        folder / "model", rows, batch=request["batch"], together=together, dtype="bfloat16", **changes
    )
    training.run(2 * together, first=0)
    steps = -(-request["steps"] // together) * together
    wall, cpu = time.perf_counter(), peers.cpu_seconds()
    losses = training.run(steps, first=2 * together)
    return measured(request, rows, losses, time.perf_counter() - wall, peers.cpu_seconds() - cpu)


def torch_train(request: dict) -> dict:
    folder, name = Path(request["folder"]), request["worker"]
    rows = np.load(folder / "rows.npy")
    gathered = name.startswith("p1")
    if request["mode"] == "check":
        return {"loss": workload.torch_loss(folder / "model", rows[:4], gathered=gathered)}
    step = workload.torch_training(
        folder / "model",
        rows,
        batch=request["batch"],
        gathered=gathered,
        compiled=name == "p1_compiled",
        device=request["device"],
        bf16=True,
        workers=4 if gathered and request["device"] == "cuda" else 0,
    )
    for _ in range(8):
        step().item()
    wall, cpu = time.perf_counter(), peers.cpu_seconds()
    found = [step() for _ in range(request["steps"])]
    losses = np.asarray([loss.item() for loss in found])  # which waits for them
    return measured(request, rows, losses, time.perf_counter() - wall, peers.cpu_seconds() - cpu)


def measured(request: dict, rows: np.ndarray, losses: np.ndarray, wall: float, cpu: float) -> dict:
    half = len(losses) // 2
    return {
        "tokens": len(losses) * request["batch"] * rows.shape[1],
        "steps": len(losses),
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_rss_mb": peers.peak_rss_mb(),
        "losses": [float(losses[:half].mean()), float(losses[half:].mean())],
    }


def attention(request: dict) -> dict:
    """Milliseconds of attention, forward and backward, by implementation and kind of row; an error where it fails."""
    import jax
    import jax.numpy as jnp

    found: dict[str, Any] = {}
    for length in request["lengths"]:
        rows = max(1, request["tokens"] // length)
        shape = (rows, length, request["heads"], 64)
        q, k, v = (jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i in range(3))
        segments = jnp.broadcast_to(jnp.arange(length) * 8 // length, (rows, length))
        packed = (segments[:, :, None] == segments[:, None, :])[:, None]
        lengths = jnp.full(rows, length, jnp.int32)
        kinds: dict[str, dict[str, Any]] = {
            "xla": {"implementation": "xla"},
            "xla packed": {"implementation": "xla", "mask": packed},
            "cudnn": {"implementation": "cudnn"},
            "cudnn lengths": {
                "implementation": "cudnn",
                "query_seq_lengths": lengths,
                "key_value_seq_lengths": lengths,
            },
            "cudnn packed, as a bias": {"implementation": "cudnn", "mask": packed},
        }
        for name, options in kinds.items():

            def loss(q, k, v, options=options):
                return jax.nn.dot_product_attention(q, k, v, **options).astype(jnp.float32).sum()

            gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
            found[f"{name}, {length}"] = interleaved.tried(
                lambda gradient=gradient, q=q, k=k, v=v: 1e3 * clocked(lambda: gradient(q, k, v), repeats=20)
            )
    return {"milliseconds": found}


def vmap(request: dict) -> dict:
    """Steps a second of N runs as one program, over those of one."""
    import jax
    import jax.numpy as jnp

    from jaxptft import train as room

    folder = Path(request["folder"])
    rows = np.load(folder / "rows.npy")
    training = workload.Training(folder / "model", rows, batch=request["batch"], dtype="bfloat16")
    plain = room.make_step(training.objective, training.optimizer, trainable=training.trainable)
    batch, found = training.placed(0), {}
    for runs in request["runs"]:
        state = jax.tree.map(lambda leaf, n=runs: jnp.stack([leaf] * n), training.state)
        step: Any = jax.jit(jax.vmap(plain, in_axes=(0, None, None)), donate_argnums=0)
        state, _ = step(state, training.constants, batch)
        jax.block_until_ready(state.step)
        began = time.perf_counter()
        for _ in range(request["steps"]):
            state, _ = step(state, training.constants, batch)
        jax.block_until_ready(state.step)
        found[str(runs)] = runs * request["steps"] / (time.perf_counter() - began)
    return {"steps_per_second": found, "over_one": {n: value / found["1"] for n, value in found.items()}}


def dropout(request: dict) -> dict:
    """Milliseconds of one dropout of a layer's activations, by generator."""
    import jax
    import jax.numpy as jnp

    from jaxptft.models import layers

    x = jnp.ones((request["tokens"], 64 * request["heads"]), jnp.bfloat16)

    def drawn(kind: str) -> Callable[[], Any]:
        key = jax.random.key(0, impl=kind)
        run = jax.jit(lambda key, x: jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x / 0.9, 0))
        return lambda: run(key, x)

    mixed, key = jax.jit(lambda key, x: layers.dropout(x, 0.1, key)), jax.random.key(0)
    kinds = {"threefry": drawn("threefry2x32"), "rbg": drawn("rbg"), "mixer": lambda: mixed(key, x)}
    return {
        "milliseconds": {
            name: interleaved.tried(lambda run=run: 1e3 * clocked(run, repeats=20)) for name, run in kinds.items()
        }
    }


def ours(request: dict) -> dict:
    import jax

    parts = {"matmul": matmul, "attention": attention, "vmap": vmap, "dropout": dropout}
    return {"device": jax.devices()[0].device_kind} | parts.get(request["mode"], train)(request)


def theirs(request: dict) -> dict:
    return (torch_matmul if request["mode"] == "matmul" else torch_train)(request)


class Report:
    """The record, written after each part."""

    def __init__(self, arguments: Any, device: str):
        self.path, self.began = arguments.out, time.perf_counter()
        self.body: dict[str, Any] = {"table": [], "machine": peers.machine(), "device": device, "parts": {}}
        self.answers: interleaved.Answers = {}

    def part(self, name: str, run: Callable[[], Any]) -> Any:
        """What `run` came to, or {"error": ...}, kept under its name."""
        began = time.perf_counter()
        found = interleaved.tried(run)
        self.body["parts"][name] = found | {"part_seconds": time.perf_counter() - began}
        print(name, json.dumps(found), flush=True)
        self.body["seconds"] = time.perf_counter() - self.began
        interleaved.write(self.path, self.answers, self.body)
        return found


def has_gpu() -> bool:
    """Whether torch sees one; it is asked first, since JAX would take most of the memory."""
    import torch

    return torch.cuda.is_available()


def main() -> None:
    made = interleaved.parser(__doc__, "gpu.json", rounds=2)
    made.set_defaults(threads=min(8, os.cpu_count() or 1))
    arguments = interleaved.parse(made)
    smoke, device = arguments.smoke, "cuda" if has_gpu() else "cpu"
    if device == "cpu" and not smoke:
        raise SystemExit("torch sees no GPU here; --smoke runs on any device")
    report = Report(arguments, device)
    steps, tokens = (4, 64) if smoke else (48, TOKENS)
    base = {"threads": arguments.threads, "device": device, "matmul": 64 if smoke else 8192, "tokens": tokens}
    base |= {"heads": 2 if smoke else 12, "lengths": [16, 32] if smoke else [128, 512]}

    def ask(name: str, mode: str, **more: Any) -> dict:
        cache = {"JAX_COMPILATION_CACHE_DIR": str((WORK / "cache").absolute())}
        exact = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"} if mode == "check" else {}
        request = {"worker": name, "mode": mode, **base, **more}
        return peers.ask(request, script=Path(__file__), environment=cache | exact, timeout=LIMIT)

    rates = {}
    for name in ("ours", "p0"):
        rates[name] = report.part(f"matmul_{name}", lambda name=name: ask(name, "matmul")).get("flops_per_second")
    rate = max((value for value in rates.values() if value), default=None)
    if found := report.body["parts"]["matmul_ours"].get("device"):
        report.body["machine"]["gpu"] = found

    shapes = dict(zip((128, 512), base["lengths"], strict=True))
    for label, length in list(shapes.items())[: 1 if smoke else 2]:
        size = (workload.SMOKE if smoke else workload.BASE)._replace(length=length)
        report.part(f"step_{label}", lambda s=size, n=label: steps_of(report, arguments, ask, s, steps, rate, n))

    mini = WORK / ("smoke" if smoke else "small")
    report.part("attention", lambda: ask("ours", "attention"))

    def together() -> dict:
        folder = WORK / f"{'smoke' if smoke else 'base'}-{base['lengths'][0]}"
        found = {}
        for number in (1, 2) if smoke else (1, 8, 32):
            options = {"folder": str(folder), "batch": 32, "steps": 2 * steps, "together": number}
            answer = ask("ours", "time", **options)
            found[str(number)] = answer["tokens"] / answer["seconds"]
        return {"tokens_per_second": found}

    report.part("together", together)

    def many() -> dict:
        workload.prepare(mini, workload.SMOKE if smoke else SMALL)
        runs = [1, 2] if smoke else [1, 4, 16]
        return ask("ours", "vmap", folder=str(mini), batch=32, steps=steps, runs=runs)

    found = report.part("vmap", many)
    report.part("dropout", lambda: ask("ours", "dropout"))
    most = max(found.get("over_one", {}).values(), default=None)
    goals = [interleaved.goal(">= 4x sequential at N = 16", most, least=4.0)]
    report.body["table"].append(interleaved.line("many runs as one program", "runs", ours=most, goals=goals))
    interleaved.write(report.path, report.answers, report.body)
    print(f"{report.path}: {time.perf_counter() - report.began:.0f} seconds")


def steps_of(
    report: Report,
    arguments: Any,
    ask: Callable[..., dict],
    size: workload.Size,
    steps: int,
    rate: float | None,
    label: int,
) -> dict:
    """The training step at one length: the check, the rounds, a line of the table."""
    folder = WORK / f"{'smoke' if arguments.smoke else 'base'}-{size.length}"
    batch = max(2, (64 if arguments.smoke else TOKENS) // size.length)
    workload.prepare(folder, size, rows=64 * batch)
    options = {"folder": str(folder), "batch": batch, "steps": steps, "together": 2 if arguments.smoke else 8}
    losses = {name: ask(name, "check", **options)["loss"] for name in ("p0", "p1", "ours")}
    workload.check(losses, within=1e-3)
    answers: interleaved.Answers = {}
    failed: dict[str, str] = {}
    for name in ("p0", "p1", "p1_compiled", "ours", "ours_free"):  # the first round shows what works here
        found = interleaved.tried(lambda name=name: ask(name, "time", **options))
        if "error" in found:
            failed[name] = found["error"]
        else:
            answers[name] = [found]
    run = lambda name, _: ask(name, "time", **options)  # noqa: E731
    for name, more in interleaved.rounds(list(answers), arguments.rounds - 1, run, amount="tokens").items():
        answers[name] += more
    report.answers |= {f"{name}_{label}": found for name, found in answers.items()}
    workers = interleaved.summary(answers, amount="tokens")
    speed = {name: values["tokens_per_second_median"] for name, values in workers.items()}
    p1 = max((speed[name] for name in ("p1", "p1_compiled") if name in speed), default=None)
    flops = size.step_flops(batch) / (batch * size.length)
    used = {name: value * flops / rate for name, value in speed.items()} if rate else {}
    own, p0 = speed.get("ours"), speed.get("p0")
    goals = [
        interleaved.goal(">= 2.5x P0", own / p0 if own and p0 else None, least=2.5),
        interleaved.goal(">= 1.3x P1", own / p1 if own and p1 else None, least=1.3),
        interleaved.goal("MFU >= 50 %", used.get("ours"), least=0.5),
    ]
    limit = rate / flops if rate else None
    values = {"p0": p0, "p1": p1, "ours": own, "limit": limit}
    report.body["table"].append(interleaved.line(f"MLM step, BERT-base, {label}", "tokens/s", **values, goals=goals))
    return {"check": losses, "batch": batch, "failed": failed, "workers": workers, "model_flops_utilisation": used}


if __name__ == "__main__":
    interleaved.answer(ours, theirs) if sys.argv[1:] == ["worker"] else main()
