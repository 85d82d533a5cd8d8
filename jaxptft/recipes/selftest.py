"""What to run first on a new machine: does it compute, save, restore and resume as it should?

Everything is tiny and made up on the spot, or comes with scikit-learn; nothing is fetched. The runs that are killed are
processes of their own, and come first: this process takes the devices, and an accelerator may have room for one.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pydantic import Field

from jaxptft.recipes.settings import Settings

_SAVED_EVERY = 40
_RUN = (
    *("pretrain", "images", "--data", "sklearn:digits", "--objective", "denoising", "--backbone", "mlp"),
    *("--shape.widths", "16", "--code.size", "8", "--batch-size", "32", "--steps", "480", "--log-every", "1"),
    *("--checkpoint-every", str(_SAVED_EVERY), "--evaluate-every", "240", "--eval-rows", "100", "--no-pictures"),
)


class Config(Settings):
    """Test this machine: jaxptft selftest"""

    folder: Path | None = None
    """where to write meanwhile, best on the disk that runs will be on (default: the system's temporary folder)"""
    limit: float = Field(default=300.0, gt=0)
    """seconds that a run in a process of its own may take"""


class Outcome(NamedTuple):
    """What came of one check."""

    name: str
    passed: bool
    detail: str  # what was found, or what is wrong
    seconds: float


class Failed(Exception):
    """A check found something that is not as it should be."""


def run(config: Config, *, say: Callable[[str], None] = print) -> list[Outcome]:
    """Say in a table what passed and what failed.

    Raises NotADirectoryError where `folder` is none and, after all was said, RuntimeError where a check failed.
    """
    if config.folder is not None and not config.folder.is_dir():
        raise NotADirectoryError(f"{config.folder} is no folder; make it, or leave folder out")
    outcomes = []
    with TemporaryDirectory(prefix="jaxptft-selftest-", dir=config.folder, ignore_cleanup_errors=True) as made:
        for name, check in CHECKS.items():
            say(f"{name} ...")
            began = time.perf_counter()
            try:
                passed, detail = True, check(Path(made), config.limit)
            except Exception as error:  # whatever is wrong with this machine, the other checks are still worth having
                known = isinstance(error, Failed)
                passed, detail = False, str(error) if known else f"{type(error).__name__}: {error}"
            outcomes.append(Outcome(name, passed, " ".join(detail.split()), time.perf_counter() - began))
    say(_table(outcomes))
    if failed := [f"{one.name}: {one.detail}" for one in outcomes if not one.passed]:
        raise RuntimeError(f"{len(failed)} of {len(outcomes)} checks failed: {'; '.join(failed)}")
    return outcomes


def check_resume(folder: Path, limit: float) -> str:
    """A run that is killed, resumed, stopped and resumed again must leave what an uninterrupted one leaves."""
    whole, broken = folder / "whole", folder / "broken"
    _await_end(_start(*_RUN, "--out", str(whole)), 0, limit)
    moments = [(1, signal.SIGKILL, -signal.SIGKILL), (4, signal.SIGTERM, 128 + signal.SIGTERM)]
    flags = [*_RUN, "--out", str(broken)]
    for saved, number, status in moments:
        started = _start(*flags)
        until = time.monotonic() + limit
        while _newest(broken) < saved * _SAVED_EVERY and started.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        started.send_signal(number)
        _await_end(started, status, limit)
        flags = [*_RUN[:2], "--resume", "--out", str(broken)]
    _await_end(_start(*flags), 0, limit)
    for name in ("metrics.jsonl", "model/model.safetensors"):
        if (whole / name).read_bytes() != (broken / name).read_bytes():
            raise Failed(f"{name} of the run that was killed and resumed differs from that of one that was not")
    return "killed, resumed, stopped, resumed: log and model are the same to the bit"


def check_devices(folder: Path, limit: float) -> str:
    """Every device that this process may use multiplies matrices rightly."""
    import jax
    import numpy as np

    one, other = np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)
    right = one.astype(np.float64) @ other
    for device in jax.local_devices():
        placed = [jax.device_put(matrix, device) for matrix in (one, other)]
        found = np.asarray(jax.numpy.matmul(*placed, precision="highest"))
        if (off := np.abs(found - right).max()) > 1e-3:
            raise Failed(f"{device} multiplies two matrices wrongly, by up to {off:.3g}")
    kinds = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{jax.device_count()} x {kinds} ({jax.default_backend()}){processes}, jax {jax.__version__}"


