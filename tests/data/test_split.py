import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxptft import data

split = data.split


def table(classes, texts=None):
    texts = texts or [f"text {number}" for number in range(len(classes))]
    return data.make_table(texts, [str(label) for label in classes], names=[str(c) for c in range(max(classes) + 1)])


def test_fraction_and_count_and_order():
    whole = table([0, 1] * 50)
    rest, held = split(whole, 0.2, seed=0)
    assert (len(rest), len(held)) == (80, 20)
    assert len(split(whole, 7, seed=0)[1]) == 7
    for part in (rest, held):
        assert np.all(np.diff(part.rows) > 0)
    np.testing.assert_array_equal(np.sort(np.concatenate([rest.rows, held.rows])), whole.rows)


def test_every_class_gives_its_share():
    whole = table([0] * 60 + [1] * 30 + [2] * 10)
    held = split(whole, 0.1, seed=3)[1]
    np.testing.assert_array_equal(np.bincount(held.labels), [6, 3, 1])  # a tenth of each, by hand


def test_a_class_with_one_text_stays_in_training():
    whole = table([0] * 20 + [1])
    for seed in range(20):
        rest, _ = split(whole, 0.5, seed=seed)
        assert 1 in rest.labels


def test_seed_decides():
    whole = table([0, 1] * 50)
    same = [split(whole, 0.2, seed=1)[1].fingerprint for _ in range(2)]
    assert same[0] == same[1]
    assert split(whole, 0.2, seed=2)[1].fingerprint != same[0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=8, max_size=60),
    st.integers(0, 5),
    st.booleans(),
    st.floats(0.1, 0.6),
)
def test_one_text_is_never_on_both_sides(rows, seed, stratify, fraction):
    forms = ("Text {}", "text  {}", " TEXT {} ")
    whole = table([label for _, label in rows], [forms[label].format(number) for number, label in rows])
    size = max(1, round(fraction * len(rows)))
    try:
        rest, held = split(whole, size, seed=seed, stratify=stratify)
    except ValueError as error:
        assert "too few different texts" in str(error)  # noqa: PT017
        return

    def normal(part):
        return {" ".join(text.lower().split()) for text in part.texts}

    assert not normal(rest) & normal(held)
    assert len(rest) + len(held) == len(rows)
    assert 0 < len(held) <= size


def test_pairs_are_grouped_by_both_texts():
    whole = data.make_table(["same"] * 10, list("xy" * 5), pairs=[f"other {n}" for n in range(10)])
    assert len(split(whole, 4, seed=0)[1]) == 4


@pytest.mark.parametrize("size", [0, -1, 4, 9, 0.0, 0.05, 1.0])
def test_impossible_sizes(size):
    whole = table([0, 1, 0, 1])
    if size == 1.0:  # one row, as a count
        assert len(split(whole, size, seed=0)[1]) == 1
        return
    with pytest.raises(ValueError, match=f"cannot cut {size} off 4 rows; ask for at least 1 and fewer than all"):
        split(whole, size, seed=0)


def test_all_texts_alike():
    whole = table([0, 1, 0, 1], ["same"] * 4)
    with pytest.raises(ValueError, match="cannot cut 2 of 4 rows off; too few different texts"):
        split(whole, 2, seed=0)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "validation", "test"), "validation"),
        (("train", "validation_mismatched", "validation_matched", "test_matched"), "validation_matched"),
        (("train", "dev"), "dev"),
        (("train", "test"), None),  # a model is not chosen on the test split
        (("train",), None),
    ],
)
def test_choose_evaluation_split(splits, expected):
    assert data.choose_evaluation_split(splits) == expected
    assert data.choose_evaluation_split(dict.fromkeys(splits)) == expected


def test_training_data_from_two_files(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n")
    (tmp_path / "dev.jsonl").write_text('{"text": "c", "label": "y"}\n')
    both = data.read_training_data(tmp_path / "train.csv", tmp_path / "dev.jsonl")
    assert both.train.names == both.evaluation.names == ("x", "y")
    np.testing.assert_array_equal(both.evaluation.labels, [1])
    assert both.origin.endswith("dev.jsonl")
    (tmp_path / "dev.jsonl").write_text('{"text": "c", "label": "z"}\n')
    with pytest.raises(ValueError, match=r"dev\.jsonl, row 1, column 'label': label 'z' is not known; known are: x, y"):
        data.read_training_data(tmp_path / "train.csv", tmp_path / "dev.jsonl")


def test_training_data_cut_from_one_file(tmp_path):
    rows = "".join(f"text {number},{'xy'[number % 2]}\n" for number in range(40))
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    both = data.read_training_data(tmp_path / "train.csv", fraction=0.25, seed=5)
    assert (len(both.train), len(both.evaluation)) == (30, 10)
    assert both.origin.startswith("10 rows cut from ")
    assert both.origin.endswith("train.csv, seed 5")


def test_training_data_from_splits():
    def part(*texts):
        return datasets.Dataset.from_dict({"text": texts, "label": [number % 2 for number in range(len(texts))]})

    glue = datasets.DatasetDict(train=part("a", "b"), validation_matched=part("c"), test=part("d"))
    both = data.read_training_data(glue)
    assert (both.train.texts, both.evaluation.texts) == (["a", "b"], ["c"])
    assert both.origin == "the data set given[validation_matched]"
    both = data.read_training_data(datasets.DatasetDict(train=part(*"abcdefgh"), test=part("z")), fraction=0.25)
    assert (len(both.train), len(both.evaluation)) == (6, 2)
    assert data.read_training_data(glue, glue).evaluation.texts == ["c"]


def test_a_split_that_is_asked_for_must_be_there(tmp_path):
    from datasets import Dataset, DatasetDict

    only = DatasetDict({"train": Dataset.from_dict({"text": ["a"]})})
    data.refuse_absent_split(only, None)
    data.refuse_absent_split(only, "train")
    assert data.pick_split(only, "test") is None  # the only split, whatever it is called
    with pytest.raises(ValueError, match="there is no split 'test'; splits found: train"):
        data.refuse_absent_split(only, "test")
    (tmp_path / "t.conll").write_text("a O\n")
    with pytest.raises(ValueError, match=r"t\.conll: there is no split 'test'; splits found: none"):
        data.refuse_absent_split(tmp_path / "t.conll", "test")
