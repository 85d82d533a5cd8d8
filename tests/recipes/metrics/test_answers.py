"""Against SQuAD's official evaluate-v2.0.py, whose functions are stated here again from its published text."""

import collections
import re
import string

import numpy as np
import pytest

from jaxptft import data
from jaxptft.recipes.metrics import answers


# --- evaluate-v2.0.py, https://worksheets.codalab.org/rest/bundles/0x6b567e1cf2e041ec80d7098f031c5c9e/contents/blob/
def normalize_answer(s):
    def remove_articles(text):
        regex = re.compile(r"\b(a|an|the)\b", re.UNICODE)
        return re.sub(regex, " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    def lower(text):
        return text.lower()

    return white_space_fix(remove_articles(remove_punc(lower(s))))


def get_tokens(s):
    if not s:
        return []
    return normalize_answer(s).split()


def compute_exact(a_gold, a_pred):
    return int(normalize_answer(a_gold) == normalize_answer(a_pred))


def compute_f1(a_gold, a_pred):
    gold_toks = get_tokens(a_gold)
    pred_toks = get_tokens(a_pred)
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def get_raw_scores(golds, a_pred):
    gold_answers = [text for text in golds if normalize_answer(text)]
    if not gold_answers:
        gold_answers = [""]
    exact = max(compute_exact(a, a_pred) for a in gold_answers)
    return exact, max(compute_f1(a, a_pred) for a in gold_answers)


def find_best_thresh(preds, scores, na_probs, qid_to_has_ans):
    num_no_ans = sum(1 for k in qid_to_has_ans if not qid_to_has_ans[k])
    cur_score = num_no_ans
    best_score = cur_score
    best_thresh = 0.0
    qid_list = sorted(na_probs, key=lambda k: na_probs[k])
    for qid in qid_list:
        if qid not in scores:
            continue
        if qid_to_has_ans[qid]:
            diff = scores[qid]
        else:
            diff = -1 if preds[qid] else 0
        cur_score += diff
        if cur_score > best_score:
            best_score = cur_score
            best_thresh = na_probs[qid]
    return 100.0 * best_score / len(scores), best_thresh


# --- end of evaluate-v2.0.py


def check(golds, predicted):
    exact, f1 = get_raw_scores(golds, predicted)
    assert answers.best_over(golds, predicted)[0] == exact, (golds, predicted)
    assert answers.best_over(golds, predicted)[1] == pytest.approx(f1, abs=1e-12), (golds, predicted)


EDGES = [
    ([""], ""),
    ([""], "the"),  # an article alone is no answer
    (["The"], ""),
    (["The"], "the"),
    (["The", "cat"], "a cat"),
    (["a", "an", "the"], "Theodore"),
    ([], ""),
    ([], "something"),
    (["The Beatles"], "beatles"),
    (["U.S."], "us"),
    (["1,000"], "1000"),
    (["state-of-the-art"], "state of the art"),  # punctuation goes before articles
    (["a—b"], "a b"),  # a dash that is no ASCII punctuation joins
    (["“quoted”"], "quoted"),
    (["Ärger"], "ärger"),
    (["ÄRGER"], "Arger"),
    (["İstanbul"], "istanbul"),  # lower() makes two characters of İ
    (["映画 館"], "映画"),
    (["naïve café"], "naive cafe"),
    (["a\u00a0b\u3000c"], "b c"),
    (["the the the"], "the"),
    (["cat cat dog"], "cat dog dog"),
    (["!!!"], "?"),
    (["one", "two three", "three"], "two"),
    (["I'm"], "im"),
    (["_a_"], "a"),
]


@pytest.mark.parametrize("golds,predicted", EDGES)
def test_edge_cases_are_the_official_scripts(golds, predicted):
    check(golds, predicted)


def test_a_few_scores_by_hand():
    assert answers.best_over(["The Beatles"], "beatles!") == (1, 1.0)
    assert answers.best_over(["cat cat dog"], "cat dog dog") == (0, pytest.approx(2 / 3))
    assert answers.best_over([], "") == (1, 1.0)
    assert answers.best_over([], "x") == (0, 0.0)
    assert answers.token_f1("the", "") == 1.0  # neither has a word


def test_a_thousand_random_pairs_are_the_official_scripts():
    random = np.random.default_rng(0)
    words = np.array(
        ["the", "The", "a", "An", "cat", "Cat's", "dog", "-", "...", "Ä", "ä", "映画", "1,000", "_", "\u00a0", "É."]
    )

    def text():
        return str(random.choice([" ", "  ", "\n", ""])).join(random.choice(words, random.integers(0, 6)))

    exact = 0
    for _ in range(1000):
        golds = [text() for _ in range(random.integers(0, 4))]
        predicted = golds[0].upper() if golds and random.random() < 0.3 else text()
        check(golds, predicted)
        exact += answers.best_over(golds, predicted)[0]
    assert 100 < exact < 900


def test_the_best_threshold_is_the_official_scripts():
    random = np.random.default_rng(1)
    for _ in range(50):
        count = 40
        answerable = random.random(count) < 0.6
        margins = random.normal(size=count) + np.where(answerable, -1.0, 0.5)
        scores = np.where(answerable, random.random(count), 0.0)
        official = find_best_thresh(
            dict.fromkeys(range(count), "x"),
            dict(enumerate(scores)),
            dict(enumerate(margins)),
            dict(enumerate(answerable)),
        )
        threshold, best = answers.best_threshold(margins, scores, answerable)
        assert (100 * best, threshold) == pytest.approx(official)
        given = np.where(margins > threshold, ~answerable, scores)
        assert given.mean() == pytest.approx(best)


def test_thresholds_at_the_ends():
    none = answers.best_threshold(np.array([0.5, 2.0]), np.zeros(2), np.array([False, False]))
    assert none == (-0.5, 1.0)  # below all margins: never an answer
    every = answers.best_threshold(np.array([0.5, 2.0]), np.ones(2), np.array([True, True]))
    assert every == (2.0, 1.0)
    # Two rows of one margin stand or fall together: 1 - 1 gains nothing over "no answer" to both.
    tied = answers.best_threshold(np.array([1.0, 1.0]), np.array([1.0, 0.0]), np.array([True, False]))
    assert tied == (0.0, 0.5)
    # A row without any candidate has an infinite margin, which is no threshold.
    hopeless = answers.best_threshold(np.array([0.0, np.inf]), np.array([1.0, 0.0]), np.array([True, True]))
    assert hopeless == (0.0, 0.5)


def windows_of(spans, examples, start=2):
    """Windows whose context begins at place 2, all over the same tokens, each with its characters."""
    spans = np.asarray(spans, np.int32)
    count = len(examples)
    rows = np.zeros(count, np.int32)
    return data.Windows(
        tokenized=None,
        example=np.asarray(examples, np.int32),
        context_start=rows + start,
        context_length=rows + len(spans),
        start=None,
        end=None,
        spans=spans,
        span_at=rows.astype(np.int64),
    )


def predictions(starts, ends, nulls):
    """Lists of (place, logit) for each window."""
    width = max(map(len, [*starts, *ends]))
    found = {"null": np.asarray(nulls, np.float32)}
    for name, rows in (("start", starts), ("end", ends)):
        padded = [[*row, *[(-1, 0.0)] * (width - len(row))] for row in rows]
        found[f"{name}_places"] = np.array([[place for place, _ in row] for row in padded], np.int32)
        found[f"{name}_logits"] = np.array([[logit for _, logit in row] for row in padded], np.float32)
    return found


SPANS = [(0, 3), (4, 7), (8, 9), (9, 9), (10, 14)]  # five tokens, the fourth of white space alone


def test_decoding_takes_the_best_pairs_that_may_be_an_answer():
    windows = windows_of(SPANS, [0])
    found = predictions([[(3, 5.0), (2, 4.0), (6, 1.0)]], [[(2, 9.0), (4, 3.0), (6, 2.0)]], [1.5])
    (decoded,) = answers.decode(found, windows, questions=1, max_answer=4)
    # By hand: (3, 2) ends before it begins, (2, 6) has five tokens. Left: (2, 2) 13, (3, 4) 8, (2, 4) 7, (3, 6) 7,
    # (6, 6) 3; of equal sums the one that begins earlier comes first.
    assert decoded.candidates == ((0, 3, 13.0), (4, 9, 8.0), (0, 9, 7.0), (4, 14, 7.0), (10, 14, 3.0))
    assert (decoded.null, decoded.margin) == (1.5, -11.5)
    (fewer,) = answers.decode(found, windows, questions=1, n_best=2, max_answer=4)
    assert fewer.candidates == decoded.candidates[:2]
    (short,) = answers.decode(found, windows, questions=1, max_answer=1)
    assert short.candidates == ((0, 3, 13.0), (10, 14, 3.0))


def test_decoding_over_windows_keeps_the_best_of_each_span_and_the_lowest_null():
    windows = windows_of(SPANS, [0, 0, 1, 2])
    one = [(2, 1.0)]
    found = predictions(
        [one, [(2, 2.0), (6, 0.0)], [(5, 3.0)], []], [one, [(2, 2.0), (6, 0.5)], [(5, 3.0)], []], [4.0, 3.0, 1.0, 7.0]
    )
    first, second, third = answers.decode(found, windows, questions=3)
    assert first.candidates == ((0, 3, 4.0), (0, 14, 2.5), (10, 14, 0.5))
    assert (first.null, first.margin) == (3.0, -1.0)
    assert second.candidates == ()  # white space is no answer
    assert (third.candidates, third.margin) == ((), float("inf"))
    assert first.chosen(None) == first.chosen(-1.0) == first.candidates[0]
    assert first.chosen(-1.5) is None
    assert third.chosen(None) is None


def test_shares_are_a_softmax_over_what_is_in_play():
    decoded = answers.Decoded((answers.Candidate(0, 1, 2.0), answers.Candidate(2, 3, 0.0)), 1.0)
    shares, null = answers.probabilities(decoded, with_null=True)
    exponents = np.exp([2.0, 0.0, 1.0])
    np.testing.assert_allclose([*shares, null], exponents / exponents.sum())
    shares, null = answers.probabilities(decoded, with_null=False)
    np.testing.assert_allclose(shares, exponents[:2] / exponents[:2].sum())
    assert null == 0.0
    assert answers.probabilities(answers.Decoded((), 1.0), with_null=False) == ([], 0.0)
