import errno
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxptft import train


class Point(NamedTuple):
    x: object
    y: object


def small(value=1.0):
    return {"w": jnp.full((2, 3), float(value)), "rng": jax.random.key(7)}


def numbers(tree):
    """Leaves as numpy, keys as their numbers."""
    plain = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf  # noqa: E731
    return [np.asarray(plain(leaf)) for leaf in jax.tree.leaves(tree)]


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(numbers(tree), numbers(other), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


# What goes in comes out


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    params = {"w": jnp.linspace(-1, 1, 7), "none": None, "layer_10": {"bias": jnp.zeros(2)}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1.0, 0.0, 9)))
    tree = {
        "float32": jnp.array([np.nan, np.inf, -0.0, 1e-42]),
        "bfloat16": jnp.array([1.5, -2.25], jnp.bfloat16),
        "float16": jnp.ones((1, 1), jnp.float16),
        "int32": jnp.array(-(2**31)),
        "uint8": jnp.arange(256, dtype=jnp.uint8),
        "bool": jnp.array([True, False]),
        "numpy": np.arange(4.0, dtype=np.float32),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(0), 5),
        "rbg": jax.random.key(1, impl="rbg"),
        "optimizer": optimizer.init(params),
        "empty": (optax.EmptyState(), None, {}, []),
        "tuple": Point(jnp.ones(1), [jnp.zeros(3), (jnp.arange(2),)]),
        "odd / näme": {"": jnp.ones(2), "a.b%2E": jnp.zeros(1)},
    }
    store = train.CheckpointStore(tmp_path)
    meta = {"loop": {"best": 0.1 + 0.2}, "list": [1, None, "ü"]}
    store.save(120, tree, meta)
    step, restored, found = store.restore(tree)
    assert (step, found) == (120, meta)
    assert_same(restored, tree)
    assert jax.random.key_impl(restored["rbg"]) == "rbg"
    assert (tmp_path / "step_00000120" / "manifest.json").is_file()


def test_names_with_dots_are_not_mixed_up(tmp_path):
    """Orbax alone writes both leaves to the same place and returns one of them twice."""
    tree = {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}
    store = train.CheckpointStore(tmp_path)
    store.save(1, tree, {})
    assert_same(store.restore(tree)[1], tree)


def test_numpy_keeps_64_bits_and_python_scalars_become_arrays(tmp_path):
    store = train.CheckpointStore(tmp_path)
    tree = {"big": np.array([2**40]), "fine": np.float64(1 / 3)}
    store.save(1, tree, {})
    restored = store.restore(tree)[1]
    assert restored["big"].tolist() == [2**40]
    assert restored["fine"] == 1 / 3
    store.save(2, {"seen": 3, "rate": 0.5, "on": True}, {})
    restored = store.restore({"seen": 0, "rate": 0.0, "on": False})[1]
    assert (restored["seen"], restored["rate"], restored["on"]) == (3, 0.5, True)
    assert restored["seen"].dtype == jnp.int32


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": jnp.ones(3), "b": {"c": jnp.ones(2)}}, r"a is float32\[2\] in the checkpoint .*step_00000001; .*\[3\]"),
        ({"a": jnp.ones(2), "b": {"c": jnp.ones(2, int)}}, r"b/c is float32\[2\] .* this run expects int32\[2\]"),
        ({"a": jnp.ones(2), "b": {}}, "holds b/c, which this run does not have"),
        ({"a": jnp.ones(2), "b": {"c": jnp.ones(2)}, "d": jnp.ones(1)}, "lacks d, which this run needs"),
        ({"a": jax.random.key(0), "b": {"c": jnp.ones(2)}}, r"a is float32\[2\] .* this run expects uint32\[2\]"),
    ],
)
def test_another_structure_shape_or_dtype_is_an_error_that_names_the_leaf(tmp_path, like, message):
    store = train.CheckpointStore(tmp_path)
    store.save(1, {"a": jnp.ones(2), "b": {"c": jnp.ones(2)}}, {})
    with pytest.raises(ValueError, match=message) as caught:
        store.restore(like)
    assert not isinstance(caught.value, train.DamagedCheckpoint)


