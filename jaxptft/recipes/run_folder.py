"""One run, one folder:

config.yaml      every value, resolved; re-runnable with --config
metrics.jsonl    what was measured, by step; repeats exactly
speed.jsonl      how long it took
checkpoints/     the state to resume from, best/: the parameters of the best evaluation, and measured/: importances and
                 weights of rows, which a resumed run must have to the bit
model/           the best model as a Hugging Face folder; generator/, its generator under replaced-token detection
adapter/         under LoRA, the adapters alone as `peft` reads them
report.json, report.txt, *.png
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

from jaxptft.recipes.settings import Settings, build, read_yaml

CONFIG = "config.yaml"
_OWN_FOLDERS = ("checkpoints", "model", "generator", "baseline", "adapter")
_OWN_FILES = (
    *("metrics.jsonl", "speed.jsonl", "report.json", "report.txt", "history.png", "forgetting.png"),
    *("confusion_*.png", "predictions_*.png"),
)
_MAY_CHANGE = (
    *("out", "resume", "overwrite", "checkpoint_every", "keep_checkpoints", "steps", "epochs"),
    *(
        "devices",
        "fsdp",
        "parallel",
        "stuck_after",
        "steps_per_dispatch",
        "read_ahead",
        "scan_layers",
        "remat",
    ),  # where and how it runs; the last bits may differ, which is said
)
_READ = (
    *("model", "teacher", "student", "train", "eval", "test", "corpus", "eval_corpus", "tokenizer"),
    *("adaptation.target", "auxiliary.corpus", "ewc.corpus", "forgetting.corpus"),
)


def check(folder: Path, config: Settings, *, resume: bool, overwrite: bool) -> None:
    """Refuse, before anything is computed or deleted, what `claim` would refuse."""
    recorded = folder / CONFIG
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose a folder for the run")
    if resume:
        if not recorded.is_file():
            raise FileNotFoundError(f"{folder} holds no run to resume; leave out --resume to start one")
        # Through the Config, which gives the dials that are younger than the run their defaults.
        before = build(type(config), read_yaml(recorded), source=str(recorded))
        _same(before.model_dump(mode="json"), config.model_dump(mode="json"), str(recorded))
    elif not folder.exists() or not any(folder.iterdir()):
        return
    elif not _is_run(recorded, config):
        raise FileExistsError(f"{folder} is not empty and holds no run; choose another --out")
    elif not overwrite:
        raise FileExistsError(f"{folder} already holds a run; continue it with --resume, or choose another --out")
    else:
        for name in _READ:
            given = (attrgetter(name)(config) if hasattr(config, name.partition(".")[0]) else None) or ()
            for value in given if isinstance(given, tuple) else (given,):
                if Path(value).exists() and Path(value).resolve().is_relative_to(folder.resolve()):
                    raise ValueError(f"{name} is {value}, in the folder that --overwrite clears; choose another --out")


def claim(folder: Path, config: Settings, *, resume: bool, overwrite: bool) -> None:
    """Make `folder` this run's, or see that it already is.

    A folder that holds a run is refused (FileExistsError) unless `resume`, which demands the same config (ValueError
    naming the first key that differs), or `overwrite`, which deletes what the run wrote and nothing else. Any other
    folder must be empty or new.
    """
    check(folder, config, resume=resume, overwrite=overwrite)
    recorded = folder / CONFIG
    if recorded.is_file() and not resume:
        with lock(folder):
            for name in _OWN_FOLDERS:
                shutil.rmtree(folder / name, ignore_errors=True)
            for pattern in _OWN_FILES:
                for file in folder.glob(pattern):
                    file.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the folder first: half a config would be resumed, and a leftover in the folder would not be empty.
    unfinished = folder.absolute().with_name(f".{folder.absolute().name}.{CONFIG}")
    values = config.model_copy(update={"resume": False, "overwrite": False})
    unfinished.write_text(values.to_yaml(), encoding="utf-8")
    unfinished.replace(recorded)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep a second process out of a run; released when this one ends, however it ends.

    Raises BlockingIOError when another process is at work there. Does nothing where the system has no file locks.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BlockingIOError(f"another process is at work in {folder}; wait for it, or stop it") from None
        yield


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


def _is_run(recorded: Path, config: Settings) -> bool:
    """Whether the file is a run's config, and not the config.yaml of something else."""
    if not recorded.is_file():
        return False
    try:
        values = read_yaml(recorded)
    except ValueError:
        return False
    return {"out", "learning_rate", "seed"} <= values.keys() <= type(config).model_fields.keys()


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
