import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxptft import data
from jaxptft.data import Batches, PackedBatches, pack

# Skewed, as sentences are: most short, a few as long as a row.
LENGTHS = np.minimum(1 + np.random.default_rng(0).lognormal(2, 1, 500).astype(int), 64)


def epoch(batches, number=0):
    first = number * batches.steps_per_epoch
    return [batches.batch_at(first + place) for place in range(batches.steps_per_epoch)]


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])
        assert left[name].dtype == right[name].dtype


def rows_of(packing):
    return np.split(packing.examples, packing.offsets[1:-1])


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=80),
    capacity=st.integers(24, 40),
    segments=st.sampled_from([None, 1, 2, 5]),
)
def test_packing_is_sound_and_as_best_fit_decreasing(lengths, capacity, segments):
    packing = pack(np.array(lengths), capacity, segments=segments)
    np.testing.assert_array_equal(np.sort(packing.examples), np.arange(len(lengths)))
    rows = [[lengths[example] for example in row] for row in rows_of(packing)]
    assert all(1 <= len(row) <= (segments or len(row)) and sum(row) <= capacity for row in rows)
    if segments is not None:
        return
    room = []  # best-fit decreasing, one example at a time
    for length in sorted(lengths, reverse=True):
        fits = [left for left in room if left >= length]
        best = min(fits, default=capacity)
        if fits:
            room.remove(best)
        room.append(best - length)
    assert sorted(capacity - sum(row) for row in rows) == sorted(room)


def test_packing_by_hand():
    # Of 10: 7 + 3, 6 + 4, 5 + 2, best fit for each; two at most a row leaves the 1 on its own.
    packing = pack(np.array([2, 3, 4, 5, 6, 7, 1]), 10)
    assert sorted(sorted(row.tolist()) for row in rows_of(packing)) == [[0, 3, 6], [1, 5], [2, 4]]
    packing = pack(np.array([2, 3, 4, 5, 6, 7, 1]), 10, segments=2)
    assert sorted(sorted(row.tolist()) for row in rows_of(packing)) == [[0, 3], [1, 5], [2, 4], [6]]


def test_many_examples_are_packed_whole():
    lengths = np.minimum(1 + np.random.default_rng(1).lognormal(3.5, 1, 200_000).astype(int), 512)
    packing = pack(lengths, 512)
    np.testing.assert_array_equal(np.sort(packing.examples), np.arange(200_000))
    tokens = np.add.reduceat(lengths[packing.examples], packing.offsets[:-1])
    assert tokens.max() <= 512
    assert lengths.sum() / (512 * len(tokens)) > 0.999  # no packing can do better than 1


