import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxptft import data
from jaxptft.data import Batches, length_buckets

LENGTHS = np.random.default_rng(0).integers(1, 60, 237)


def epoch(batches, number=0):
    first = number * batches.steps_per_epoch
    return [batches.batch_at(first + place) for place in range(batches.steps_per_epoch)]


def seen(batches, number=0):
    ids = np.concatenate([batch["ids"] for batch in epoch(batches, number)])
    return ids[ids >= 0]


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])
        assert left[name].dtype == right[name].dtype


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=70),
    batch_size=st.integers(1, 17),
    multiple_of=st.sampled_from([1, 2, 3, 8]),
    window=st.integers(1, 5),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**40),
    number=st.integers(0, 10**6),
)
def test_every_epoch_has_every_row_once(ragged, lengths, batch_size, multiple_of, window, shuffle, seed, number):
    tokenized = ragged(lengths, max_length=40, pad_id=0)
    labels = np.arange(len(lengths)) % 3
    batches = Batches(
        tokenized,
        labels,
        batch_size=batch_size,
        multiple_of=multiple_of,
        window=window,
        shuffle=shuffle,
        seed=seed,
    )
    counted = np.zeros(len(lengths), int)
    for batch in epoch(batches, number):
        rows = len(batch["ids"])
        assert rows % multiple_of == 0
        assert batch_size <= rows < batch_size + multiple_of
        np.testing.assert_array_equal(batch["valid"], batch["ids"] >= 0)
        assert 1 <= batch["valid"].sum() <= batch_size
        for place, row in enumerate(batch["ids"]):
            mask = batch["attention_mask"][place].astype(bool)
            if row < 0:
                assert not mask.any()
                assert not batch["input_ids"][place].any()
                assert not batch["token_type_ids"][place].any()
                assert batch["label"][place] == 0
                continue
            counted[row] += 1
            # The fixture's tokens count up from 1, so every row is known by its tokens.
            np.testing.assert_array_equal(batch["input_ids"][place][mask], tokenized.row(row))
            assert not batch["input_ids"][place][~mask].any()
            assert mask[: lengths[row]].all()
            np.testing.assert_array_equal(
                batch["token_type_ids"][place],
                mask & (np.arange(len(mask)) >= (lengths[row] + 1) // 2),
            )
            assert batch["label"][place] == labels[row]
    np.testing.assert_array_equal(counted, 1)


def test_dtypes_and_shapes(ragged):
    batches = Batches(ragged([3, 9, 5]), np.array([0, 1, 1]), batch_size=2, multiple_of=4)
    assert (batches.steps_per_epoch, batches.rows_per_batch) == (2, 4)
    for batch in epoch(batches):
        dtypes = {name: array.dtype for name, array in batch.items()}
        assert dtypes.pop("valid") == np.dtype(bool)
        assert set(dtypes) == {"input_ids", "attention_mask", "token_type_ids", "label", "ids"}
        assert set(dtypes.values()) == {np.dtype(np.int32)}
        assert {array.shape[0] for array in batch.values()} == {4}
        assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["token_type_ids"].shape


def test_the_order_of_calls_is_irrelevant(ragged):
    def make():
        return Batches(ragged(LENGTHS), LENGTHS % 2, batch_size=16, seed=3)

    steps = list(range(70))  # four epochs and a half
    forwards = make()
    expected = [forwards.batch_at(step) for step in steps]
    backwards = make()
    for step in reversed(steps):
        same(backwards.batch_at(step), expected[step])
    jumping = make()
    for step in np.random.default_rng(0).permutation(steps):
        same(jumping.batch_at(step), expected[step])
    same(make().batch_at(10**6), forwards.batch_at(10**6))


def test_a_batch_can_be_changed_without_harm(ragged):
    batches = Batches(ragged(LENGTHS), LENGTHS % 2, batch_size=16)
    first = batches.batch_at(0)
    kept = {name: array.copy() for name, array in first.items()}
    for array in first.values():
        array[...] = 0
    same(batches.batch_at(0), kept)


def test_seed_and_epoch_change_the_order(ragged):
    def order(seed, number):
        return tuple(seen(Batches(ragged(LENGTHS), batch_size=16, seed=seed), number))

    orders = {order(seed, number) for seed in (0, 1, 2) for number in (0, 1, 2)}
    assert len(orders) == 9
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(237))}