def check_strategies(folder: Path, limit: float) -> str:
    """One step of a tiny BERT gives the same parameters on one device, on all, with its state whole or cut, under pmap
    and in two micro-steps."""
    import jax
    import numpy as np
    import optax

    from jaxptft import models, objectives, optim, train

    devices = jax.local_devices()
    rows = 4 * len(devices)
    drawn = np.random.default_rng(0)
    batch = {
        "input_ids": drawn.integers(1, 50, (rows, 12)).astype(np.int32),
        "attention_mask": (np.arange(12) < drawn.integers(2, 13, rows)[:, None]).astype(np.int32),
        "token_type_ids": np.zeros((rows, 12), np.int32),
        "label": drawn.integers(0, 3, rows).astype(np.int32),
        "ids": np.arange(rows, dtype=np.int32),
        "valid": np.arange(rows) % 5 != 1,  # unequal shares
    }
    quiet: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0}
    config = models.BertConfig(vocab_size=50, width=16, layers=1, heads=2, mlp_width=24, positions=12, **quiet)
    objective = objectives.classification(models.build(config, "classification", classes=3))
    optimizer = optax.sgd(1.0)  # whose update is the gradient itself
    updates = {}
    with jax.default_matmul_precision("highest"):
        params = jax.jit(objective.init)(jax.random.key(0), batch)
        everything = optim.trainable_mask(params, "none")
        for name, (used, options) in {
            "one device": (devices[:1], {}),
            "all devices": (devices, {}),
            "pmap": (devices, {}),
            "state cut over all": (devices, {}),
            "two micro-steps": (devices[:1], {"accumulate": 2}),
        }.items():
            state = train.create_state(objective, optimizer, params, batch, trainable=everything, rng=jax.random.key(1))
            make = partial(train.make_step, objective, optimizer, trainable=everything, **options)
            if name == "pmap":
                state, metrics = train.pmap_step(make(axis_name="data"), devices=used)(state, None, batch)
            else:
                mesh = train.make_mesh(used, fsdp=len(used) if name == "state cut over all" else 1)
                placed = train.spread(state, mesh, smallest=300), None, train.shard(batch, mesh)
                state, metrics = train.compile_step(make, mesh, smallest=300)(*placed)
            if float(metrics["skipped"].total):
                raise Failed(f"{name}: the loss or its gradient is not finite")
            leaves = zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True)
            updates[name] = np.concatenate([(np.asarray(b) - np.asarray(a)).ravel() for a, b in leaves])
    right = updates["one device"]
    if not np.abs(right).max() > 0:
        raise Failed("the gradient is zero everywhere")
    off = {name: float(np.abs(found - right).max() / np.abs(right).max()) for name, found in updates.items()}
    if wrong := {name: value for name, value in off.items() if not value < 1e-4}:
        told = ", ".join(f"{name} by {value:.1g}" for name, value in wrong.items())
        raise Failed(f"the gradient differs from that of one device, relative to its largest entry: {told}")
    return f"{', '.join(off)}: gradients within {max(off.values()):.0e}"


def check_checkpoint(folder: Path, limit: float) -> str:
    """What is saved comes back to the bit on all devices, and a flipped bit is found."""
    import logging

    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxptft import train

    mesh = train.make_mesh(jax.local_devices())
    size = (8 * mesh.size, 64)
    batch = train.shard({"spread": np.random.default_rng(0).normal(size=size).astype(np.float32)}, mesh)
    whole = train.replicate({"half": jnp.arange(1000, dtype=jnp.bfloat16), "key": jax.random.key(3)}, mesh)
    tree = {**batch, **whole}
    store = train.CheckpointStore(folder / "checkpoints")
    for step in (1, 2):
        store.save(step, tree, {"step": step})
    step, found, _ = store.restore(tree)
    if step != 2 or train.fingerprint(found) != train.fingerprint(tree):
        raise Failed("what was restored is not what was saved")
    if any(a.sharding != b.sharding for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True)):
        raise Failed("what was restored lies on other devices")
    damaged = max((path for path in store.folder.glob("step_*2/arrays/**/*") if path.is_file()), key=os.path.getsize)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    warnings = logging.getLogger("jaxptft.train.checkpoint")
    before, warnings.disabled = warnings.disabled, True  # of the damage that was done here
    try:
        step, found, _ = store.restore(tree)
    finally:
        warnings.disabled = before
    if step != 1 or train.fingerprint(found) != train.fingerprint(tree):
        raise Failed(f"a flipped bit in {damaged.name} was not found")
    return "the same to the bit; a flipped bit is found, and the step before it taken"


CHECKS: dict[str, Callable[[Path, float], str]] = {
    "kill and resume": check_resume,
    "devices": check_devices,
    "one step": check_strategies,
    "save and restore": check_checkpoint,
}


def _start(*flags: str) -> subprocess.Popen[str]:
    exact = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; from jaxptft.cli import main; sys.exit(main())", *flags],
        env={**os.environ, "XLA_FLAGS": exact.strip()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _await_end(started: subprocess.Popen[str], status: int, limit: float) -> None:
    try:
        _, told = started.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        started.kill()
        started.communicate()
        raise Failed(f"a run did not end within {limit:g} seconds") from None
    if started.returncode != status:
        said = told.strip().splitlines()[-1:] or ["nothing"]
        raise Failed(f"a run ended with status {started.returncode}, not {status}; it said: {said[0]}")


def _newest(out: Path) -> int:
    steps = [int(path.name.removeprefix("step_")) for path in out.glob("checkpoints/step_*")]
    return max(steps, default=0)


def _table(outcomes: list[Outcome]) -> str:
    from jaxptft.recipes.text_table import table

    lines = [(one.name, ("pass" if one.passed else "FAIL", f"{one.seconds:.1f}", one.detail)) for one in outcomes]
    return table("selftest", ("", "seconds", "what was found"), lines)
