"""Checkpoints whose files are damaged, and checkpoints that are killed while they are written."""

import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from forked.processes import Started, forking
from trials import Trials, main

from jaxptft import models, objectives, optim, train
from jaxptft.models import bert

# Damage


def training_state(seed: int) -> train.State:
    """The state of a tiny BERT classifier, every number of which is drawn."""
    config = models.BertConfig(vocab_size=40, width=8, layers=2, heads=2, mlp_width=12, positions=10)
    batch = {name: np.ones((2, 8), np.int32) for name in ("input_ids", "attention_mask", "token_type_ids")}
    batch |= {"label": np.zeros(2, np.int32), "ids": np.arange(2, dtype=np.int32), "valid": np.ones(2, bool)}
    objective = objectives.classification(bert.classifier(config, 3))
    params = objective.init(jax.random.key(seed), batch)
    trainable = optim.trainable_mask(params, "none")
    optimizer = optim.adamw(optim.schedule("constant", peak=1e-2, steps=100), weight_decay=0.1)
    state = train.create_state(objective, optimizer, params, batch, trainable=trainable, rng=jax.random.key(seed))
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), state._replace(rng=None))
    return drawn._replace(rng=state.rng)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path, rng: random.Random) -> list[Path]:
    content = bytearray(path.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return [path]


def cut(path: Path, rng: random.Random) -> list[Path]:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(max(1, len(content)))])
    return [path]


def delete(path: Path, rng: random.Random) -> list[Path]:
    path.unlink()
    return [path]


def extend(path: Path, rng: random.Random) -> list[Path]:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 20)))
    return [path]


def empty(path: Path, rng: random.Random) -> list[Path]:
    path.write_bytes(b"")
    return [path]


def overwrite(path: Path, rng: random.Random) -> list[Path]:
    """Noise over a stretch, as of a block that was never written."""
    content = bytearray(path.read_bytes())
    start = rng.randrange(max(1, len(content)))
    stretch = content[start : start + 512]
    content[start : start + 512] = bytes(len(stretch)) if rng.random() < 0.5 else rng.randbytes(len(stretch))
    path.write_bytes(content)
    return [path]


def swap(path: Path, rng: random.Random) -> list[Path]:
    other = rng.choice(files_of(_step_of(path)))
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)
    return [path, other]


def add(path: Path, rng: random.Random) -> list[Path]:
    added = path.with_name(f"{path.name}.{rng.randrange(10**6)}")
    added.write_bytes(rng.randbytes(rng.randrange(20)))
    return [added]


def of_another_step(path: Path, rng: random.Random) -> list[Path]:
    """The file of the step before, which has the same name or, for arrays, the same place."""
    step = _step_of(path)
    others = files_of(step.with_name("step_00000001"))
    same = [other for other in others if other.name == path.name] or [rng.choice(others)]
    path.write_bytes(same[0].read_bytes())
    # A manifest of another step is as good as this step's files are: either may be said to be wrong.
    return [_step_of(path)] if path.name == "manifest.json" else [path]


def edit_manifest(path: Path, rng: random.Random) -> list[Path]:
    """An entry changed, dropped, renamed or added; the manifest's own checksum is as it was, or made anew."""
    manifest = _step_of(path) / "manifest.json"
    whole = json.loads(manifest.read_text())
    files = whole["files"]
    name = rng.choice(sorted(files))
    concerned = [manifest, manifest.parent / name]
    how = rng.choice(["checksum", "size", "drop", "rename", "add"])
    if how == "checksum":
        files[name]["sha256"] = rng.randbytes(32).hex()
    elif how == "size":
        files[name]["bytes"] += rng.choice([-1, 1, 100])
    elif how == "drop":
        del files[name]
    elif how == "rename":
        files[f"{name}x"] = files.pop(name)
        concerned.append(manifest.parent / f"{name}x")
    else:
        files["more"] = {"sha256": "0" * 64, "bytes": 0}
        concerned.append(manifest.parent / "more")
    if how != "size" and rng.random() < 0.5:  # a size alone, signed anew, changes nothing that is restored
        from jaxptft.train import checkpoint

        manifest.write_text(checkpoint._manifest_text(files))
    else:
        manifest.write_text(json.dumps(whole, indent=1, sort_keys=True))
    return concerned


