"""Which checkpoint a run goes back to, where files of it or of its best model are damaged."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft import train


def flip(folder, step):
    path = max((path for path in (folder / f"step_{step:08d}" / "arrays").rglob("*") if path.is_file()), key=str)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.fixture
def stores(tmp_path):
    """Steps 2, 4 and 6, of which the best models are those of none, 3 and 6."""
    checkpoints = train.CheckpointStore(tmp_path / "checkpoints", keep=None)
    best = train.CheckpointStore(tmp_path / "checkpoints" / "best", keep=None)
    for step, best_step in ((2, -1), (4, 3), (6, 6)):
        checkpoints.save(step, {"w": jnp.full(3, step)}, {"loop": {"best_step": best_step}})
        if best_step >= 0:
            best.save(best_step, {"w": jnp.full(3, best_step)}, {})
    return checkpoints, best


@pytest.mark.parametrize(
    ("steps", "bests", "expected"),
    [
        ((), (), (6, True)),
        ((6,), (), (4, True)),
        ((), (6,), (4, True)),  # from which the best comes again
        ((), (6, 3), (2, True)),
        ((2,), (6, 3), (6, False)),
        ((2, 6), (3,), (4, False)),
    ],
)
def test_the_newest_step_whose_best_model_is_good_as_well(stores, steps, bests, expected, caplog):
    checkpoints, best = stores
    for store, damaged in ((checkpoints, steps), (best, bests)):
        for step in damaged:
            flip(store.folder, step)
    assert train.newest_whole(checkpoints, best) == expected
    if expected != (6, True):
        assert str(checkpoints.folder) in caplog.text
        assert "has changed since it was written" in caplog.text


def test_a_best_model_that_is_gone_is_damage(stores):
    checkpoints, best = stores
    shutil.rmtree(best.folder / "step_00000006")
    assert train.newest_whole(checkpoints, best) == (4, True)


def test_no_undamaged_step_is_an_error_that_names_a_file(stores):
    checkpoints, best = stores
    for step in (2, 4, 6):
        flip(checkpoints.folder, step)
    with pytest.raises(train.DamagedCheckpoint, match=r"is undamaged; the oldest: .*step_00000002.* has changed"):
        train.newest_whole(checkpoints, best)


def test_shapes_alone_give_numpy_and_a_cut_state_comes_back_cut(tmp_path):
    mesh, whole = train.make_mesh(fsdp=4), {"w": np.arange(64.0, dtype=np.float32).reshape(8, 8)}
    cut = train.spread(whole, mesh, smallest=1)
    store = train.CheckpointStore(tmp_path)
    store.save(1, cut, {})
    tree, _ = train.restore(store, {"w": jax.ShapeDtypeStruct((8, 8), np.float32)}, step=1)
    assert type(tree["w"]) is np.ndarray
    np.testing.assert_array_equal(tree["w"], whole["w"])
    for other in (train.spread(whole, train.make_mesh(fsdp=2), smallest=1), train.replicate(whole, mesh), cut):
        tree, _ = train.restore(store, other, step=1)
        assert tree["w"].sharding == other["w"].sharding
        np.testing.assert_array_equal(tree["w"], whole["w"])
