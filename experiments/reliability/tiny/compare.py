"""What two run folders must have in common to the bit, and the first thing in which they differ."""

import json
from pathlib import Path
from typing import Any

import numpy as np


def arrays_of(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, as Orbax gives it."""
    import jax
    import orbax.checkpoint as ocp

    reader = ocp.PyTreeCheckpointer()
    metadata: Any = reader.metadata(checkpoint / "arrays").item_metadata
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree, is_leaf=lambda node: hasattr(node, "shape")
    )
    tree = reader.restore(checkpoint / "arrays", restore_args=as_numpy)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def last_checkpoint(run: Path) -> Path:
    return max(run.glob("checkpoints/step_*"))


def difference(one: Path, other: Path) -> str:
    """Of logs, reports, model files, the last checkpoint and the best; "" where there is none."""
    names = [
        sorted(
            path.relative_to(run).as_posix()
            for path in (
                *run.glob("*.json*"),
                *run.glob("model/**/*"),
                *run.glob("generator/*"),
                *run.glob("adapter/*"),
            )
            if path.is_file() and path.name != "speed.jsonl"
        )
        for run in (one, other)
    ]
    if names[0] != names[1]:
        return f"the files are {names[1]}, not {names[0]}"
    for name in names[0]:
        if (one / name).read_bytes() != (other / name).read_bytes():
            return f"{name} differs"
    pairs = [(last_checkpoint(one), last_checkpoint(other))]
    if pairs[0][0].name != pairs[0][1].name:
        return f"the last checkpoint is {pairs[0][1].name}, not {pairs[0][0].name}"
    loops = [json.loads((checkpoint / "meta.json").read_text())["loop"] for checkpoint in pairs[0]]
    if loops[0] != loops[1]:
        return f"the loop's state is {loops[1]}, not {loops[0]}"
    best = f"checkpoints/best/step_{loops[0]['best_step']:08d}"
    if loops[0]["best"] is not None:
        pairs.append((one / best, other / best))
    for first, second in pairs:
        expected, found = arrays_of(first), arrays_of(second)
        if expected.keys() != found.keys():
            return f"{second} has other arrays"
        for path, array in expected.items():
            if (found[path].dtype, found[path].tobytes()) != (array.dtype, array.tobytes()):
                return f"{path} of {second} differs"
    left = [path.name for path in other.rglob("*") if path.name.startswith((".", "unfinished-", "doomed-"))]
    return "" if left == [".lock"] else f"left over: {left}"