def _step_of(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name.startswith("step_"))


MUTATIONS = (flip, cut, delete, extend, empty, overwrite, swap, add, of_another_step, edit_manifest)


def bits(tree: Any) -> list[tuple[str, str, bytes]]:
    """Paths, types and bytes of the leaves."""
    data = lambda leaf: jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf  # noqa: E731
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = ((jax.tree_util.keystr(path), np.asarray(data(leaf))) for path, leaf in leaves)
    return [(path, str(array.dtype), array.tobytes()) for path, array in arrays]


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def warnings_of_checkpoints() -> Iterator[list[str]]:
    handler, logger = _Heard(), logging.getLogger("jaxptft.train.checkpoint")
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield handler.said
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def mutations(trials: Trials, lane: str) -> None:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        whole, damaged = Path(scratch, "whole"), Path(scratch, "damaged")
        states = {step: training_state(step) for step in (1, 2)}
        store = train.CheckpointStore(whole)
        for step, state in states.items():
            store.save(step, state, {"of": step})
        wanted = bits(states[1])
        newest = damaged / "step_00000002"
        kept = {path.relative_to(whole): path.read_bytes() for path in files_of(whole / newest.name)}
        shutil.copytree(whole, damaged)
        kinds: dict[str, int] = {}
        while trials.trials < (1000 if lane == "full" else 100):
            mutate = MUTATIONS[trials.trials % len(MUTATIONS)]
            path = rng.choice(files_of(newest))
            concerned = mutate(path, rng)
            now = {path.relative_to(damaged): path.read_bytes() for path in files_of(newest)}
            if now == kept:  # as when two files that are alike are swapped
                continue
            what = f"{mutate.__name__} of {path.relative_to(newest)}"
            complaint = _judge_damage(train.CheckpointStore(damaged), states[1], wanted, concerned)
            if complaint:
                trials.failed(f"{what}: {complaint}")
            else:
                trials.survived()
                kinds[mutate.__name__] = kinds.get(mutate.__name__, 0) + 1
            shutil.rmtree(newest)
            shutil.copytree(whole / newest.name, newest)
        trials.facts["kinds"] = kinds
        trials.facts["files"] = len(kept)


def _judge_damage(store: train.CheckpointStore, like: Any, wanted: Any, concerned: list[Path]) -> str:
    """What is wrong about how the damage of step 2 was taken; "" where nothing is."""
    with warnings_of_checkpoints() as said:
        try:
            step, tree, meta = store.restore(like)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    if (step, meta) != (1, {"of": 1}):
        return f"step {step} was restored with {meta}"
    if bits(tree) != wanted:
        return "another state was restored"
    if len(said) != 1 or not any(str(path) in said[0] for path in concerned):
        return f"the warnings were {said}, none of them of {concerned}"
    try:
        store.restore(like, step=2)
    except train.DamagedCheckpoint as error:
        return "" if any(str(path) in str(error) for path in concerned) else f"the error was {error}"
    return "restored when it was asked for"


# Kills

SHAPE = (500, 100)  # with eight such, a save takes long enough to be hit anywhere


def save_in_a_loop(arguments: list[str]) -> int:
    """What is killed: steps are saved and, every second time, replaced; a file tells what was begun and done."""
    folder, told = Path(arguments[0]), Path(arguments[1])
    store = train.CheckpointStore(folder, keep=2)
    store.clean()
    step = (store.steps() or [0])[-1]
    with told.open("a") as file:
        while True:
            step += 1
            for value in range(10 * step, 10 * step + 1 + step % 2):
                tree = {f"w{number}": np.full(SHAPE, value, np.int32) for number in range(8)}
                file.write(f"begun {value}\n")
                file.flush()
                store.save(step, tree, {"value": value})
                file.write(f"done {value}\n")
                file.flush()


