"""Checkpoints that are whole or absent, and that say so themselves.

    step_00000120/
        arrays/          the tree, written by Orbax
        meta.json        what belongs to it: loop state, fingerprints, versions
        manifest.json    SHA-256 and size of every other file, and of this list itself, written last

A step is written under a temporary name, synced, and renamed; it is deleted by renaming first. Orbax alone restores
flipped bits without a word, so every restore checks the manifest, and falls back to the newest step that is good.
This is the only module that knows Orbax.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxptft.train.state import is_key

log = logging.getLogger(__name__)

_PREFIX, _UNFINISHED, _DOOMED = "step_", "unfinished-", "doomed-"


class DamagedCheckpoint(ValueError):
    """A checkpoint whose files are not the ones that were written; the message names the file."""


class CheckpointStore:
    """Checkpoints of one run, in one folder, oldest first.

    Args:
        folder: made when the first checkpoint is saved.
        keep: how many steps stay, the one just saved and those before it; older ones are deleted after a save. None
            keeps all.
    """

    def __init__(self, folder: str | Path, *, keep: int | None = 2):
        if keep is not None and keep < 1:
            raise ValueError(f"keep is {keep}; expected at least 1, or None to keep every checkpoint")
        self.folder = Path(folder).absolute()
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps that are listed, ascending; whether each is undamaged shows when it is restored."""
        if not self.folder.is_dir():
            return []
        found = [(entry, entry.name.removeprefix(_PREFIX)) for entry in self.folder.glob(f"{_PREFIX}*")]
        return sorted(int(name) for entry, name in found if name.isdecimal() and self._path(int(name)) == entry)

    def save(self, step: int, tree: PyTree, meta: dict[str, Any]) -> Path:
        """Write `tree` and `meta` as `step`, replacing a checkpoint of the same step; then drop what is too old.

        `meta` must be JSON-able. Raises OSError when the disk is full or read-only: earlier steps stay as they were.
        """
        self.clean()
        final = self._path(step)
        unfinished = self.folder / f"{_UNFINISHED}{final.name}"
        try:
            unfinished.mkdir(parents=True)
            _write_arrays(unfinished / "arrays", tree)
            _write_text(unfinished / "meta.json", json.dumps(meta, indent=1, sort_keys=True))
            _write_manifest(unfinished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        replaced = self._doom(final) if final.exists() else None
        unfinished.rename(final)
        _sync(self.folder)
        if replaced is not None:
            _remove(replaced)
        self.retire(step)
        return final

    def retire(self, step: int) -> None:
        """Drop what is too old now that `step` is there and good; a kill may have come between a save and this."""
        if self.keep is not None:
            # Later steps may be left of a run that went back to this one: they must not push out what is needed now.
            for old in [listed for listed in self.steps() if listed <= step][: -self.keep]:
                _remove(self._doom(self._path(old)))

    def restore(self, like: PyTree, *, step: int | None = None) -> tuple[int, PyTree, dict[str, Any]]:
        """The newest undamaged checkpoint (or the one of `step`) as `(step, tree, meta)`.

        `like` gives the structure, shapes, dtypes and shardings that are expected; a difference is a ValueError that
        names the leaf. Where it holds NumPy's arrays, or shapes alone, NumPy's come back. A damaged checkpoint is
        passed over with a warning that names the file, unless `step` asked for it. Raises FileNotFoundError when there
        is none, and DamagedCheckpoint when none is good.
        """
        candidates = [step] if step is not None else self.steps()[::-1]
        if not candidates or (step is not None and step not in self.steps()):
            raise FileNotFoundError(
                f"{self.folder} holds no checkpoint" + (f" of step {step}" if step is not None else "")
            )
        damage = None
        for candidate in candidates:
            path = self._path(candidate)
            try:
                verify(path)
                meta = self.read_meta(candidate)
            except DamagedCheckpoint as error:
                if step is not None:
                    raise
                log.warning("checkpoint of step %d is damaged and passed over: %s", candidate, error)
                damage = error
                continue
            return candidate, _read_arrays(path / "arrays", like), meta
        raise DamagedCheckpoint(f"no checkpoint in {self.folder} is undamaged; the oldest: {damage}")

    def read_meta(self, step: int) -> dict[str, Any]:
        """What belongs to a listed step, without its arrays and unverified."""
        path = self._path(step) / "meta.json"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DamagedCheckpoint(f"{path} cannot be read ({error})") from error

    def verify(self, step: int) -> int:
        """`verify` of a listed step."""
        return verify(self._path(step))

    def leftovers(self) -> list[Path]:
        """What a killed save or deletion left behind; `clean` removes it."""
        return sorted(path for prefix in (_UNFINISHED, _DOOMED) for path in self.folder.glob(f"{prefix}{_PREFIX}*"))

    def keep_only(self, steps: Collection[int]) -> None:
        """Delete every listed step but these."""
        for step in set(self.steps()) - set(steps):
            _remove(self._doom(self._path(step)))

    def clean(self) -> None:
        """Remove what a killed save or deletion left behind."""
        if not self.folder.is_dir():
            return
        for doomed in self.folder.glob(f"{_DOOMED}{_PREFIX}*"):
            name = doomed.name.removeprefix(_DOOMED)
            unfinished, final = self.folder / f"{_UNFINISHED}{name}", self.folder / name
            if unfinished.exists() and not final.exists():  # killed between the two renames of a replacement
                with suppress(DamagedCheckpoint):
                    verify(unfinished)
                    unfinished.rename(final)
        for leftover in self.leftovers():
            _remove(leftover)

    def _path(self, step: int) -> Path:
        return self.folder / f"{_PREFIX}{step:08d}"

    def _doom(self, path: Path) -> Path:
        return path.rename(self.folder / f"{_DOOMED}{path.name}")


def verify(path: Path) -> int:
    """Check every file of one checkpoint against its manifest; how many bytes they are.

    Raises DamagedCheckpoint, naming the first file that is missing, added or changed.
    """
    manifest = path / "manifest.json"
    try:
        written = manifest.read_text()
        expected = json.loads(written)["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{manifest} cannot be read ({error})") from error
    if not isinstance(expected, dict) or written != _manifest_text(expected):
        raise DamagedCheckpoint(f"{manifest} has changed since it was written (SHA-256 differs)")
    present = set(_files(path))
    if missing := sorted(set(expected) - present):
        raise DamagedCheckpoint(f"{path / missing[0]} is missing")
    if added := sorted(present - set(expected)):
        raise DamagedCheckpoint(f"{path / added[0]} is not in the manifest")
    for name, entry in expected.items():
        try:
            found = _sha256(path / name)
        except OSError as error:
            raise DamagedCheckpoint(f"{path / name} cannot be read ({error})") from error
        if found != entry["sha256"]:
            raise DamagedCheckpoint(f"{path / name} has changed since it was written (SHA-256 differs)")
    return sum(entry["bytes"] for entry in expected.values())


def fingerprint(tree: PyTree) -> str:
    """The SHA-256 of a tree's paths, dtypes, shapes and bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        digest.update(f"{jax.tree_util.keystr(path)}|{array.dtype}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _checkpointer() -> Any:
    """Orbax's, which would wait for all processes of a run to call it; only one does."""
    import orbax.checkpoint as ocp

    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _write_arrays(path: Path, tree: PyTree) -> None:
    nested: dict[str, Any] = {}
    for names, leaf in _named_leaves(tree):
        node = nested
        for name in names[:-1]:
            node = node.setdefault(_escaped(name), {})
        node[_escaped(names[-1])] = _stored(leaf)
    with _named(path), _os_errors(path):
        _checkpointer().save(path, nested)


def _read_arrays(path: Path, like: PyTree) -> PyTree:
    import orbax.checkpoint as ocp

    reader = _checkpointer()
    metadata: Any = reader.metadata(path).item_metadata
    restore_args = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree, is_leaf=lambda node: hasattr(node, "shape")
    )
    found = _named_leaves(reader.restore(path, restore_args=restore_args))
    saved = {tuple(unquote(name) for name in names): leaf for names, leaf in found}
    expected = {tuple(names): leaf for names, leaf in _named_leaves(like)}
    for names in [*saved, *expected]:
        where = "/".join(names)
        if names not in expected:
            raise ValueError(f"the checkpoint {path.parent} holds {where}, which this run does not have")
        if names not in saved:
            raise ValueError(f"the checkpoint {path.parent} lacks {where}, which this run needs")
        want, got = _stored(expected[names]), saved[names]
        if (got.shape, got.dtype) != (want.shape, want.dtype):
            raise ValueError(
                f"{where} is {got.dtype}{list(got.shape)} in the checkpoint {path.parent}; "
                f"this run expects {want.dtype}{list(want.shape)}"
            )

    leaves = []
    for names, leaf in _named_leaves(like):
        value: Any = saved[tuple(names)]
        # These stay NumPy's: JAX would cut 64 bits to 32.
        if not isinstance(leaf, np.ndarray | np.generic | jax.ShapeDtypeStruct):
            value = jnp.array(value, copy=True)
        if is_key(leaf):
            value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))  # pyright: ignore[reportArgumentType]
        leaves.append(jax.device_put(value, leaf.sharding) if isinstance(leaf, jax.Array) and leaf.committed else value)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named_leaves(tree: PyTree) -> Iterator[tuple[list[str], Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield [jax.tree_util.keystr((entry,), simple=True) for entry in path], leaf


def _stored(leaf: Any) -> Any:
    """A leaf as it is written: keys as their numbers, Python's scalars as the arrays JAX makes of them."""
    if is_key(leaf):
        return jax.random.key_data(leaf)
    return jnp.asarray(leaf) if type(leaf) in (bool, int, float, complex) else leaf


def _escaped(name: str) -> str:
    """Orbax joins names with dots: unescaped, `{"a.b": x}` and `{"a": {"b": y}}` would be written over each other."""
    return name.replace("%", "%25").replace(".", "%2E")


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Orbax reports a full disk as a ValueError, after logging a traceback for each of its threads."""
    absl = logging.getLogger("absl")
    before, absl.disabled = absl.disabled, True
    try:
        yield
    except ValueError as error:
        if code := re.search(r"os_error_code='(\d+)'", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        raise
    finally:
        absl.disabled = before


def _write_manifest(path: Path) -> None:
    files = {name: {"sha256": _sha256(path / name), "bytes": (path / name).stat().st_size} for name in _files(path)}
    for name in files:
        _sync(path / name)
    manifest = path / "manifest.json"
    _write_text(manifest, _manifest_text(files))
    _sync(manifest)
    for folder in [*(p for p in path.rglob("*") if p.is_dir()), path]:
        _sync(folder)


def _manifest_text(files: dict[str, Any]) -> str:
    own = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": own}, indent=1, sort_keys=True)


def _files(path: Path) -> list[str]:
    found = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sorted(name for name in found if name != "manifest.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> None:
    with _named(path):
        path.write_text(text)


def _remove(folder: Path) -> None:
    with _named(folder):
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An error of writing or syncing does not say of which file it is, and one of rmtree only the last name."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and not Path(error.filename or "").is_absolute():
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
