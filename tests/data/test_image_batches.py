import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxptft import data
from jaxptft.data import ImageBatches


def counted(rows, channels=1):
    """Images of 2 x 3 pixels; each is known by its values."""
    values = np.arange(rows * 6 * channels, dtype=np.int64).reshape(rows, 2, 3, channels)
    return data.make_images((values * 7 % 251).astype(np.uint8), names=None)


def epoch(batches, number=0):
    return [batches.batch_at(number * batches.steps_per_epoch + place) for place in range(batches.steps_per_epoch)]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 50),
    batch_size=st.integers(1, 17),
    multiple_of=st.sampled_from([1, 3, 8]),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**40),
    number=st.integers(0, 10**6),
)
def test_every_epoch_has_every_row_once(rows, batch_size, multiple_of, shuffle, seed, number):
    images, labels = counted(rows), np.arange(rows) % 3
    options = {"batch_size": batch_size, "multiple_of": multiple_of, "shuffle": shuffle, "seed": seed}
    batches = ImageBatches(images, labels, **options)
    seen = []
    for batch in epoch(batches, number):
        assert {name: array.dtype.name for name, array in batch.items()} == {
            "image": "uint8",
            "ids": "int32",
            "valid": "bool",
            "label": "int32",
        }
        assert len(batch["ids"]) == batches.rows_per_batch == -(-batch_size // multiple_of) * multiple_of
        ids, valid = batch["ids"], batch["valid"]
        np.testing.assert_array_equal(valid, ids >= 0)
        np.testing.assert_array_equal(batch["image"][valid], images.pixels[ids[valid]])
        np.testing.assert_array_equal(batch["label"][valid], labels[ids[valid]])
        assert not batch["image"][~valid].any()
        assert not batch["label"][~valid].any()
        assert valid.any()
        seen += ids[valid].tolist()
    assert sorted(seen) == list(range(rows))
    assert shuffle or seen == list(range(rows))


def test_a_step_says_all():
    batches, steps = ImageBatches(counted(23), batch_size=4, seed=3), range(30)
    expected = [batches.batch_at(step) for step in steps]
    again = ImageBatches(counted(23), batch_size=4, seed=3)
    for step in np.random.default_rng(0).permutation(steps):
        for name, array in again.batch_at(int(step)).items():
            np.testing.assert_array_equal(array, expected[step][name])
    assert "label" not in expected[0]


def test_seed_and_epoch_change_the_order():
    def order(seed, number):
        batches = ImageBatches(counted(40), batch_size=7, seed=seed)
        return tuple(np.concatenate([batch["ids"][batch["valid"]] for batch in epoch(batches, number)]))

    assert len({order(seed, number) for seed in (0, 1) for number in (0, 1, 2)}) == 6


def test_devices_do_not_change_which_rows_come():
    one, eight = (ImageBatches(counted(23), batch_size=6, multiple_of=n) for n in (1, 8))
    assert one.fingerprint == eight.fingerprint
    for step in range(9):
        np.testing.assert_array_equal(eight.batch_at(step)["ids"][:6], one.batch_at(step)["ids"])
        assert not eight.batch_at(step)["valid"][6:].any()


def test_a_batch_can_be_changed_without_harm():
    batches = ImageBatches(counted(6), batch_size=4)
    batches.batch_at(0)["image"][...] = 0
    assert batches.batch_at(0)["image"].any()


def test_weights_decide_how_often_a_row_comes():
    batches = ImageBatches(counted(8), batch_size=4, weights=[1, 1, 0, 0, 0, 0, 2, 4])
    for number in range(3):
        ids = np.concatenate([batch["ids"] for batch in epoch(batches, number)])
        # Eight draws whose shares are 1, 1, 2 and 4 of 8, by hand.
        assert np.bincount(ids, minlength=8).tolist() == [1, 1, 0, 0, 0, 0, 2, 4]


def test_content_is_of_the_pixels_and_fingerprint_of_all():
    def of(rows=9, labels=None, batch_size=2, **options):
        return ImageBatches(counted(rows), labels, batch_size=batch_size, **options)

    kinds = [
        of(),
        of(10),
        of(labels=[0] * 9),
        of(labels=[1] * 9),
        of(batch_size=3),
        of(seed=1),
        of(shuffle=False),
        of(weights=[1] * 9),
        of(weights=[1, 2, 3] * 3),
    ]
    assert len({batches.fingerprint for batches in kinds}) == len(kinds)
    assert len({batches.content for batches in kinds}) == 2  # 9 rows, and 10
    assert of().content == counted(9).content


@pytest.mark.parametrize(
    "options, said",
    [
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"multiple_of": 0}, "multiple_of is 0, expected at least 1"),
        ({"labels": [0, 1]}, r"labels have shape \(2,\), expected \(3,\): one for every row"),
        ({"labels": [0, 1, 2], "classes": 2}, "example 2 has label 2, expected 0 to 1"),
        ({"weights": [1, 1, 1], "shuffle": False}, "weights are given and shuffle is off"),
        ({"weights": [0, 0, 0]}, "all weights are 0"),
        ({"weights": [1, -1, 0]}, "example 1 has weight -1.0, expected 0 or a positive number"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ValueError, match=said):
        ImageBatches(counted(3), **({"batch_size": 2} | options))


def test_bad_steps_and_no_rows():
    with pytest.raises(ValueError, match="step is -1, expected 0 or more"):
        ImageBatches(counted(3), batch_size=2).batch_at(-1)
    with pytest.raises(TypeError, match="float"):
        ImageBatches(counted(3), batch_size=2).batch_at(1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are no images to make batches of"):
        ImageBatches(counted(3).select(np.zeros(0, int)), batch_size=2)


def test_a_process_reads_the_images_of_its_own_rows_alone():
    batches = ImageBatches(counted(10), np.arange(10) % 3, batch_size=4, multiple_of=6, seed=1)
    own = np.array([0, 1, 5])
    for step in range(5):
        whole, part = batches.batch_at(step), batches.only(own).batch_at(step)
        for name in ("ids", "valid", "label"):
            np.testing.assert_array_equal(part[name], whole[name])
        np.testing.assert_array_equal(part["image"][own], whole["image"][own])
        assert not part["image"][[2, 3, 4]].any()
    assert batches.batch_at(0)["image"][[2, 3]].any()
    assert batches.only(own).fingerprint == batches.fingerprint