def kills_in_saving(trials: Trials, lane: str) -> None:
    rng = random.Random(0)
    like = {f"w{number}": np.zeros(SHAPE, np.int32) for number in range(8)}
    hits: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch, forking() as server:
        folder, told = Path(scratch, "run"), Path(scratch, "told")
        while trials.trials < (200 if lane == "full" else 12):
            told.write_text("")
            child = server.call(__file__, "save_in_a_loop", folder, told)
            aimed = _kill_within_a_save(child, folder, told, rng)
            left = [path.name.partition("-")[0] for path in train.CheckpointStore(folder).leftovers()]
            hit = "+".join(sorted(set(left))) or "between"
            hits[hit] = hits.get(hit, 0) + 1
            complaint = _judge_saves(folder, told.read_text().split("\n")[:-1], like)
            trials.check(not complaint, f"killed {aimed}: {complaint}")
    trials.facts["left_by_the_kill"] = hits


def _kill_within_a_save(child: Started, folder: Path, told: Path, rng: random.Random) -> str:
    """After two saves: at a drawn moment of the time that a save takes, or right after an entry of its folder came."""

    def wait(moment: Callable[[], Any]) -> None:
        until = time.monotonic() + 60
        while not moment():
            if child.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the saving ended by itself: {child.stderr.read()}")

    wait(lambda: told.read_text().count("done") >= 1)
    began = time.monotonic()
    wait(lambda: told.read_text().count("done") >= 3)
    duration = (time.monotonic() - began) / 2
    aim = rng.choice(["duration", "unfinished-*", "doomed-*"])
    if aim != "duration":
        with suppress(OSError):
            wait(lambda: any(folder.glob(aim)))
    pause = rng.uniform(0, duration if aim == "duration" else rng.choice([0.0002, 0.002, duration]))
    until = time.perf_counter() + pause
    while time.perf_counter() < until:
        pass
    child.kill()
    child.wait(60)
    child.close()
    return f"{pause:.6f} s after {'a save began' if aim == 'duration' else aim}"


def _judge_saves(folder: Path, lines: list[str], like: Any) -> str:
    begun = {int(line.split()[1]) for line in lines if line.startswith("begun")}
    done = [int(line.split()[1]) for line in lines if line.startswith("done")]
    store = train.CheckpointStore(folder, keep=2)
    listed = store.steps()
    for cleaned in (False, True):
        if cleaned:
            store.clean()
        for step in store.steps():
            try:
                store.verify(step)
                _, tree, meta = store.restore(like, step=step)
            except Exception as error:
                return f"step {step} is listed, and {type(error).__name__}: {error}"
            values = {int(value) for leaf in jax.tree.leaves(tree) for value in np.unique(leaf)}
            if values != {meta["value"]} or meta["value"] // 10 != step:
                return f"step {step} holds {values} and says {meta['value']}"
            if meta["value"] not in begun and meta["value"] >= min(begun):
                return f"step {step} holds {meta['value']}, which was never saved"
    steps = store.steps()
    if not set(listed) <= set(steps):
        return f"steps {listed} were listed, and {steps} after cleaning"
    if not steps or steps[-1] < done[-1] // 10:
        return f"{done[-1]} was saved, and the steps are {steps}"
    last = store.read_meta(steps[-1])["value"]
    if last < done[-1]:
        return f"{done[-1]} was saved, and step {steps[-1]} holds {last}"
    if left := [path.name for path in folder.iterdir() if not path.name.startswith("step_")]:
        return f"left over: {left}"
    return ""


if __name__ == "__main__":
    sys.exit(main({"mutations": mutations, "kills_in_saving": kills_in_saving}, script=__file__))