@pytest.mark.parametrize(
    ("lengths", "options", "said"),
    [
        ([3, 11], {}, "example 1 has 11 tokens, and a row takes 1 to 10; give longer rows, or cut it"),
        ([3, 0], {}, "example 1 has 0 tokens, and a row takes 1 to 10; leave it out"),
        ([3], {"segments": 0}, "segments is 0, expected at least 1"),
    ],
)
def test_what_cannot_be_packed(lengths, options, said):
    with pytest.raises(ValueError, match=said):
        pack(np.array(lengths), 10, **options)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    length=st.integers(24, 40),
    segments=st.sampled_from([None, 1, 3, 30]),
    multiple_of=st.sampled_from([1, 2, 8]),
    shuffle=st.booleans(),
    number=st.integers(0, 10**6),
)
def test_every_epoch_has_every_example_once_and_whole(
    ragged, lengths, batch_size, length, segments, multiple_of, shuffle, number
):
    tokenized = ragged(lengths, max_length=24, pad_id=0)
    labels = np.arange(len(lengths)) % 3
    options = {"batch_size": batch_size, "length": length, "segments": segments, "multiple_of": multiple_of}
    batches = PackedBatches(tokenized, labels, shuffle=shuffle, **options)
    assert batches.widths == (length,)
    counted = np.zeros(len(lengths), int)
    for batch in epoch(batches, number):
        rows = len(batch["ids"])
        assert rows == batches.rows_per_batch
        assert rows % multiple_of == 0
        assert batch["ids"].shape == batch["valid"].shape == batch["label"].shape == (rows, batches.segments)
        np.testing.assert_array_equal(batch["valid"], batch["ids"] >= 0)
        assert 1 <= batch["valid"].any(1).sum() <= batch_size
        for row in range(rows):
            ids = batch["ids"][row][batch["valid"][row]]
            assert np.all(batch["valid"][row][: len(ids)])  # from the front
            assert not batch["label"][row][len(ids) :].any()
            end = 0
            for place, example in enumerate(ids):
                counted[example] += 1
                cells = slice(end, end + lengths[example])
                end = cells.stop
                # The fixture's tokens count up from 1, so every example is known by its tokens.
                np.testing.assert_array_equal(batch["input_ids"][row, cells], tokenized.row(example))
                within = np.arange(lengths[example])
                np.testing.assert_array_equal(batch["position_ids"][row, cells], within)
                np.testing.assert_array_equal(
                    batch["token_type_ids"][row, cells], within >= (lengths[example] + 1) // 2
                )
                assert np.all(batch["segment_ids"][row, cells] == place + 1)
                assert np.all(batch["attention_mask"][row, cells] == 1)
                assert batch["label"][row, place] == labels[example]
            for name in ("input_ids", "attention_mask", "token_type_ids", "segment_ids", "position_ids"):
                assert not batch[name][row, end:].any()
    np.testing.assert_array_equal(counted, 1)


def test_dtypes_and_padding(ragged):
    batches = PackedBatches(
        ragged([3, 2, 4], pad_id=77), [0, 1, 1], batch_size=2, length=8, multiple_of=3, shuffle=False
    )
    assert (batches.steps_per_epoch, batches.rows_per_batch, batches.segments) == (1, 3, 2)
    batch = batches.batch_at(0)
    # Tokens count up from 1; by hand: 4 + 3 share the first row.
    expected = [[6, 7, 8, 9, 1, 2, 3, 77], [4, 5, *[77] * 6], [77] * 8]
    np.testing.assert_array_equal(batch["input_ids"], expected)
    np.testing.assert_array_equal(batch["segment_ids"], [[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, *[0] * 6], [0] * 8])
    np.testing.assert_array_equal(batch["position_ids"], [[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, *[0] * 6], [0] * 8])
    np.testing.assert_array_equal(batch["ids"], [[2, 0], [1, -1], [-1, -1]])
    np.testing.assert_array_equal(batch["label"], [[1, 0], [1, 0], [0, 0]])
    dtypes = {name: array.dtype for name, array in batch.items()}
    assert dtypes.pop("valid") == np.dtype(bool)
    assert set(dtypes.values()) == {np.dtype(np.int32)}
    assert "label" not in PackedBatches(ragged([3]), batch_size=2, length=8).batch_at(0)


def test_the_order_of_calls_is_irrelevant(ragged):
    def make():
        return PackedBatches(ragged(LENGTHS), batch_size=8, length=64, seed=3)

    steps = list(range(4 * make().steps_per_epoch + 3))
    forwards = make()
    expected = [forwards.batch_at(step) for step in steps]
    jumping = make()
    for step in np.random.default_rng(0).permutation(steps):
        same(jumping.batch_at(step), expected[step])
    same(make().batch_at(10**6), forwards.batch_at(10**6))
    for array in forwards.batch_at(0).values():
        array[...] = 0
    same(forwards.batch_at(0), expected[0])


def test_seed_and_epoch_change_the_order_and_who_shares_a_row(ragged):
    def together(seed, number):
        batches = PackedBatches(ragged(LENGTHS), batch_size=8, length=64, seed=seed)
        return {frozenset(row[row >= 0].tolist()) for batch in epoch(batches, number) for row in batch["ids"]}

    rows = [together(seed, number) for seed in (0, 1) for number in (0, 1)]
    assert len({frozenset(row) for row in rows}) == 4
    # The few examples of a length of their own stay where they are; most rows are new.
    assert len(rows[0] & rows[1]) < len(rows[0]) / 4


