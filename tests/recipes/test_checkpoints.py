"""`jaxptft checkpoints`: what a run keeps, and each kind of damage to it."""

import json
import shutil

import numpy as np
import pytest

from jaxptft import train
from jaxptft.recipes import checkpoints as recipe


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints and a best one, as the loop keeps them."""
    kept = train.CheckpointStore(tmp_path / "run/checkpoints")
    environment = {"versions": {"jax": "0.0.1"}, "devices": 2}
    for step in (3, 6):
        kept.save(step, {"w": np.arange(step)}, {"loop": {"best": 0.5, "best_step": 3}, "environment": environment})
    train.CheckpointStore(tmp_path / "run/checkpoints/best", keep=None).save(3, {"w": np.arange(3)}, {"metrics": {}})
    return tmp_path / "run"


def test_all_are_listed_with_what_they_hold(folder, command):
    told = command("checkpoints", folder, "--out", folder / "found.json")
    assert told.status == 0, told.err
    content = json.loads((folder / "found.json").read_text())
    found = content["checkpoints"]
    assert [(one["folder"], one["step"]) for one in found] == [
        ("checkpoints", 3),
        ("checkpoints", 6),
        ("checkpoints/best", 3),
    ]
    assert [(one["metric"], one["best_step"], one["damage"]) for one in found] == [
        (0.5, 3, None),
        (0.5, 3, None),
        (None, None, None),
    ]
    for one, line in zip(found, [line for line in told.out.splitlines() if "good" in line], strict=True):
        path = folder / one["folder"] / f"step_{one['step']:08d}"
        files = [file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"]
        # Orbax has a manifest of its own, arrays/manifest.ocdbt, which counts.
        assert one["bytes"] == sum(file.stat().st_size for file in files)
        assert f" {one['folder']} " in line
    assert told.out.count("jax 0.0.1 on 2") == told.out.count("0.5000 at 3") == 2
    assert content["leftovers"] == []


def test_the_folder_of_the_checkpoints_will_do(folder):
    result = recipe.run(recipe.Config(folder=folder / "checkpoints/best"), say=lambda line: None)
    assert [(one.folder, one.step) for one in result.checkpoints] == [("best", 3)]


@pytest.mark.parametrize("name", ["meta.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_damage_is_told_with_its_file_and_ends_with_an_error(folder, command, name, how):
    file = folder / "checkpoints/step_00000006" / name
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if how == "cut" else bytes([content[0] ^ 1]) + content[1:])
    told = command("checkpoints", folder, "--out", folder / "found.json")
    assert told.status == 2
    assert "1 of 3 checkpoints are damaged: checkpoints step 6; --resume passes over" in told.err
    said = [line for line in told.out.splitlines() if line.startswith("checkpoints, step 6 is damaged: ")]
    assert len(said) == 1
    assert str(file) in said[0]
    found = json.loads((folder / "found.json").read_text())["checkpoints"]
    assert [one["damage"] is None for one in found] == [True, False, True]
    assert train.CheckpointStore(folder / "checkpoints").steps() == [3, 6]  # nothing was changed


def test_what_a_kill_left_is_told_and_stays(folder, command):
    left = folder / "checkpoints/unfinished-step_00000009"
    shutil.copytree(folder / "checkpoints/step_00000006", left)
    told = command("checkpoints", folder)
    assert told.status == 0
    assert f"left by a process that was killed: {left}" in told.out
    assert left.is_dir()


def test_what_a_run_drops_meanwhile_is_no_damage(folder, monkeypatch):
    verify = train.CheckpointStore.verify

    def dropped(store, step):
        if step == 3 and store.folder.name == "checkpoints":
            shutil.rmtree(store.folder / "step_00000003")
        return verify(store, step)

    monkeypatch.setattr(train.CheckpointStore, "verify", dropped)
    result = recipe.run(recipe.Config(folder=folder), say=lambda line: None)
    assert [(one.folder, one.step) for one in result.checkpoints] == [("checkpoints", 6), ("checkpoints/best", 3)]


def test_where_there_is_nothing(tmp_path, refused):
    assert refused("checkpoints", tmp_path) == f"{tmp_path} holds no checkpoints"
    assert refused("checkpoints", tmp_path / "absent") == f"{tmp_path / 'absent'} is no folder; give that of a run"


def test_a_start_removes_what_a_kill_left_beside_the_best(fine_tune, classifier, command, tmp_path):
    run = fine_tune(tmp_path / "run", model=str(classifier))
    left = run.out / "checkpoints/best/doomed-step_00000001"
    shutil.copytree(next((run.out / "checkpoints/best").glob("step_*")), left)
    told = command("finetune", "--resume", "--out", run.out)
    assert told.status == 0, told.err
    assert not left.exists()