def test_restored_leaves_have_the_sharding_of_like_whatever_was_saved(tmp_path):
    mesh = train.make_mesh()
    assert mesh.size == 8
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    values = {"rows": np.arange(16.0, dtype=np.float32), "whole": np.arange(3), "key": jax.random.key(0)}
    eight = {
        "rows": jax.device_put(values["rows"], rows),
        "whole": jax.device_put(jnp.asarray(values["whole"]), whole),
        "key": jax.device_put(values["key"], whole),
    }
    one = jax.tree.map(lambda leaf: jax.device_put(leaf, jax.devices()[0]), jax.tree.map(jnp.asarray, values))
    store = train.CheckpointStore(tmp_path)
    for saved in (eight, one):
        store.save(1, saved, {})
        for like in (eight, one):
            restored = store.restore(like)[1]
            assert_same(restored, like)
            assert [leaf.sharding for leaf in jax.tree.leaves(restored)] == [x.sharding for x in jax.tree.leaves(like)]
    free = jnp.ones(3)
    store.save(2, {"w": free}, {})
    assert store.restore({"w": free})[1]["w"].committed is False


def test_saved_on_eight_devices_and_restored_where_there_is_one(tmp_path):
    mesh = train.make_mesh()
    tree = {"rows": jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("data")))}
    train.CheckpointStore(tmp_path).save(1, tree, {})
    script = """
import sys, jax, jax.numpy as jnp
from jaxptft import train
_, tree, _ = train.CheckpointStore(sys.argv[1]).restore({"rows": jnp.zeros(16)})
print(jax.device_count(), tree["rows"].tolist() == list(range(16)))
"""
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, env=environment)
    assert done.stdout == "1 True\n", done.stderr


def test_donating_what_was_restored_is_safe(tmp_path):
    mesh = train.make_mesh()
    like = train.replicate({"w": jnp.arange(1000.0), "v": jnp.ones(5)}, mesh)
    store = train.CheckpointStore(tmp_path)
    store.save(1, like, {})
    change = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    for _ in range(3):
        first, second = store.restore(like)[1], store.restore(like)[1]
        changed = change(first)
        assert first["w"].is_deleted()
        assert np.asarray(changed["w"]).max() == -1
        assert_same(second, like)


# What stays


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (None, [0, 1, 2, 3, 4])])
def test_so_many_of_the_newest_steps_stay(tmp_path, keep, left):
    store = train.CheckpointStore(tmp_path, keep=keep)
    for step in range(5):
        store.save(step, small(step), {"at": step})
    assert store.steps() == left
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{step:08d}" for step in left]
    for step in left:
        found, tree, meta = store.restore(small(), step=step)
        assert (found, float(tree["w"][0, 0]), meta) == (step, step, {"at": step})


def test_what_a_kill_kept_from_being_dropped_is_dropped_later(tmp_path):
    every = train.CheckpointStore(tmp_path, keep=None)
    for step in (3, 6, 9, 12):
        every.save(step, {"x": np.arange(3)}, {})
    train.CheckpointStore(tmp_path, keep=2).retire(9)
    assert every.steps() == [6, 9, 12]  # what is later than the good one is left for the save that replaces it


def test_keep_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep is 0; expected at least 1, or None to keep every checkpoint"):
        train.CheckpointStore(tmp_path, keep=0)


def test_a_step_saved_again_is_replaced(tmp_path):
    store = train.CheckpointStore(tmp_path, keep=1)
    store.save(3, small(1), {"n": 1})
    store.save(3, small(2), {"n": 2})
    _, tree, meta = store.restore(small())
    assert (float(tree["w"][0, 0]), meta["n"], store.steps()) == (2, 2, [3])


