import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxptft import data
from jaxptft.data import Batches, PackedRows

# Skewed, as sentences are: most short, a few as long as a row.
LENGTHS = np.minimum(1 + np.random.default_rng(0).lognormal(2, 1, 500).astype(int), 64)


def epoch(batches, number=0):
    first = number * batches.steps_per_epoch
    return [batches.batch_at(first + place) for place in range(batches.steps_per_epoch)]


def by_example(batch, names):
    """What a packed batch holds of each valid example, by its id: its tokens' columns, and its own values."""
    found = {}
    for row, number in np.argwhere(batch["valid"]):
        here = np.flatnonzero(batch["segment_ids"][row] == number + 1)
        assert here[0] == batch["starts"][row, number]
        np.testing.assert_array_equal(here, here[0] + np.arange(len(here)))
        columns = {name: batch[name][row, here].tolist() for name in ("input_ids", "token_type_ids", "position_ids")}
        found[int(batch["ids"][row, number])] = columns | {name: batch[name][row, number].tolist() for name in names}
    return found


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    length=st.sampled_from([None, 24, 40]),
    segments=st.sampled_from([None, 1, 3]),
    shapes=st.integers(1, 3),
    multiple_of=st.sampled_from([1, 2, 8]),
    window=st.sampled_from([1, 50]),
    number=st.integers(0, 10**6),
)
def test_every_batch_holds_the_examples_of_the_unpacked_one(
    ragged, lengths, batch_size, length, segments, shapes, multiple_of, window, number
):
    tokenized = ragged(lengths, max_length=24, pad_id=0)
    targets = np.random.default_rng(0).normal(size=(len(lengths), 2)).astype(np.float32)
    plain = Batches(tokenized, targets=targets, batch_size=batch_size, window=window, multiple_of=multiple_of)
    rows = PackedRows(plain, length=length, segments=segments, shapes=shapes, multiple_of=multiple_of)
    assert rows.steps_per_epoch == plain.steps_per_epoch
    assert rows.length == (length or 64)
    assert len(rows.rows) <= shapes
    for unpacked, batch in zip(epoch(plain, number), epoch(rows, number), strict=True):
        count = len(batch["ids"])
        assert count % multiple_of == 0
        assert batch["ids"].shape == batch["valid"].shape == batch["starts"].shape == (count, rows.segments)
        assert batch["label"].shape == (count, rows.segments, 2)
        np.testing.assert_array_equal(batch["valid"], batch["ids"] >= 0)
        np.testing.assert_array_equal(batch["attention_mask"], batch["segment_ids"] > 0)
        assert not batch["label"][~batch["valid"]].any()
        assert not batch["input_ids"][batch["segment_ids"] == 0].any()
        assert batch["input_ids"].size == count * rows.length
        expected = {}
        for place in np.flatnonzero(unpacked["valid"]):
            size = lengths[unpacked["ids"][place]]
            expected[int(unpacked["ids"][place])] = {
                "input_ids": unpacked["input_ids"][place, :size].tolist(),
                "token_type_ids": unpacked["token_type_ids"][place, :size].tolist(),
                "position_ids": list(range(size)),
                "label": unpacked["label"][place].tolist(),
            }
        assert by_example(batch, ["label"]) == expected


def test_devices_change_neither_examples_nor_where_they_stand(ragged):
    def make(multiple_of):
        plain = Batches(ragged(LENGTHS), LENGTHS % 2, batch_size=32, window=1, multiple_of=multiple_of)
        return PackedRows(plain, shapes=3, multiple_of=multiple_of)

    one, eight = make(1), make(8)
    assert one.fingerprint == eight.fingerprint
    for left, right in zip(epoch(one, 2), epoch(eight, 2), strict=True):
        assert len(right["ids"]) % 8 == 0
        shared = min(len(left["ids"]), len(right["ids"]))
        for name in left:
            np.testing.assert_array_equal(left[name][:shared], right[name][:shared])
            assert not left["valid"][shared:].any()
            assert not right["valid"][shared:].any()


