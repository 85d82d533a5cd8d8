"""Batches with numbers or flags in place of classes, and with rows drawn by weight."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxptft import data
from jaxptft.data import Batches


def ids_of(batches, number=0):
    first = number * batches.steps_per_epoch
    ids = np.concatenate([batches.batch_at(first + place)["ids"] for place in range(batches.steps_per_epoch)])
    return ids[ids >= 0]


@pytest.mark.parametrize("targets", [np.arange(5) / 4, np.arange(15).reshape(5, 3) % 2 == 0])
def test_targets_come_as_float32_under_label(ragged, targets):
    batches = Batches(ragged([3, 9, 5, 2, 7]), targets=targets, batch_size=3, multiple_of=4)
    for step in range(2):
        batch = batches.batch_at(step)
        assert batch["label"].dtype == np.float32
        assert batch["label"].shape == (4, *targets.shape[1:])
        for row, label in zip(batch["ids"], batch["label"], strict=True):
            np.testing.assert_array_equal(label, targets[row] if row >= 0 else 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": [1.0]}, r"targets have shape \(1,\), expected \(3,\) or \(3, outputs\)"),
        ({"targets": np.zeros((3, 1, 1))}, r"targets have shape \(3, 1, 1\)"),
        ({"targets": ["a", "b", "c"]}, "targets are <U1, expected numbers"),
        ({"targets": [0.0, np.nan, 1.0]}, "example 1 has target nan, expected finite numbers of float32"),
        ({"targets": [0.0, 1.0, 1e39]}, r"example 2 has target 1e\+39"),
        ({"targets": [0.0, 1.0, 2.0], "labels": [0, 1, 1]}, "both labels and targets are given; give one"),
        ({"weights": [1.0, 1.0]}, r"weights have shape \(2,\), expected \(3,\): one for every row"),
        ({"weights": [1.0, -1.0, 1.0]}, "example 1 has weight -1.0, expected 0 or a positive number"),
        ({"weights": [1.0, np.inf, 1.0]}, "example 1 has weight inf"),
        ({"weights": [0.0, 0.0, 0.0]}, "all weights are 0"),
        ({"weights": [1.0, 1.0, 1.0], "shuffle": False}, "weights are given and shuffle is off"),
    ],
)
def test_bad_targets_and_weights(ragged, options, said):
    with pytest.raises(ValueError, match=said):
        Batches(ragged([1, 2, 3]), batch_size=2, **options)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0, 10.0]), min_size=1, max_size=40).filter(any),
    seed=st.integers(0, 99),
    number=st.integers(0, 1000),
)
def test_a_row_comes_as_often_as_its_share_rounded_up_or_down(ragged, weights, seed, number):
    batches = Batches(ragged([3] * len(weights)), batch_size=7, seed=seed, weights=weights)
    counts = np.bincount(ids_of(batches, number), minlength=len(weights))
    shares = len(weights) * np.array(weights) / sum(weights)
    assert counts.sum() == len(weights)
    assert np.all(counts >= np.floor(shares - 1e-9))
    assert np.all(counts <= np.ceil(shares + 1e-9))
    batch = batches.batch_at(number)  # the same again, in any order of calls
    np.testing.assert_array_equal(
        batch["ids"], Batches(batches.tokenized, batch_size=7, seed=seed, weights=weights).batch_at(number)["ids"]
    )


def test_over_many_epochs_a_row_comes_as_its_weight_says(ragged):
    weights = np.array([0.5, 1.0, 1.0, 2.0, 0.0, 1.5, 0.3])
    batches = Batches(ragged([3] * 7), batch_size=4, weights=weights)
    counts = sum(np.bincount(ids_of(batches, number), minlength=7) for number in range(400))
    # Within a row's own rounding, which has a deviation of 1/2 at most an epoch.
    np.testing.assert_allclose(counts / 400, 7 * weights / weights.sum(), atol=4 * 0.5 / 20)


def test_drawn_rows_move_between_batches_and_epochs(ragged):
    batches = Batches(ragged([3] * 40), batch_size=8, weights=np.ones(40))
    orders = [tuple(ids_of(batches, number)) for number in range(4)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(40)) for order in orders)  # equal weights: every row once


def test_fingerprints(ragged):
    def of(**options):
        return Batches(ragged([3, 4, 5]), batch_size=2, **options).fingerprint

    prints = [
        of(),
        of(targets=[0.0, 1.0, 2.0]),
        of(targets=[0.0, 1.0, 3.0]),
        of(targets=[[0.0], [1.0], [2.0]]),
        of(weights=[1.0, 1.0, 1.0]),
        of(weights=[1.0, 1.0, 2.0]),
    ]
    assert len(set(prints)) == len(prints)


def test_without_weights_or_targets_nothing_is_new(ragged):
    """Recorded before either was there: the plan of an epoch and the fingerprint of such batches."""
    batches = Batches(ragged([3, 9, 5, 7, 1]), [0, 1, 1, 0, 1], batch_size=2, seed=5)
    assert ids_of(batches, 3).tolist() == [4, 2, 1, 3, 0]
    assert batches.fingerprint == "9f8c8f74bb63d4624d60682b233dc1c3bc68e78722fdf821f13e7b8f4364694d"


def test_balanced_weights_make_classes_and_label_sets_equal():
    labels = np.array([0, 0, 0, 1, 2, 2])
    weights = data.balanced_weights(labels)
    # By hand: every class weighs 1 in all.
    np.testing.assert_allclose([weights[labels == c].sum() for c in range(3)], 1.0)
    sets = np.array([[1, 0], [1, 1], [1, 0], [0, 0], [0, 0]], bool)
    np.testing.assert_allclose(data.balanced_weights(sets), [1 / 3, 1, 1 / 3, 1 / 2, 1 / 2])
    with pytest.raises(ValueError, match=r"labels are float64 of shape \(3,\); balancing needs classes or label sets"):
        data.balanced_weights(np.zeros(3))