def test_rows_meet_other_rows_every_epoch(ragged):
    batches = Batches(ragged([5] * 64), batch_size=8)
    together = [{frozenset(batch["ids"].tolist()) for batch in epoch(batches, number)} for number in range(2)]
    assert not together[0] & together[1]


def test_rows_of_a_batch_do_not_depend_on_the_number_of_devices(ragged):
    one = Batches(ragged(LENGTHS), batch_size=30)
    eight = Batches(ragged(LENGTHS), batch_size=30, multiple_of=8)
    assert eight.rows_per_batch == 32
    assert eight.fingerprint == one.fingerprint
    for step in range(20):
        left, right = one.batch_at(step), eight.batch_at(step)
        np.testing.assert_array_equal(right["ids"], [*left["ids"], -1, -1])
        np.testing.assert_array_equal(right["input_ids"][:30], left["input_ids"])


def test_any_batch_of_the_last_window_may_be_the_short_one(ragged):
    widths = set()
    for seed in range(40):
        short = [
            batch for batch in epoch(Batches(ragged(LENGTHS), batch_size=16, seed=seed)) if not batch["valid"].all()
        ]
        assert len(short) == 1
        assert short[0]["valid"].sum() == 237 % 16
        widths.add(short[0]["input_ids"].shape[1])
    assert min(widths) <= 16
    assert max(widths) >= 48


def test_bucketing_saves_padding(ragged):
    tokenized = ragged(LENGTHS)

    def cells(**options):
        return sum(batch["input_ids"].size for batch in epoch(Batches(tokenized, batch_size=16, **options)))

    # A window of one batch keeps the shuffled order: each batch is as wide as its longest row.
    assert cells() < 0.75 * cells(window=1)
    assert cells(window=1) <= cells(buckets=(60,))


def test_evaluation_is_ordered_by_length_and_is_the_same_every_epoch(ragged):
    batches = Batches(ragged(LENGTHS), batch_size=16, shuffle=False, seed=9)
    lengths = LENGTHS[seen(batches)]
    assert np.all(np.diff(lengths) <= 0)
    same(batches.batch_at(2), batches.batch_at(2 + 5 * batches.steps_per_epoch))
    assert not epoch(batches)[-1]["valid"].all()
    assert all(batch["valid"].all() for batch in epoch(batches)[:-1])


def test_widths_are_all_that_occur(ragged):
    batches = Batches(ragged(LENGTHS), batch_size=4)
    occurring = {batch["input_ids"].shape[1] for number in range(5) for batch in epoch(batches, number)}
    assert occurring <= set(batches.widths)
    assert set(batches.widths) <= set(length_buckets(59))


def test_without_labels(ragged):
    assert "label" not in Batches(ragged([3, 4]), batch_size=2).batch_at(0)


def test_padding_id(ragged):
    batch = Batches(ragged([2, 4], pad_id=77), batch_size=3, buckets=[6], shuffle=False).batch_at(0)
    # Tokens count up from 1, the longest row comes first, by hand.
    expected = [[3, 4, 5, 6, 77, 77], [1, 2, 77, 77, 77, 77], [77] * 6]
    np.testing.assert_array_equal(batch["input_ids"], expected)
    np.testing.assert_array_equal(batch["ids"], [1, 0, -1])