def test_evaluation_is_the_same_every_epoch(ragged):
    batches = PackedBatches(ragged(LENGTHS), batch_size=8, length=64, shuffle=False, seed=9)
    same(batches.batch_at(2), batches.batch_at(2 + 5 * batches.steps_per_epoch))


def test_rows_do_not_depend_on_the_number_of_devices(ragged):
    one = PackedBatches(ragged(LENGTHS), batch_size=6, length=64)
    four = PackedBatches(ragged(LENGTHS), batch_size=6, length=64, multiple_of=4)
    assert (four.rows_per_batch, four.steps_per_epoch) == (8, one.steps_per_epoch)
    assert four.fingerprint == one.fingerprint
    for step in range(2 * one.steps_per_epoch):
        left, right = one.batch_at(step), four.batch_at(step)
        same(left, {name: array[:6] for name, array in right.items()})
        assert not right["valid"][6:].any()


def test_the_share_of_padding(ragged):
    tokenized = ragged(LENGTHS)
    packed = PackedBatches(tokenized, batch_size=8, length=64)
    alone = Batches(tokenized, batch_size=8, buckets=[64])
    bucketed = Batches(tokenized, batch_size=8, multiple_of=3)
    for batches in (packed, alone, bucketed):
        # numpy, over the batches themselves.
        masks = [batch["attention_mask"] for batch in epoch(batches)]
        cells = sum(mask.size for mask in masks)
        assert data.padding_share(batches) == pytest.approx(1 - sum(mask.sum() for mask in masks) / cells, abs=1e-12)
    assert data.padding_share(packed) < 0.1
    assert data.padding_share(alone) > 0.7


def test_fingerprint(ragged):
    def of(labels=(0, 1, 1), lengths=(3, 4, 5), batch_size=2, length=8, **options):
        return PackedBatches(ragged(lengths), labels, batch_size=batch_size, length=length, **options).fingerprint

    others = [
        of(),
        of((0, 1, 0)),
        of(None),
        of(batch_size=1),
        of(length=9),
        of(segments=1),
        of(seed=1),
        of(shuffle=False),
        Batches(ragged([3, 4, 5]), [0, 1, 1], batch_size=2).fingerprint,
    ]
    assert len(set(others)) == len(others)
    assert of(multiple_of=8) == of()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"length": 0}, "length is 0, expected at least 1"),
        ({"multiple_of": 0}, "multiple_of is 0, expected at least 1"),
        ({"segments": -1}, "segments is -1, expected at least 1"),
        ({"length": 2}, "example 2 has 3 tokens, and a row takes 1 to 2; give longer rows, or cut it"),
        ({"labels": [0, 1]}, r"labels have shape \(2,\), expected \(3,\): one for every row"),
        ({"labels": [0, 1, 5], "classes": 2}, "example 2 has label 5, expected 0 to 1"),
    ],
)
def test_bad_options(ragged, options, said):
    with pytest.raises(ValueError, match=said):
        PackedBatches(ragged([1, 2, 3]), **({"batch_size": 2, "length": 8} | options))


def test_bad_steps_and_no_examples(ragged):
    batches = PackedBatches(ragged([1, 2, 3]), batch_size=2, length=8)
    with pytest.raises(ValueError, match="step is -1, expected 0 or more"):
        batches.batch_at(-1)
    with pytest.raises(TypeError, match="float"):
        batches.batch_at(1.0)  # type: ignore[arg-type]
    empty = data.Tokenized(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int32), 8, 0, 0, "")
    with pytest.raises(ValueError, match="there are no examples to make batches of"):
        PackedBatches(empty, batch_size=2, length=8)
