"""Answers from the predictions for windows, and how good they are: SQuAD's exact match and F1, as fractions.

Decoding: the pair of a start and an end among the best of each, over all windows of a question, whose logits sum
highest. The score of "no answer" is the lowest that a window of the question gives its first token (Devlin et al. 2019,
arXiv:1810.04805, section 4.3); it is given where it exceeds the best answer's score by more than a threshold, which is
chosen on validation data. The measures are those of SQuAD's evaluate-v2.0.py.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from jaxptft.data.answer_windows import Windows

ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
CHUNK = 4096  # windows decoded at a time
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and extra white space, as the official script has it.

    >>> normalised("The  Beatles' (fab) four!")
    'beatles fab four'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(gold: str, predicted: str) -> int:
    """1 where both are the same once normalised."""
    return int(normalised(gold) == normalised(predicted))


def token_f1(gold: str, predicted: str) -> float:
    """F1 over the words of both, counted; where one has no words, whether the other has none either."""
    ours, theirs = normalised(predicted).split(), normalised(gold).split()
    if not ours or not theirs:
        return float(ours == theirs)
    same = (Counter(ours) & Counter(theirs)).total()
    if not same:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def best_over(golds: Sequence[str], predicted: str) -> tuple[int, float]:
    """Exact match and F1 against the nearest gold answer; without golds, or only empty ones, "" is right."""
    kept = [gold for gold in golds if normalised(gold)] or [""]
    return max(exact_match(gold, predicted) for gold in kept), max(token_f1(gold, predicted) for gold in kept)


class Candidate(NamedTuple):
    """Characters start to end (not included) of the context, and the sum of the two logits."""

    start: int
    end: int
    score: float


class Decoded(NamedTuple):
    """What a model holds of one question: candidates, the best first, and the score of "no answer"."""

    candidates: tuple[Candidate, ...]
    null: float

    @property
    def margin(self) -> float:
        """How much "no answer" scores above the best candidate; infinite where there is no candidate."""
        return self.null - self.candidates[0].score if self.candidates else float("inf")

    def chosen(self, threshold: float | None) -> Candidate | None:
        """The best candidate, or None for "no answer"; without a threshold, always a candidate if there is one."""
        if not self.candidates or (threshold is not None and self.margin > threshold):
            return None
        return self.candidates[0]


def decode(
    predictions: Mapping[str, Shaped[np.ndarray, "windows ..."]],
    windows: Windows,
    *,
    questions: int,
    n_best: int = 20,
    max_answer: int = 30,
) -> list[Decoded]:
    """The best answers to each question.

    Args:
      predictions: those of `objectives.question_answering`, a row a window.
      max_answer: tokens that an answer may have at most.
    """
    window, first, last, scores = _best_pairs(predictions, n_best, max_answer)
    begin, past = windows.characters(window, first, last)
    nulls = np.full(questions, np.inf)
    np.minimum.at(nulls, windows.example, predictions["null"].astype(np.float64))

    example = windows.example[window].astype(np.int64)
    order = np.lexsort((past, begin, -scores, example))
    order = order[past[order] > begin[order]]  # a token of white space alone has no characters
    bounds = np.searchsorted(example[order], np.arange(questions + 1))
    found: list[Decoded] = []
    for question in range(questions):
        best: dict[tuple[int, int], float] = {}  # windows that overlap hold the same answer
        for place in order[bounds[question] : bounds[question + 1]]:
            best.setdefault((int(begin[place]), int(past[place])), float(scores[place]))
            if len(best) == n_best:
                break
        found.append(Decoded(tuple(Candidate(*span, score) for span, score in best.items()), float(nulls[question])))
    return found


def _best_pairs(predictions: Mapping[str, np.ndarray], n_best: int, max_answer: int) -> tuple[np.ndarray, ...]:
    """The `n_best` pairs of each window that may be an answer: window, first and last place, sum of the logits."""
    parts: list[tuple[np.ndarray, ...]] = []
    for begin in range(0, len(predictions["null"]), CHUNK):
        chunk = {name: values[begin : begin + CHUNK] for name, values in predictions.items()}
        starts, ends = chunk["start_places"].astype(np.int64), chunk["end_places"].astype(np.int64)
        first, last = starts[:, :, None], ends[:, None, :]
        fits = (first >= 0) & (last >= first) & (last - first < max_answer)
        sums = chunk["start_logits"][:, :, None].astype(np.float64) + chunk["end_logits"][:, None, :]
        sums = np.where(fits, sums, -np.inf).reshape(len(starts), -1)
        best = np.argsort(-sums, axis=1, kind="stable")[:, :n_best]
        kept = np.take_along_axis(sums, best, 1)
        window, number = np.nonzero(kept > -np.inf)
        start, end = np.divmod(best[window, number], ends.shape[1])
        parts.append((window + begin, starts[window, start], ends[window, end], kept[window, number]))
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def probabilities(decoded: Decoded, *, with_null: bool) -> tuple[list[float], float]:
    """A softmax over the candidates and, if asked for, "no answer": theirs, and its."""
    scores = np.array([*(candidate.score for candidate in decoded.candidates), *[decoded.null] * with_null])
    if not len(scores):
        return [], 0.0
    shares = np.exp(scores - scores.max())
    shares = (shares / shares.sum()).tolist()
    return (shares[:-1], shares[-1]) if with_null else (shares, 0.0)


def best_threshold(
    margins: Float[np.ndarray, " rows"],
    scores: Float[np.ndarray, " rows"],
    answerable: Bool[np.ndarray, " rows"],
) -> tuple[float, float]:
    """The threshold on margins that makes the mean score highest, and that mean.

    Rows with a margin above the threshold get "no answer", which scores 1 where the row is not answerable, else 0; the
    others get their `scores`. Of equal thresholds the lowest is taken, as in the official script's find_best_thresh,
    but rows of one margin are judged together, and "always no answer" is a threshold below all margins, not 0.
    """
    order = np.argsort(margins, kind="stable")
    values = np.asarray(margins, np.float64)[order]
    gains = (np.where(answerable, scores, scores - 1.0))[order]  # against "no answer" to all
    totals = np.cumsum(gains)
    finite = np.isfinite(values)
    last_of_value = np.append(values[1:] != values[:-1], True) & finite
    places = np.flatnonzero(last_of_value)
    none = float(np.count_nonzero(~np.asarray(answerable)))
    if not len(places) or totals[places].max() <= 0:
        lowest = float(values[finite][0]) if finite.any() else 0.0
        return lowest - 1.0, none / len(values)
    best = places[int(totals[places].argmax())]
    return float(values[best]), float(none + totals[best]) / len(values)
