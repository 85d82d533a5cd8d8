"""Splits kept as hashes; what they share was put there by hand."""

import json

import numpy as np
import pytest

from jaxptft import data
from jaxptft.data.inspection import contradictions, leaked, normalised, repeated, scan, texts_at
from jaxptft.data.sources import open_source


def scanned(path, lines, header="text,label", *, target=None, **options):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return scan(open_source(path), columns=None, target=target or data.OneClass(), **options)


def test_what_counts_as_the_same_text():
    same = ["A fine film.", " a  FINE film", "“a fine film!”", "ａ fine\tfilm…"]
    assert {normalised(text) for text in same} == {"a fine film"}
    assert len({normalised(text) for text in ("good :)", "good :(", "good", "?!", "...")}) == 5


def test_a_split_is_counted_in_one_pass(tmp_path):
    lines = ["a fine film,pos", "A fine film!,pos", "a fine film,pos", "dull,neg", ",neg", "no,neg", "long and dull,"]
    found = scanned(tmp_path / "t.csv", lines)
    assert found.report.by_reason == {"empty text": 1, "missing value": 1}
    assert found.rows.tolist() == [2, 3, 4, 5, 7]
    assert repeated(found.exact).tolist() == [False, False, True, False, False]
    assert repeated(found.same).tolist() == [False, True, True, False, False]
    assert dict(found.names) == {"pos": 3, "neg": 2}
    assert found.lengths.tolist() == [3, 3, 3, 1, 1]  # words
    assert found.short == 1  # "no"


def test_pairs_leak_in_either_order_and_by_one_text(tmp_path):
    header = "premise,hypothesis,label"
    train = scanned(tmp_path / "a.csv", ["one,two,x", "three,four,y", "five,six,x"], header)
    other = scanned(tmp_path / "b.csv", ["Two.,one,x", "three,seven,y", "eight,nine,x", "three,four,y"], header)
    whole, part = leaked(train, other)
    assert whole.tolist() == [True, False, False, True]
    assert part.tolist() == [True, True, False, True]
    assert repeated(np.concatenate([train.same, other.same])).tolist() == [False] * 6 + [True]  # order matters here


def test_contradictions_across_splits_for_every_kind_of_label(tmp_path):
    train = scanned(tmp_path / "a.csv", ["fine,pos", "dull,neg", "dull.,neg"])
    other = scanned(tmp_path / "b.csv", ["Fine!,neg", "dull,neg", "odd,pos"])
    unlabelled = scanned(tmp_path / "c.csv", ["fine,x"], labelled=False)
    assert [group.tolist() for group in contradictions([train, other])] == [[0, 3]]
    assert [group.tolist() for group in contradictions([unlabelled, train, other])] == [[1, 4]]
    assert contradictions([unlabelled]) == []
    numbers = scanned(tmp_path / "n.csv", ["a,1.0", "a,1", "b,-0.0", "b,0", "c,1", "c,1.5"], target=data.Number())
    assert [group.tolist() for group in contradictions([numbers])] == [[4, 5]]
    sets = scanned(tmp_path / "s.csv", ["a,x|y", "a,y|x", "b,x", "b,", "c,x"], target=data.LabelSet(delimiter="|"))
    assert [group.tolist() for group in contradictions([sets])] == [[2, 3]]
    assert (dict(sets.names), sets.unlabelled) == ({"x": 4, "y": 2}, 1)
    flags = data.LabelSet(columns=("x", "y"))
    columns = scanned(tmp_path / "f.csv", ["a,1,1", "a,1,0"], "text,x,y", target=flags)
    assert [group.tolist() for group in contradictions([columns])] == [[0, 1]]
    assert dict(columns.names) == {"x": 2, "y": 1}


def test_rows_are_measured_in_chunks_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxptft.data.inspection.CHUNK", 3)
    asked = []

    def lengths(texts, pairs):
        asked.append((list(texts), pairs and list(pairs)))
        return [len(text) for text in texts]

    lines = [f"{'x' * n},y,l" for n in range(1, 9)]
    found = scanned(tmp_path / "t.csv", lines, "text,text_pair,label", lengths=lengths)
    assert found.lengths.tolist() == list(range(1, 9))
    assert [len(texts) for texts, _ in asked] == [3, 3, 2]
    assert asked[2][1] == ["y", "y"]


def test_texts_of_some_rows(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{n}", "pair": f"p{n}"}) + "\n" for n in range(1, 6)))
    columns = data.Columns("text", "pair")
    assert texts_at(open_source(path), columns, [4, 2]) == {2: ("t2", "p2"), 4: ("t4", "p4")}
    assert texts_at(open_source(path), columns, []) == {}


def test_nothing_sound_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"t\.csv: every row was refused; 1 rows, 1 skipped"):
        scanned(tmp_path / "t.csv", [",x"])