def test_only_two_epochs_are_kept(ragged, monkeypatch):
    made = []
    batches = Batches(ragged(LENGTHS), batch_size=16)
    plan = batches._make_plan.__func__
    monkeypatch.setattr(Batches, "_make_plan", lambda self, number: made.append(number) or plan(self, number))
    batches = Batches(ragged(LENGTHS), batch_size=16)
    for number in (0, 1, 0, 1, 2, 1, 2, 0):
        batches.batch_at(number * batches.steps_per_epoch)
    assert made == [0, 1, 2, 0]


def test_a_far_step_makes_one_plan(ragged, monkeypatch):
    made = []
    plan = Batches._make_plan
    monkeypatch.setattr(Batches, "_make_plan", lambda self, number: made.append(number) or plan(self, number))
    batches = Batches(ragged(LENGTHS), batch_size=16)
    batches.batch_at(10**6)
    assert made == [10**6 // batches.steps_per_epoch]


def test_length_buckets():
    # By hand, from the rule.
    assert length_buckets(20) == (8, 16, 20)
    assert length_buckets(64) == (8, 16, 24, 32, 40, 48, 56, 64)
    assert length_buckets(128)[7:] == (64, 80, 96, 112, 128)
    assert length_buckets(512)[12:] == (160, 192, 224, 256, 320, 384, 448, 512)
    assert length_buckets(1) == (1,)
    assert length_buckets(600)[-2:] == (576, 600)


def test_fingerprint(ragged):
    def of(labels=(0, 1, 1), batch_size=2, **options):
        return Batches(ragged([3, 4, 5]), labels, batch_size=batch_size, **options).fingerprint

    others = [
        of(),
        of((0, 1, 0)),
        of(None),
        of(batch_size=1),
        of(seed=1),
        of(shuffle=False),
        of(window=2),
        of(buckets=[6]),
    ]
    assert len(set(others)) == len(others)
    assert of(multiple_of=8) == of()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1], r"labels have shape \(2,\), expected \(3,\): one for every row"),
        ([0, 1, -1], "example 2 has label -1, expected 0 to 1"),
        ([0, 5, 2], "example 1 has label 5, expected 0 to 1"),
        ([0.0, 1.0, 1.0], "labels are float64, expected whole numbers"),
    ],
)
def test_bad_labels(ragged, labels, said):
    with pytest.raises(ValueError, match=said):
        Batches(ragged([1, 2, 3]), labels, batch_size=2, classes=2)


def test_negative_label_without_classes(ragged):
    with pytest.raises(ValueError, match="example 0 has label -1, expected 0 or more"):
        Batches(ragged([1]), [-1], batch_size=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"multiple_of": 0}, "multiple_of is 0, expected at least 1"),
        ({"window": -1}, "window is -1, expected at least 1"),
        ({"buckets": [2]}, "the last bucket is 2, and a row has 3 tokens; add a wider bucket"),
        ({"buckets": [8, 4]}, r"buckets are \[8, 4\], expected positive widths in ascending order"),
        ({"buckets": [0, 4]}, r"buckets are \[0, 4\], expected positive widths in ascending order"),
        ({"buckets": []}, r"buckets are \[\], expected positive widths"),
    ],
)
def test_bad_options(ragged, options, said):
    with pytest.raises(ValueError, match=said):
        Batches(ragged([1, 2, 3]), **({"batch_size": 2} | options))


def test_bad_steps(ragged):
    batches = Batches(ragged([1, 2, 3]), batch_size=2)
    with pytest.raises(ValueError, match="step is -1, expected 0 or more"):
        batches.batch_at(-1)
    with pytest.raises(TypeError, match="float"):
        batches.batch_at(1.0)  # type: ignore[arg-type]
    assert batches.batch_at(np.int64(1))["ids"].shape == (2,)


def test_no_rows(ragged):
    empty = data.Tokenized(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int32), 8, 0, 0, "")
    with pytest.raises(ValueError, match="there are no rows to make batches of"):
        Batches(empty, batch_size=2)


