"""Entities of tags: seqeval is the reference, on random tags of which most are of no whole entity."""

import numpy as np
import pytest
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

from jaxptft.data.tag_schemes import (
    PREFIXES,
    SCHEMES,
    Span,
    all_tags,
    convert_tags,
    detect_scheme,
    lenient_spans,
    loose_tags,
    scheme_of_names,
    span_tags,
    spans,
    split_tag,
)

REFERENCE = {"IOB1": IOB1, "IOB2": IOB2, "IOBES": IOBES}


def random_tags(prefixes: str, count: int, seed: int) -> list[list[str]]:
    """Sentences of 1 to 12 tags; half of the tags go on with the type before, so that entities are met with."""
    rng = np.random.default_rng(seed)
    found = []
    for length in rng.integers(1, 13, count):
        kind, tags = "X", []
        for _ in range(length):
            kind = kind if rng.random() < 0.6 else str(rng.choice(["X", "Y", "Z-1"]))
            prefix = str(rng.choice([*prefixes, "O"]))
            tags.append("O" if prefix == "O" else f"{prefix}-{kind}")
        found.append(tags)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_of_any_tags_are_seqevals(scheme):
    sentences = random_tags(PREFIXES[scheme], 1000, seed=1)
    theirs = Entities(sentences, REFERENCE[scheme]).entities
    ours = [spans(tags, scheme) for tags in sentences]
    assert ours == [[(entity.tag, entity.start, entity.end) for entity in row] for row in theirs]
    assert 200 < sum(map(len, ours)) < sum(map(len, map(lenient_spans, sentences)))  # some are whole, not all


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_lenient_entities_are_seqevals_default(prefixes):
    for tags in random_tags(prefixes, 1000, seed=2):
        assert lenient_spans(tags) == [(kind, start, end + 1) for kind, start, end in get_entities(tags)]


# By the table in Tjong Kim Sang and Veenstra 1999, and its extension by single (S) and end (E) tags.
SAME = {
    "IOB1": ["I-X", "O", "I-X", "I-X", "B-X", "I-X", "I-Y", "B-Y", "O"],
    "IOB2": ["B-X", "O", "B-X", "I-X", "B-X", "I-X", "B-Y", "B-Y", "O"],
    "IOBES": ["S-X", "O", "B-X", "E-X", "B-X", "E-X", "S-Y", "S-Y", "O"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_turn_into_each_other(scheme):
    found = [("X", 0, 1), ("X", 2, 4), ("X", 4, 6), ("Y", 6, 7), ("Y", 7, 8)]
    assert spans(SAME[scheme], scheme) == found
    for other in SCHEMES:
        assert convert_tags(SAME[scheme], scheme, other) == SAME[other]
    assert loose_tags(SAME[scheme], scheme) == []


def test_any_entities_survive_every_scheme():
    rng = np.random.default_rng(3)
    for _ in range(300):
        edges = np.flatnonzero(rng.random(11) < 0.5)
        pairs = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        found = [Span(str(rng.choice(["X", "Y"])), *pair) for pair in pairs if rng.random() < 0.7]
        for scheme in SCHEMES:
            assert spans(span_tags(found, 10, scheme), scheme) == found


def test_tags_without_a_type():
    assert spans(["B", "I", "O", "B"], "IOB2") == [("_", 0, 2), ("_", 3, 4)]
    assert convert_tags(["B", "I", "O", "B"], "IOB2", "IOBES") == ["B", "E", "O", "S"]


def test_tags_of_no_entity():
    assert loose_tags(["O", "I-X", "B-Y", "I-X", "I-X"], "IOB2") == [1, 3, 4]
    assert loose_tags(["B-X", "I-X", "S-X", "E-X"], "IOBES") == [0, 1, 3]
    assert convert_tags(["I-X", "B-X"], "IOB2", "IOB1") == ["O", "I-X"]


@pytest.mark.parametrize(
    "sentences, scheme",
    [
        ([["O", "B-X", "I-X"], ["O"]], "IOB2"),
        ([["O", "I-X", "B-X"]], "IOB1"),
        ([["O", "I-X"], ["I-X", "I-Y"]], "IOB1"),
        ([["O"]], "IOB2"),
        ([["S-X", "O"]], "IOBES"),
        ([["B-X", "O", "E-X"]], "IOBES"),  # not whole, but of no other scheme
    ],
)
def test_detected(sentences, scheme):
    assert detect_scheme(sentences) == scheme


def test_the_preferred_scheme_wins_where_both_fit():
    assert detect_scheme([["O", "O"]], prefer="IOB1") == "IOB1"
    assert detect_scheme([["B-X", "O"]], prefer="IOB1") == "IOB2"


def test_tags_of_two_schemes():
    with pytest.raises(ValueError, match=r"sentence 1 is not IOB2 \(O I-X\), and sentence 0 is not IOB1 \(B-X O\)"):
        detect_scheme([["B-X", "O"], ["O", "I-X"]])


def test_unknown_tags():
    for tag in ("PER", "X-PER", "B-", "b-PER", "", "O-PER"):
        with pytest.raises(ValueError, match=f"tag '{tag}' is no entity's; expected O, or B-"):
            split_tag(tag)
    with pytest.raises(ValueError, match="tag 'S-X' is not of IOB2"):
        spans(["S-X"], "IOB2")


def test_names_of_a_models_outputs():
    assert all_tags({"Y", "X"}, "IOBES") == ("O", "B-X", "I-X", "E-X", "S-X", "B-Y", "I-Y", "E-Y", "S-Y")
    assert scheme_of_names(all_tags("XY", "IOBES")) == "IOBES"
    assert scheme_of_names(["B-X", "O", "I-X"]) == "IOB2"
    assert scheme_of_names(["NOUN", "VERB"]) is None
    assert scheme_of_names(["LABEL_0", "LABEL_1"]) is None
