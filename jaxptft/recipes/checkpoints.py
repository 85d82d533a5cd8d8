"""The checkpoints of a run: what each holds, and whether its files are still those that were written.

Every file is read and its SHA-256 compared; nothing is changed, so a run at work is not disturbed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tyro

from jaxptft.recipes.settings import Settings

if TYPE_CHECKING:
    from jaxptft.train import CheckpointStore


class Config(Settings):
    """List and verify checkpoints: jaxptft checkpoints runs/x"""

    folder: tyro.conf.Positional[Path]
    """a run's folder, or any folder that holds some: all below it are listed"""
    out: Path | None = None
    """a file for the same as JSON"""


class Found(NamedTuple):
    """One checkpoint."""

    folder: str  # that it lies in, from the one that was asked for
    step: int
    bytes: int
    metric: float | None  # that chooses the best model: the best value so far
    best_step: int | None  # at which that was reached
    environment: dict[str, Any]  # that wrote it: versions, devices, NPROC
    damage: str | None  # what is wrong with it, naming the file


class Result(NamedTuple):
    """All checkpoints, by folder and step, and what killed processes left in those folders."""

    checkpoints: list[Found]
    leftovers: list[str]


def run(config: Config, *, say: Callable[[str], None] = print) -> Result:
    """Say what is there, in a table, and what is wrong with it.

    Raises FileNotFoundError where there is no checkpoint, and, after all was said and `out` written, ValueError where
    one is damaged.
    """
    if not config.folder.is_dir():
        raise FileNotFoundError(f"{config.folder} is no folder; give that of a run")
    stores = _stores(config.folder)
    leftovers = sorted(str(path) for store in stores for path in store.leftovers())
    looked = (_look(store, step, _name(store, config.folder)) for store in stores for step in store.steps())
    found = [one for one in looked if one is not None]
    if found:
        say(_table(str(config.folder), found))
    for one in found:
        if one.damage is not None:
            say(f"{one.folder}, step {one.step} is damaged: {one.damage}")
    for path in leftovers:
        say(f"left by a process that was killed: {path} (the next save removes it)")
    if not found:
        raise FileNotFoundError(f"{config.folder} holds no checkpoints")
    result = Result(found, leftovers)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"checkpoints": [one._asdict() for one in found], "leftovers": leftovers}
        config.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if damaged := [one for one in found if one.damage is not None]:
        named = ", ".join(f"{one.folder} step {one.step}" for one in damaged)
        raise ValueError(
            f"{len(damaged)} of {len(found)} checkpoints are damaged: {named}; "
            "--resume passes over a damaged one to the newest that is good"
        )
    return result


def _stores(folder: Path) -> "list[CheckpointStore]":
    from jaxptft.train import CheckpointStore

    stores = (CheckpointStore(path) for path in [folder, *sorted(p for p in folder.rglob("*") if p.is_dir())])
    return [store for store in stores if store.steps() or store.leftovers()]


def _name(store: "CheckpointStore", folder: Path) -> str:
    relative = store.folder.relative_to(folder.absolute())
    return folder.name if relative == Path() else str(relative)


def _look(store: "CheckpointStore", step: int, name: str) -> Found | None:
    """None where the run that owns it has dropped it meanwhile."""
    from jaxptft.train import DamagedCheckpoint

    damage, meta, size = None, {}, 0
    try:
        size = store.verify(step)
        meta = store.read_meta(step)
    except DamagedCheckpoint as error:
        if step not in store.steps():
            return None
        damage = str(error)
    loop = meta.get("loop", {})
    return Found(
        folder=name,
        step=step,
        bytes=size,
        metric=loop.get("best"),
        best_step=loop.get("best_step"),
        environment=meta.get("environment", {}),
        damage=damage,
    )


def _table(title: str, found: list[Found]) -> str:
    from jaxptft.recipes.text_table import table

    lines = []
    for one in found:
        best = "" if one.metric is None else f"{one.metric:.4f} at {one.best_step}"
        versions = one.environment.get("versions", {})
        wrote = f"jax {versions['jax']} on {one.environment.get('devices')}" if "jax" in versions else ""
        state = "good" if one.damage is None else "damaged"
        lines.append((one.folder, (str(one.step), f"{one.bytes / 1e6:.1f} MB", best, wrote, state)))
    return table(title, ("step", "size", "best so far", "version and devices", "files"), lines)
