"""One run, one folder:

config.yaml      every value, resolved; re-runnable with --config
metrics.jsonl    what was measured, by step; repeats exactly
speed.jsonl      how long it took
checkpoints/     the state to resume from, and best/: the parameters of the best evaluation
model/           the best model as a Hugging Face folder
report.json, report.txt, *.png
"""

import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxptft.recipes.settings import Settings, read_yaml

CONFIG = "config.yaml"
_MAY_CHANGE = ("out", "resume", "overwrite", "checkpoint_every", "keep_checkpoints")


def claim(folder: Path, config: Settings, *, resume: bool, overwrite: bool) -> None:
    """Make `folder` this run's, or see that it already is.

    A folder that holds a run is refused (FileExistsError) unless `resume`, which demands the same config (ValueError
    naming the first key that differs), or `overwrite`, which deletes it. Any other folder must be empty or new.
    """
    recorded = folder / CONFIG
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose a folder for the run")
    if recorded.is_file() and resume:
        _same(read_yaml(recorded), config.model_dump(mode="json"), str(recorded))
        return
    if resume:
        raise FileNotFoundError(f"{folder} holds no run to resume; leave out --resume to start one")
    if recorded.is_file() and overwrite:
        shutil.rmtree(folder)
    elif recorded.is_file():
        raise FileExistsError(f"{folder} already holds a run; continue it with --resume, or choose another --out")
    elif folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and holds no run; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    recorded.write_text(config.to_yaml(), encoding="utf-8")


def check_same(recorded: Mapping[str, Any], current: Mapping[str, Any], folder: Path) -> None:
    """Refuse (ValueError, naming what differs) to resume on other data, another tokenizer or another model."""
    for name, value in current.items():
        if recorded.get(name) != value:
            raise ValueError(
                f"{folder} was trained with another {name.replace('_', ' ')} ({str(recorded.get(name))[:12]} then, "
                f"{str(value)[:12]} now); resume with the same, or start a new run"
            )


def environment() -> dict[str, Any]:
    """What the bits of a result depend on besides config and data."""
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "versions": {name: version(name) for name in packages},
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "nproc": os.environ.get("NPROC"),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _same(recorded: Mapping[str, Any], current: Mapping[str, Any], source: str, prefix: str = "") -> None:
    for name in [*recorded, *(name for name in current if name not in recorded)]:
        before, now = recorded.get(name), current.get(name)
        if not prefix and name in _MAY_CHANGE:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            _same(before, now, source, f"{prefix}{name}.")
        elif before != now:
            raise ValueError(
                f"{prefix}{name} is {now!r}, but the run in {source} has {before!r}; "
                "resume with the same value, or start a new run in another --out"
            )