def test_rows_are_as_few_as_their_shapes_allow_and_every_epoch_has_room(ragged):
    plain = Batches(ragged(LENGTHS), batch_size=32, window=1)
    one, several = PackedRows(plain, shapes=1), PackedRows(plain, shapes=4)
    assert len(one.rows) == 1
    assert max(several.rows) == one.rows[0]
    assert several.padding_share < min(one.padding_share, data.padding_share(Batches(ragged(LENGTHS), batch_size=32)))
    for rows in (one, several):
        cells = sum(batch["input_ids"].size for batch in epoch(rows))
        assert rows.padding_share == pytest.approx(1 - LENGTHS.sum() / cells)  # every batch of the first epoch is seen
    # Fitted to the first epoch; a later batch that needs more has more.
    narrow = PackedRows(Batches(ragged([60] * 8 + [2] * 56), batch_size=4, window=1, seed=1), shapes=1)
    counts = {len(batch["ids"]) for number in range(60) for batch in epoch(narrow, number)}
    assert max(counts) > narrow.rows[0]


def test_there_are_as_many_shapes_as_save_the_steps_that_one_costs(ragged):
    plain = Batches(ragged(LENGTHS), batch_size=32, window=1)
    steps = plain.steps_per_epoch

    def cost(rows):
        """Steps of an epoch, each of the mean size, as many as the rows that are computed."""
        needed = np.array([(batch["valid"].any(1)).sum() for batch in epoch(rows)])
        return sum(len(batch["ids"]) for batch in epoch(rows)) / needed.mean()

    costs = [cost(PackedRows(plain, shapes=shapes)) for shapes in (1, 2, 3, 4)]
    for price in (0.0, 0.1, 0.5, steps):
        best = min(cost + price * number for number, cost in enumerate(costs))
        found = PackedRows(plain, shapes=4, price=price)
        assert cost(found) + price * (len(found.rows) - 1) == pytest.approx(best)
    assert len(PackedRows(plain, shapes=4, price=steps).rows) == 1


def test_labels_of_tokens_and_repeated_examples_are_packed_along(ragged):
    class Tagged(Batches):
        def batch_at(self, step):
            batch = super().batch_at(step)
            return batch | {"labels": np.where(batch["attention_mask"] > 0, batch["input_ids"] % 5, -100)}

    plain = Tagged(ragged(LENGTHS), batch_size=16, weights=(LENGTHS > 20).astype(float), window=1)
    rows = PackedRows(plain)
    for unpacked, batch in zip(epoch(plain), epoch(rows), strict=True):
        expected = np.where(batch["attention_mask"] > 0, batch["input_ids"] % 5, -100)
        np.testing.assert_array_equal(batch["labels"], expected)
        np.testing.assert_array_equal(
            np.sort(batch["ids"][batch["valid"]]), np.sort(unpacked["ids"][unpacked["valid"]])
        )


def test_what_decides_a_batch_is_in_the_fingerprint(ragged):
    def name(seed=0, **options):
        return PackedRows(Batches(ragged([3, 4, 5]), batch_size=2, seed=seed), **options).fingerprint

    names = [name(), name(seed=1), name(length=8), name(segments=1), name(shapes=2), name(shapes=2, price=1.0)]
    assert len(set(names)) == len(names)
    assert name() == name(multiple_of=8)


@pytest.mark.parametrize(
    ("lengths", "options", "said"),
    [
        ([3, 11], {"length": 10}, "example 1 has 11 tokens, and a row takes 1 to 10"),
        ([3, 0], {}, "example 1 has 0 tokens"),
        ([3], {"segments": 0}, "segments is 0, expected at least 1"),
        ([3], {"shapes": 0}, "shapes is 0, expected at least 1"),
        ([3], {"length": 0}, "length is 0, expected at least 1"),
    ],
)
def test_what_cannot_be_packed(ragged, lengths, options, said):
    with pytest.raises(ValueError, match=said):
        PackedRows(Batches(ragged(lengths), batch_size=2), **options)
