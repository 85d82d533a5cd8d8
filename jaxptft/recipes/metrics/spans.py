"""How good a tagger is: precision, recall and F1 of whole entities, where a right one has the true type and both ends.

Equal to seqeval's with mode="strict" and the scheme; without a scheme, to seqeval's where no mode is asked for.
A number whose divisor is 0 is 0.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxptft.data import Scheme, lenient_spans, spans
from jaxptft.recipes.report import Report

Sentences = Sequence[Sequence[str]]


class Score(NamedTuple):
    """Precision, recall and F1; `support` is how many true entities there are."""

    precision: float
    recall: float
    f1: float
    support: int


class SpanScores(NamedTuple):
    """Over all entities (`micro`), by type in alphabetical order, and the types' means."""

    micro: Score
    types: dict[str, Score]
    macro: Score
    weighted: Score  # by support


def span_scores(truth: Sentences, predicted: Sentences, scheme: Scheme | None) -> SpanScores:
    """The scores of predicted tags; `scheme` None reads both leniently.

    Raises ValueError where the sentences or their words are not as many.
    """
    if [*map(len, truth)] != [*map(len, predicted)]:
        raise ValueError(
            f"the truth has {sum(map(len, truth))} words in {len(truth)} sentences, and the predictions "
            f"{sum(map(len, predicted))} in {len(predicted)}; expected a tag for every word"
        )
    found: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])  # type -> right, predicted, true
    for true_tags, tags in zip(truth, predicted, strict=True):
        true = {*(lenient_spans(true_tags) if scheme is None else spans(true_tags, scheme))}
        said = {*(lenient_spans(tags) if scheme is None else spans(tags, scheme))}
        for place, entities in enumerate((true & said, said, true)):
            for entity in entities:
                found[entity.type][place] += 1
    types = {kind: _score(*found[kind]) for kind in sorted(found)}
    support = [score.support for score in types.values()]
    micro = _score(*np.sum([*found.values()] or [[0, 0, 0]], axis=0).tolist())
    return SpanScores(micro, types, _mean(types, None), _mean(types, support if sum(support) else None))


def _score(right: int, predicted: int, true: int) -> Score:
    precision, recall = right / max(predicted, 1), right / max(true, 1)
    total = precision + recall
    return Score(precision, recall, 2 * precision * recall / total if total else 0.0, true)


def _mean(types: dict[str, Score], weights: list[int] | None) -> Score:
    if not types:
        return Score(0.0, 0.0, 0.0, 0)
    rows = np.array([score[:3] for score in types.values()])
    precision, recall, f1 = np.average(rows, axis=0, weights=weights).tolist()
    return Score(precision, recall, f1, sum(score.support for score in types.values()))


def scores_text(scores: SpanScores) -> str:
    """The scores as seqeval's classification report, with four digits."""
    rows: list[tuple[str, Score] | None] = [*scores.types.items(), None]
    rows += [("micro avg", scores.micro), ("macro avg", scores.macro), ("weighted avg", scores.weighted)]
    width = max(len(row[0]) for row in rows if row)
    lines = [" " * (width + 1) + "".join(f" {name:>9}" for name in ("precision", "recall", "f1-score", "support")), ""]
    for row in rows:
        numbers = "" if row is None else "".join(f" {value:>9.4f}" for value in row[1][:3])
        lines.append("" if row is None else f"{row[0]:>{width}} {numbers} {row[1].support:>9}")
    return "\n".join(lines) + "\n"


def tag_accuracy(truth: Sentences, predicted: Sentences) -> float:
    """The share of words whose tag is right."""
    pairs = [zip(true, said, strict=True) for true, said in zip(truth, predicted, strict=True)]
    right = [true == said for pair in pairs for true, said in pair]
    return sum(right) / max(len(right), 1)


def tagging_metrics(truth: Sentences, predicted: Sentences, scheme: Scheme | None) -> dict[str, float]:
    """Accuracy over words and, where tags mark entities, strict precision, recall and F1: `token_classification/...`"""
    metrics = {"token_classification/accuracy": tag_accuracy(truth, predicted)}
    if scheme is not None:
        micro = span_scores(truth, predicted, scheme).micro
        metrics |= {f"token_classification/{name}": getattr(micro, name) for name in ("precision", "recall", "f1")}
    return metrics


def tagging_report(truth: Sentences, predicted: Sentences, scheme: Scheme | None) -> Report:
    """The metrics, and the scores by type: of entities, or of tags where they mark none."""
    metrics = tagging_metrics(truth, predicted, scheme)
    details: dict[str, Any] = {"scheme": scheme}
    if scheme is None:
        # Each word an entity of its own, of which the tag is the type.
        truth, predicted = ([[f"S-{tag}" for tag in tags] for tags in part] for part in (truth, predicted))
        scores = span_scores(truth, predicted, "IOBES")
    else:
        scores = span_scores(truth, predicted, scheme)
        details["lenient"] = span_scores(truth, predicted, None).micro._asdict()
    details["types"] = {kind: score._asdict() for kind, score in scores.types.items()}
    text = f"{scores_text(scores)}\naccuracy over words {metrics['token_classification/accuracy']:.4f}"
    return Report(metrics, text, details)
