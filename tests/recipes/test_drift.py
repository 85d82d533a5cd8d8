"""How far parameters moved, by numpy."""

import numpy as np
import pytest

from jaxptft.recipes.drift import drift
from jaxptft.recipes.training_plan import piece_of

RNG = np.random.default_rng(0)


def test_leaves_and_layers_are_numpys():
    before = {"backbone": {"layer_0": {"kernel": RNG.normal(size=(3, 4)), "bias": RNG.normal(size=4)}}}
    after = {
        "backbone": {"layer_0": {"kernel": RNG.normal(size=(3, 4)), "bias": before["backbone"]["layer_0"]["bias"]}}
    }
    leaves = drift(after, before)
    (layer,) = drift(after, before, by=piece_of).values()
    assert leaves["backbone/layer_0/bias"] == (0.0, 1.0)
    for found, parts in ((leaves["backbone/layer_0/kernel"], ["kernel"]), (layer, ["kernel", "bias"])):
        a, b = (
            np.concatenate([tree["backbone"]["layer_0"][part].ravel() for part in parts]) for tree in (after, before)
        )
        assert found.relative_l2 == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b))
        assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_small_step_is_told_from_none():
    """(1, 0) to (1, 1e-5): the cosine is 1 - 5e-11, which float32 cannot say."""
    found = drift({"w": np.array([1, 1e-5], np.float32)}, {"w": np.array([1, 0], np.float32)})["w"]
    assert found.relative_l2 == pytest.approx(1e-5)
    assert 1 - found.cosine == pytest.approx(5e-11, rel=1e-3)


def test_from_zero_there_is_no_relative_drift():
    assert drift({"w": np.ones(2)}, {"w": np.zeros(2)})["w"] == (None, None)
    assert drift({"w": np.zeros(2)}, {"w": np.zeros(2)})["w"] == (0.0, 1.0)


def test_other_parameters_are_refused():
    with pytest.raises(ValueError, match=r"b is in one of the models alone; only the same parameters can be compared"):
        drift({"a": np.ones(1), "b": np.ones(1)}, {"a": np.ones(1)})
    with pytest.raises(ValueError, match=r"a has shape \(2,\) before and \(1,\) after; they must be the same"):
        drift({"a": np.ones(1)}, {"a": np.ones(2)})