def test_a_later_step_never_pushes_out_the_one_just_saved(tmp_path):
    """A run that went back from a damaged step 9 to step 5 saves 6: that must stay, and 5 must not give way to 9."""
    store = train.CheckpointStore(tmp_path, keep=None)
    for step in (4, 5, 9):
        store.save(step, small(step), {})
    flip(tmp_path / "step_00000009" / "meta.json", 0)
    store.keep = 1
    store.save(6, small(6), {})
    assert store.steps() == [6, 9]
    assert store.restore(small())[0] == 6
    store.save(10, small(10), {})
    assert store.steps() == [10]


def test_what_is_no_checkpoint_is_not_listed(tmp_path):
    store = train.CheckpointStore(tmp_path / "new")
    assert store.steps() == []
    for name in ("step_x", "step_", "step_7", "step_²", "best", "unfinished-step_00000001", "doomed-step_00000001"):
        (store.folder / name).mkdir(parents=True)
    assert store.steps() == []
    with pytest.raises(FileNotFoundError, match=r"new holds no checkpoint$"):
        store.restore(small())
    store.save(2, small(), {})
    assert store.steps() == [2]
    assert not list(store.folder.glob("unfinished-*"))
    assert not list(store.folder.glob("doomed-*"))
    with pytest.raises(FileNotFoundError, match="holds no checkpoint of step 1"):
        store.restore(small(), step=1)


# Kills


def test_a_kill_between_any_two_operations_leaves_only_good_checkpoints(tmp_path, monkeypatch):
    """The folder is copied at every operation of a save, a replacement and a deletion: what a kill there leaves."""
    folder, snapshots = tmp_path / "run", tmp_path / "snapshots"
    store = train.CheckpointStore(folder, keep=1)
    store.save(1, small(1), {"of": 1})
    taken, copying, one_at_a_time = [], [], threading.RLock()

    def snapshot_now():
        """Orbax has threads of its own: where a file goes while the folder is copied, the copy is made anew."""
        for attempt in range(100):
            try:
                return shutil.copytree(folder, snapshots / f"{len(taken)}-{attempt}")
            except (shutil.Error, FileNotFoundError):
                continue
        raise AssertionError("the folder never held still")

    def watch(owner, name):
        real = getattr(owner, name)

        def wrapped(*args, **kwargs):
            with one_at_a_time:
                if not copying:  # copying is itself made of such operations
                    copying.append(True)
                    taken.append(snapshot_now())
                    copying.clear()
                return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    for name in ("fsync", "unlink", "rmdir", "rename", "mkdir"):
        watch(os, name)
    watch(Path, "rename")
    store.save(2, small(2), {"of": 2})  # deletes 1
    store.save(2, small(3), {"of": 3})  # replaces 2
    monkeypatch.undo()

    assert len(taken) > 60
    states = set()
    for snapshot in taken:
        left = train.CheckpointStore(snapshot, keep=1)
        for step in left.steps():
            train.verify(snapshot / f"step_{step:08d}")
        listed = left.steps()
        left.clean()
        assert all(path.name.startswith("step_") for path in snapshot.iterdir())
        assert left.steps(), "a checkpoint is there at any moment"
        assert set(listed) <= set(left.steps())
        metas = tuple(json.loads((snapshot / f"step_{s:08d}" / "meta.json").read_text())["of"] for s in left.steps())
        if metas not in states:
            states.add(metas)
            step, tree, meta = left.restore(small())
            assert float(tree["w"][0, 0]) == meta["of"]
    assert states == {(1,), (1, 2), (2,), (3,)}


KILLED = """
import sys, jax.numpy as jnp
from jaxptft import train
store, step = train.CheckpointStore(sys.argv[1], keep=2), 0
while True:
    step += 1
    for value in (step, -step):
        store.save(step, {"w": jnp.full((300, 100), float(value))}, {"value": value})
    print(step, flush=True)
"""


