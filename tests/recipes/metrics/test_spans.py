"""Scores of taggings; the reference is seqeval, on 1,000 random ones a scheme, valid tags or not."""

import warnings

import numpy as np
import pytest
from seqeval import metrics as seqeval
from seqeval.scheme import IOB1, IOB2, IOBES

from jaxptft.recipes.metrics.spans import scores_text, span_scores, tag_accuracy, tagging_metrics, tagging_report

SCHEMES = {"IOB1": (IOB1, "BI"), "IOB2": (IOB2, "BI"), "IOBES": (IOBES, "BIES")}


def taggings(prefixes, count=1000):
    """True tags, and predictions of which a fifth are other tags."""
    rng = np.random.default_rng(0)
    every = ["O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("PER", "LOC", "ORG"))]
    truth = [rng.choice(every, length).tolist() for length in rng.integers(1, 15, count)]
    predicted = [[str(rng.choice(every)) if rng.random() < 0.2 else tag for tag in tags] for tags in truth]
    return truth, predicted


@pytest.mark.parametrize("scheme", SCHEMES)
def test_strict_scores_are_seqevals(scheme):
    reference, prefixes = SCHEMES[scheme]
    truth, predicted = taggings(prefixes)
    ours = span_scores(truth, predicted, scheme)
    options = {"mode": "strict", "scheme": reference}
    theirs = [getattr(seqeval, f"{name}_score")(truth, predicted, **options) for name in ("precision", "recall", "f1")]
    np.testing.assert_allclose(ours.micro[:3], theirs, rtol=1e-12)
    assert 0.2 < ours.micro.f1 < 0.9
    # The whole report: each type, the means, the numbers of entities, and how they are written.
    assert scores_text(ours) == seqeval.classification_report(truth, predicted, digits=4, **options)
    accuracy = seqeval.accuracy_score(truth, predicted)
    metrics = tagging_metrics(truth, predicted, scheme)
    assert metrics == pytest.approx(
        {f"token_classification/{name}": value for name, value in zip(("precision", "recall", "f1"), theirs)}  # noqa: B905
        | {"token_classification/accuracy": accuracy}
    )
    report = tagging_report(truth, predicted, scheme)
    assert report.details["lenient"]["f1"] == pytest.approx(seqeval.f1_score(truth, predicted))


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_lenient_scores_are_seqevals_default(prefixes):
    truth, predicted = taggings(prefixes)
    assert scores_text(span_scores(truth, predicted, None)) == seqeval.classification_report(truth, predicted, digits=4)


def test_a_type_that_is_only_true_or_only_predicted():
    truth, predicted = [["B-PER", "O"], ["O", "B-LOC"]], [["B-ORG", "O"], ["O", "B-LOC"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval's, of divisions by zero
        theirs = seqeval.classification_report(truth, predicted, digits=4, mode="strict", scheme=IOB2)
    assert scores_text(span_scores(truth, predicted, "IOB2")) == theirs


def test_no_entity_at_all_is_zero():
    scores = span_scores([["O", "O"]], [["O", "O"]], "IOB2")
    assert (scores.micro, scores.types) == ((0.0, 0.0, 0.0, 0), {})
    assert scores.weighted == scores.macro == (0.0, 0.0, 0.0, 0)


def test_both_ends_and_the_type_must_be_right():
    truth = [["B-PER", "I-PER", "O", "B-LOC"]]
    for predicted in (["B-PER", "O", "O", "B-LOC"], ["B-LOC", "I-LOC", "O", "B-LOC"], ["B-PER", "I-PER", "O", "B-PER"]):
        assert span_scores(truth, [predicted], "IOB2").micro == (0.5, 0.5, 0.5, 2)  # one of two, by hand


def test_tags_that_mark_no_entities():
    truth, predicted = [["DET", "NOUN"], ["VERB"]], [["DET", "VERB"], ["VERB"]]
    report = tagging_report(truth, predicted, None)
    assert report.metrics == {"token_classification/accuracy": pytest.approx(2 / 3)}
    assert report.details["types"]["VERB"] == pytest.approx({"precision": 0.5, "recall": 1, "f1": 2 / 3, "support": 1})
    assert "accuracy over words 0.6667" in report.text
    assert tag_accuracy([], []) == 0


def test_every_word_needs_a_tag():
    with pytest.raises(ValueError, match="the truth has 3 words in 2 sentences, and the predictions 2 in 2; expected"):
        span_scores([["O", "O"], ["O"]], [["O"], ["O"]], "IOB2")