def test_text_to_batches(tokenizer, sentences_of):
    """The whole way, against what transformers pads: each row's ids, mask and types."""
    table = data.make_table(sentences_of(50), list("xy" * 25), pairs=sentences_of(50, seed=2))
    batches = Batches(data.tokenize(table, tokenizer, 48), table.labels, batch_size=7, multiple_of=2)
    theirs = tokenizer(table.texts, table.pairs, truncation=True, max_length=48, padding="max_length")
    for batch in epoch(batches):
        width = batch["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            expected = np.array(theirs[name])[batch["ids"][batch["valid"]], :width]
            np.testing.assert_array_equal(batch[name][batch["valid"]], expected)
        np.testing.assert_array_equal(
            batch["label"][batch["valid"]], batch["ids"][batch["valid"]] % 2
        )  # labels alternate


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    count=st.integers(1, 4),
    price=st.sampled_from([0.0, 20.5, 90.5]),
)
def test_fitted_buckets_cost_as_little_as_the_best_choice_by_trying_all(lengths, count, price):
    lengths = np.array(lengths)
    most = -(-lengths.max() // 8)

    def padded(widths):
        return np.array(widths)[np.searchsorted(widths, lengths)].sum()

    choices = (
        [*(8 * width for width in chosen), 8 * most]
        for size in range(min(count, most))
        for chosen in itertools.combinations(range(1, most), size)
    )
    found = data.fitted_buckets(lengths, count, price=price)
    assert len(found) <= count
    assert found[-1] == 8 * most
    assert padded(found) + price * len(found) == min(padded(widths) + price * len(widths) for widths in choices)


@pytest.mark.parametrize("lengths, count", [([], 1), ([3], 0)])
def test_fitted_buckets_need_rows_and_a_width(lengths, count):
    with pytest.raises(ValueError, match="expected at least one of each"):
        data.fitted_buckets(np.array(lengths, np.int64), count)


def test_sizes_take_the_fewest_rows_that_hold_a_width_and_fill_up_with_shorter_ones(ragged):
    lengths = [3, 30, 4, 12, 31, 5, 29, 2, 6, 7]
    batches = Batches(ragged(lengths), batch_size=4, sizes=(1, 2, 4), shuffle=False, buckets=(8, 16, 32))
    shapes = [batches.batch_at(step)["input_ids"].shape for step in range(batches.steps_per_epoch)]
    # Three of width 32 leave room for the one of width 16; six of width 8 are four and two.
    assert shapes == [(4, 32), (4, 8), (2, 8)]
    seen = [batches.batch_at(step)["ids"].tolist() for step in range(3)]
    assert seen == [[4, 1, 6, 3], [9, 8, 5, 2], [0, 7]]
    assert batches.cells == 4 * 32 + 4 * 8 + 2 * 8
    lone = Batches(ragged([30, 3, 3, 3]), batch_size=4, sizes=(1, 2, 4), shuffle=False, buckets=(8, 32))
    assert [lone.batch_at(step)["ids"].tolist() for step in range(2)] == [[0], [1, 2, 3, -1]]
    assert lone.batch_at(1)["valid"].tolist() == [True, True, True, False]
    on_devices = Batches(ragged([3]), batch_size=4, sizes=(1, 4), shuffle=False, multiple_of=2)
    assert on_devices.batch_at(0)["ids"].tolist() == [0, -1]


@pytest.mark.parametrize(
    "options", [{"shuffle": True}, {"sizes": (4, 2)}, {"sizes": ()}, {"sizes": (0, 4)}, {"sizes": (1, 2)}]
)
def test_sizes_that_do_not_fit_are_refused(ragged, options):
    options = {"batch_size": 4, "sizes": (1, 4), "shuffle": False} | options
    with pytest.raises(ValueError, match=r"expected ascending numbers up to batch_size \(4\), and no shuffle"):
        Batches(ragged([3]), **options)