def test_sigkill_at_random_moments_leaves_only_good_checkpoints(tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    folders = [tmp_path / str(number) for number in range(3)]
    children = [
        subprocess.Popen([sys.executable, "-c", KILLED, folder], stdout=subprocess.PIPE, env=environment)
        for folder in folders
    ]
    for child in children:
        assert child.stdout is not None
        for _ in range(2):
            assert child.stdout.readline()
        time.sleep(random.uniform(0, 0.3))
        child.kill()
        child.wait()
        child.stdout.close()
    for folder in folders:
        store = train.CheckpointStore(folder, keep=2)
        assert store.steps()
        for step in store.steps():
            _, tree, meta = store.restore({"w": jnp.zeros((300, 100))}, step=step)
            assert abs(meta["value"]) == step
            assert (np.asarray(tree["w"]) == meta["value"]).all()
        store.save(10**6, {"w": jnp.zeros(1)}, {})
        assert all(path.name.startswith("step_") for path in folder.iterdir())


# Damage


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    store = train.CheckpointStore(folder)
    for step in (1, 2):
        store.save(step, small(step), {"of": step})
    return folder


@pytest.fixture
def pair(undamaged, tmp_path):
    """A folder with two steps, to be damaged."""
    return shutil.copytree(undamaged, tmp_path / "pair")


def damages(path, rng):
    """Every way to damage one file, as `(what, do)`."""
    size = path.stat().st_size
    for position in {0, size - 1, *(rng.randrange(size) for _ in range(20))}:
        yield f"flip {position}", lambda p=position: flip(path, p, rng.randrange(8))
    yield "cut", lambda: path.write_bytes(path.read_bytes()[:-1])
    yield "half", lambda: path.write_bytes(path.read_bytes()[: size // 2])
    yield "empty", lambda: path.write_bytes(b"")
    yield "longer", lambda: path.write_bytes(path.read_bytes() + b"\n")
    yield "gone", path.unlink
    yield "a folder", lambda: (path.unlink(), path.mkdir())


def test_any_damage_to_any_file_is_detected_and_the_file_named(pair):
    rng = random.Random(0)
    newest = pair / "step_00000002"
    train.verify(newest)
    assert len(files_of(newest)) > 8
    for path in files_of(newest):
        content = path.read_bytes()
        for what, damage in damages(path, rng):
            damage()
            with pytest.raises(train.DamagedCheckpoint) as caught:
                train.verify(newest)
            assert str(path) in str(caught.value), what
            if path.is_dir():
                path.rmdir()
            path.write_bytes(content)
        added = path.with_name("added")
        added.write_bytes(b"")
        with pytest.raises(train.DamagedCheckpoint, match=f"{added} is not in the manifest"):
            train.verify(newest)
        added.unlink()
    train.verify(newest)


def test_every_part_of_the_manifest_counts(pair):
    path = pair / "step_00000002" / "manifest.json"
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        flip(path, position, position % 8)
        with pytest.raises(train.DamagedCheckpoint, match=str(path)):
            train.verify(path.parent)
        path.write_bytes(content)
    for other in ("[]", "{}", '{"files": []}', '{"files": {"meta.json": null}}', '{"files": null}', "null", "\xff"):
        path.write_text(other, encoding="latin-1")
        with pytest.raises(train.DamagedCheckpoint, match=str(path)):
            train.verify(path.parent)
    path.write_bytes(content)


def test_a_file_that_cannot_be_read_is_damage(pair, monkeypatch):
    real = Path.open

    def failing(self, *args, **kwargs):
        if self.name == "_METADATA":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(train.DamagedCheckpoint, match=r"_METADATA cannot be read \(.*Input/output error\)"):
        train.verify(pair / "step_00000002")


@pytest.mark.parametrize("which", ["meta.json", "manifest.json", "arrays", "arrays/manifest.ocdbt"])
@pytest.mark.parametrize("how", ["gone", "flipped"])
def test_the_newest_good_step_is_used_and_the_damage_logged(pair, caplog, which, how):
    target = pair / "step_00000002" / which
    if which == "arrays":
        target = max((path for path in files_of(target) if "/d/" in str(path)), key=lambda path: path.stat().st_size)
    if how == "gone":
        target.unlink()
    else:
        flip(target, target.stat().st_size // 2)
    store = train.CheckpointStore(pair)
    with caplog.at_level(logging.WARNING, "jaxptft.train.checkpoint"):
        step, tree, meta = store.restore(small())
    assert (step, float(tree["w"][0, 0]), meta) == (1, 1.0, {"of": 1})
    (record,) = caplog.records
    assert "checkpoint of step 2 is damaged and passed over" in record.getMessage()
    assert str(target) in record.getMessage()
    with pytest.raises(train.DamagedCheckpoint, match=target.name):
        store.restore(small(), step=2)

    (pair / "step_00000001" / "meta.json").unlink()
    with pytest.raises(train.DamagedCheckpoint, match=r"no checkpoint in .*pair is undamaged; .*meta.json is missing"):
        store.restore(small())


# Disks that fail


@pytest.fixture
def no_large_files():
    """No file of this process may grow past 50 kB, as if the disk were full; gives a function that frees it again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def free():
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard)), free
    free()
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="relies on Linux's file size limit")
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_disk_without_room_is_an_os_error_and_older_steps_stay(tmp_path, no_large_files, kind, caplog):
    fill, free = no_large_files
    tree = {"w": kind(np.random.default_rng(0).standard_normal(50_000).astype(np.float32))}
    store = train.CheckpointStore(tmp_path, keep=1)
    store.save(1, tree, {})
    fill()
    with pytest.raises(OSError, match="File too large") as caught:
        store.save(2, tree, {})
    free()
    assert caught.value.errno == errno.EFBIG
    assert not caplog.records  # no traceback a thread besides
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert_same(store.restore(tree)[1], tree)
    store.save(2, tree, {})
    assert store.steps() == [2]


@pytest.mark.parametrize("name", ["meta.json", "manifest.json"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_write_that_fails_leaves_older_steps_as_they_were(tmp_path, monkeypatch, name, code):
    store = train.CheckpointStore(tmp_path, keep=1)
    store.save(1, small(1), {})
    real = Path.write_text

    def failing(self, *args, **kwargs):
        if self.name == name:
            raise OSError(code, os.strerror(code), str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", failing)
    for step in (1, 2):  # a replacement and a new step
        with pytest.raises(OSError, match=os.strerror(code)):
            store.save(step, small(2), {})
        assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
        assert_same(store.restore(small())[1], small(1))
    monkeypatch.undo()
    store.save(2, small(2), {})
    assert store.steps() == [2]


@pytest.mark.parametrize("owner, name", [(os, "fsync"), (Path, "write_text"), (os, "unlink")])
def test_an_error_without_a_path_is_given_one(tmp_path, monkeypatch, owner, name):
    """Writing and syncing know descriptors alone, and deleting a tree names its entries without their folder."""
    store = train.CheckpointStore(tmp_path, keep=1)
    store.save(1, small(1), {})

    def failing(path, *args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO), *([path] if name == "unlink" else []))

    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(OSError, match=rf"Input/output error: '{tmp_path}/") as caught:
        store.save(2, small(2), {})
    assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    store.save(3, small(3), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        train.CheckpointStore(tmp_path / "file" / "run").save(1, small(), {})


def test_meta_that_is_not_json_leaves_nothing(tmp_path):
    store = train.CheckpointStore(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.save(1, small(), {"x": object()})
    assert list(tmp_path.iterdir()) == []


# Fingerprints


def test_a_fingerprint_tells_paths_dtypes_shapes_and_bytes_apart():
    base = {"a": np.ones((2, 3), np.float32), "k": jax.random.key(0)}
    others = [
        {"b": base["a"], "k": base["k"]},
        {**base, "a": base["a"].astype(jnp.bfloat16)},
        {**base, "a": np.ones((3, 2), np.float32)},
        {**base, "a": base["a"] * np.float32(1.0000001)},
        {**base, "k": jax.random.key(1)},
        {"a": np.float32(1), "k": base["k"]},
        {"a": np.ones(1, np.float32), "k": base["k"]},
    ]
    prints = [train.fingerprint(tree) for tree in (base, *others)]
    assert len(set(prints)) == len(prints)
    assert all(len(text) == 64 for text in prints)
    assert train.fingerprint({"k": base["k"], "a": jnp.asarray(np.asfortranarray(base["a"]))}) == prints[0]
