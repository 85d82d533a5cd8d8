"""What the processes of gpu.py measure: each function answers one request of one worker."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import interleaved
import numpy as np
import peers
import workload

REPEATS = 20


def clocked(run: Callable[[], Any]) -> float:
    """Median seconds of `run`, whose result is awaited, after two that are not counted."""
    import jax

    found = []
    for _ in range(REPEATS + 2):
        began = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - began)
    return statistics.median(found[2:])


def device(request: dict) -> dict:
    """What each side sees, told before anything is measured."""
    import jax

    found = jax.devices()[0]
    return {"platform": found.platform, "device": found.device_kind}


def torch_device(request: dict) -> dict:
    import torch

    return {"platform": "gpu" if torch.cuda.is_available() else "cpu"}


def matmul(request: dict) -> dict:
    import jax
    import jax.numpy as jnp

    size = request["matmul"]
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in (0, 1))
    product = jax.jit(jnp.matmul)
    return {"flops_per_second": 2 * size**3 / clocked(lambda: product(a, b))}


def torch_matmul(request: dict) -> dict:
    import torch

    size, where = request["matmul"], request["device"]
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=where) for _ in range(2))
    found = []
    for _ in range(REPEATS + 2):
        _wait(where)
        began = time.perf_counter()
        torch.mm(a, b)
        _wait(where)
        found.append(time.perf_counter() - began)
    return {"flops_per_second": 2 * size**3 / statistics.median(found[2:])}


def _wait(where: str) -> None:
    import torch

    if where == "cuda":
        torch.cuda.synchronize()


def check(request: dict) -> dict:
    """The loss of one batch, to be that of the others."""
    rows = np.load(Path(request["folder"]) / "rows.npy")[:4]
    model = Path(request["folder"]) / "model"
    if request["worker"].startswith("ours"):
        return {"loss": workload.our_loss(model, rows)}
    return {"loss": workload.torch_loss(model, rows, gathered=request["worker"].startswith("p1"))}


def train(request: dict) -> dict:
    """Our step, `together` at once."""
    import jax

    folder = Path(request["folder"])
    rows = np.load(folder / "rows.npy")
    together, free = request["together"], request["worker"] == "ours_free"
    changes: dict[str, Any] = {"attention_dropout": 0.0} if free else {}
    training = workload.Training(
        folder / "model", rows, batch=request["batch"], together=together, dtype="bfloat16", **changes
    )
    training.run(2 * together, first=0)
    steps = -(-request["steps"] // together) * together
    wall, cpu = time.perf_counter(), peers.cpu_seconds()
    losses = training.run(steps, first=2 * together)
    wall, cpu = time.perf_counter() - wall, peers.cpu_seconds() - cpu
    held = jax.devices()[0].memory_stats() or {}  # None on CPU
    return _measured(request, rows, losses, wall, cpu, held.get("peak_bytes_in_use"))


def torch_train(request: dict) -> dict:
    import torch

    folder, where = Path(request["folder"]), request["device"]
    rows = np.load(folder / "rows.npy")
    step = _torch_step(request, rows, batch=request["batch"])
    for _ in range(8):
        step().item()
    wall, cpu = time.perf_counter(), peers.cpu_seconds()
    found = [step() for _ in range(request["steps"])]
    losses = np.asarray([loss.item() for loss in found])  # which waits for them
    wall, cpu = time.perf_counter() - wall, peers.cpu_seconds() - cpu
    peak = torch.cuda.max_memory_allocated() if where == "cuda" else None
    return _measured(request, rows, losses, wall, cpu, peak)


def _torch_step(request: dict, rows: np.ndarray, *, batch: int) -> Any:
    gathered = request["worker"].startswith("p1")
    return workload.torch_training(
        Path(request["folder"]) / "model",
        rows,
        batch=batch,
        gathered=gathered,
        compiled=request["worker"] == "p1_compiled",
        device=request["device"],
        bf16=True,
        workers=min(4, os.cpu_count() or 1) if gathered and request["device"] == "cuda" else 0,
    )


def _measured(
    request: dict, rows: np.ndarray, losses: np.ndarray, wall: float, cpu: float, peak_bytes: int | None
) -> dict:
    half = len(losses) // 2
    return {
        "tokens": len(losses) * request["batch"] * rows.shape[1],
        "steps": len(losses),
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_rss_mb": peers.peak_rss_mb(),
        "peak_device_mb": None if peak_bytes is None else peak_bytes / 2**20,
        "losses": [float(losses[:half].mean()), float(losses[half:].mean())],
    }


def start(request: dict) -> dict:
    """Seconds from before the process began to the end of our first step, its programs kept as recipes keep them."""
    from jaxptft.recipes.runtime import keep_compiled_programs

    keep_compiled_programs()
    folder = Path(request["folder"])
    training = workload.Training(folder / "model", np.load(folder / "rows.npy"), batch=8, dtype="bfloat16")
    loss = float(training.run(1, first=0)[0])
    return {"seconds": time.time() - request["sent"], "loss": loss}


def torch_start(request: dict) -> dict:
    rows = np.load(Path(request["folder"]) / "rows.npy")
    loss = _torch_step(request, rows, batch=8)().item()
    return {"seconds": time.time() - request["sent"], "loss": loss}


def attention(request: dict) -> dict:
    """Milliseconds of attention, forward and backward, by implementation and kind of row; an error where it fails.

    `off` is how far its gradients are from those of XLA's, as a share of the largest entry: an implementation that let
    packed segments see each other would be fast, and far off.
    """
    import jax
    import jax.numpy as jnp

    from jaxptft.models import layers

    found: dict[str, Any] = {}
    plain = jax.nn.dot_product_attention
    for length in request["lengths"]:
        rows = max(1, request["tokens"] // length)
        shape = (rows, length, request["heads"], 64)
        q, k, v, slope = (jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i in range(4))
        segments = jnp.broadcast_to(jnp.arange(length) * 8 // length, (rows, length))
        packed = segments[:, :, None] == segments[:, None, :]
        every, lengths = jnp.ones((rows, length), bool), jnp.full(rows, length, jnp.int32)
        cut = {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths}
        drop = lambda x: layers.dropout(x, 0.1, jax.random.key(4))  # noqa: E731
        kinds: dict[str, Callable[..., jax.Array]] = {
            "xla": lambda *x: plain(*x, implementation="xla"),
            "cudnn": lambda *x: plain(*x, implementation="cudnn"),
            "cudnn lengths": lambda *x, cut=cut: plain(*x, implementation="cudnn", **cut),
            "dropout": lambda q, k, v, mask=every, drop=drop: layers.attend(q, k, v, mask, drop=drop),
            "xla packed": lambda *x, mask=packed[:, None]: plain(*x, mask=mask, implementation="xla"),
            "cudnn packed, as a bias": lambda *x, mask=packed[:, None]: plain(*x, mask=mask, implementation="cudnn"),
            "dropout packed": lambda q, k, v, mask=packed, drop=drop: layers.attend(q, k, v, mask, drop=drop),
        }
        right: dict[bool, Any] = {}
        for name, attend in kinds.items():

            def loss(q, k, v, attend=attend, slope=slope):
                return (attend(q, k, v) * slope).astype(jnp.float32).sum()

            gradient, of = jax.jit(jax.grad(loss, argnums=(0, 1, 2))), "packed" in name

            def one(gradient=gradient, name=name, of=of, given=(q, k, v), right=right):
                slopes = [np.asarray(leaf, np.float32) for leaf in gradient(*given)]
                right.setdefault(of, slopes)
                off = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(slopes, right[of], strict=True))
                told = {} if name.startswith("dropout") else {"off": float(off)}
                return {"milliseconds": 1e3 * clocked(lambda: gradient(*given)), **told}

            found[f"{name}, {length}"] = interleaved.tried(one)
    return {"by_implementation": found}


def vmap(request: dict) -> dict:
    """Steps a second of N runs as one program, over those of one."""
    import jax
    import jax.numpy as jnp

    from jaxptft import train as room

    folder = Path(request["folder"])
    rows = np.load(folder / "rows.npy")
    training = workload.Training(folder / "model", rows, batch=request["batch"], dtype="bfloat16")
    plain = room.make_step(training.objective, training.optimizer, trainable=training.trainable)
    batch = training.placed(0)

    def rate(runs: int) -> dict:
        state = jax.tree.map(lambda leaf: jnp.stack([leaf] * runs), training.state)
        step: Any = jax.jit(jax.vmap(plain, in_axes=(0, None, None)), donate_argnums=0)
        state, _ = step(state, training.constants, batch)
        jax.block_until_ready(state.step)
        began = time.perf_counter()
        for _ in range(request["steps"]):
            state, _ = step(state, training.constants, batch)
        jax.block_until_ready(state.step)
        return {"steps_per_second": runs * request["steps"] / (time.perf_counter() - began)}

    found = {str(runs): interleaved.tried(lambda runs=runs: rate(runs)) for runs in request["runs"]}
    alone = found["1"].get("steps_per_second")
    for one in found.values():
        if alone and "steps_per_second" in one:
            one["over_one"] = one["steps_per_second"] / alone
    return {"runs": found}


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
        name: interleaved.tried(lambda run=run: {"milliseconds": 1e3 * clocked(run)}) for name, run in kinds.items()
    }


OURS = {
    **{"device": device, "matmul": matmul, "check": check, "time": train, "start": start},
    **{"attention": attention, "vmap": vmap, "dropout": dropout},
}
THEIRS = {"device": torch_device, "matmul": torch_matmul, "check": check, "time": torch_train, "start": torch_start}
