"""What a run measures before its first step, in its folder: of what it was, and that a run which is resumed has it."""

import shutil

import numpy as np
import pytest

from jaxptft import train
from jaxptft.recipes import adaptation
from jaxptft.recipes.measured import Measured

TREE = {"a": {"w": np.array([0.1, 0.2], np.float32), "b": None}, "c": np.float32(3)}


def never():
    raise AssertionError("measured anew")


def test_a_run_that_is_resumed_has_what_it_measured_to_the_bit(tmp_path):
    first = Measured(tmp_path, resume=False)
    first.take("weights", "of these rows", lambda: TREE, like=TREE)
    assert not any(tmp_path.iterdir())  # the folder is not the run's yet
    first.keep()
    like = {"a": {"w": 0.0, "b": None}, "c": 0.0}
    found = Measured(tmp_path, resume=True).take("weights", "of these rows", never, like=like)
    assert found["a"]["b"] is None
    assert (found["a"]["w"].dtype, found["a"]["w"].tobytes()) == (np.float32, TREE["a"]["w"].tobytes())
    assert found["c"] == 3
    with pytest.raises(ValueError, match=r"was trained with another weights \(of these row then, of others now\)"):
        Measured(tmp_path, resume=True).take("weights", "of others", never, like=like)


def test_a_run_that_starts_or_whose_file_is_damaged_measures_anew(tmp_path):
    first = Measured(tmp_path, resume=False)
    first.take("weights", "rows", lambda: TREE, like=TREE)
    first.keep()
    assert Measured(tmp_path, resume=False).take("weights", "others", lambda: 5.0, like=0.0) == 5.0
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:-1])
    assert Measured(tmp_path, resume=True).take("weights", "rows", lambda: 7.0, like=0.0) == 7.0


@pytest.mark.slow
def test_importance_and_weights_of_rows_are_those_of_the_beginning(
    fine_tune, classifier, files, csv_file, tmp_path, monkeypatch, tensors_of
):
    """The second half is lost, and another machine would measure other last bits: it is not asked."""
    target = csv_file(tmp_path / "target.csv", [(f"one book and {word} one", "x") for word in ("good", "bad")] * 4)
    held = shutil.copy(files.dev, tmp_path / "held.csv")
    values = {
        "model": str(classifier),
        "ewc": {"weight": 2.0, "data": str(held), "rows": 20},
        "adaptation": {"target": str(target), "importance": True},
        "keep_checkpoints": 2,
    }
    whole = fine_tune(tmp_path / "whole", **values)
    shutil.copytree(whole.out, tmp_path / "half")
    shutil.rmtree(next((tmp_path / "half" / "checkpoints").glob("step_*6")))
    monkeypatch.setattr(train, "diagonal_fisher", lambda *args, **options: never())
    monkeypatch.setattr(adaptation, "importance_weights", lambda *args, **options: never())
    again = fine_tune(tmp_path / "half", **values, resume=True)
    assert "at step 3" in again.said
    expected, found = (tensors_of(out / "model") for out in (whole.out, tmp_path / "half"))
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
    held.write_text(held.read_text() + "so it was good,pos\n")
    with pytest.raises(ValueError, match="was trained with another elastic weights"):
        fine_tune(tmp_path / "half", **values, resume=True)
