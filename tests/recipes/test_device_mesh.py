from pathlib import Path

import numpy as np
import pytest

from jaxptft import train
from jaxptft.recipes.device_mesh import choose_mesh, steps_together
from jaxptft.recipes.training_settings import LearningSettings


def test_more_devices_than_there_are_cannot_be_chosen():
    with pytest.raises(ValueError, match="devices is 1000, but this machine shows"):
        choose_mesh(LearningSettings(out=Path("run"), devices=1000))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"fsdp": 3}, "fsdp is 3, which does not divide 8 devices"),
        ({"devices": 2, "fsdp": 4}, "fsdp is 4, which does not divide 2 devices"),
        ({"fsdp": 2, "parallel": "pmap"}, "parallel is pmap, which does not go with fsdp=2"),
        (
            {"steps_per_dispatch": 8, "parallel": "pmap"},
            "pmap, which does not go with steps_per_dispatch=8",
        ),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(values, expected):
    with pytest.raises(ValueError, match=expected):
        choose_mesh(LearningSettings(out=Path("run"), **values))


def test_the_mesh_has_the_devices_that_were_asked_for():
    mesh = choose_mesh(LearningSettings(out=Path("run"), devices=4, fsdp=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2}


@pytest.mark.parametrize(
    ("values", "megabytes", "expected"),
    [
        ({}, 1, (8, 2.0)),
        ({}, 20, (3, 2.0)),
        ({}, 100, (1, 2.0)),
        ({"steps_per_dispatch": 5}, 100, (5, None)),
        ({"parallel": "pmap"}, 1, (1, None)),
    ],
)
def test_a_dispatch_has_as_many_steps_as_their_batches_allow(values, megabytes, expected):
    batch = {"pixels": np.zeros((megabytes, 2**20), np.uint8)}
    assert steps_together(LearningSettings(out=Path("run"), **values), batch) == expected


@pytest.mark.parametrize(("values", "mapped"), [({"devices": 1}, False), ({"devices": 2}, True), ({"fsdp": 2}, False)])
def test_a_run_says_itself_what_crosses_devices_where_each_has_the_whole_state(built, tmp_path, values, mapped):
    """In the program as it is written, before XLA splits it: only then are there reductions over devices in it."""
    training = built(tmp_path / "run", **({"devices": 2} | values), steps_per_dispatch=2).training
    (stage,) = training._stages()
    batches = train.shard_together([training.batches["train"].batch_at(0)], training.mesh, 2)
    written = stage.step.lower(training.state, training._constants, batches).as_text()
    assert ("all_reduce" in written) == mapped
