import random
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from jaxptft import data
from jaxptft.data import pairs, segments

CLS, SEP = 2, 3


def texts_of(tokenized, labels):
    """(A, B, label) of every row, each text as its first token and the one past its last."""
    found = []
    for row, label in enumerate(labels.tolist()):
        ids, boundary = tokenized.row(row), int(tokenized.boundaries[row])
        assert (ids[0], ids[boundary - 1], ids[-1]) == (CLS, SEP, SEP)
        texts = ids[1 : boundary - 1], ids[boundary:-1]
        for text in texts:
            assert len(text)
            assert np.all(np.diff(text) == 1)  # contiguous in the corpus
        found.append((*((int(text[0]) - 100, int(text[-1]) - 99) for text in texts), label))
    return found


@pytest.fixture(scope="module")
def corpus(stored):
    """400 documents of 60 sentences of 1 to 6 tokens."""
    return stored(np.random.default_rng(0).integers(1, 7, (400, 60)).tolist())


@pytest.fixture(scope="module")
def made(corpus, tokenizer):
    """Pairs of each kind, no document short, as `texts_of` gives them."""
    return {kind: texts_of(*data.sentence_pairs(corpus, tokenizer, 43, kind, short_share=0)) for kind in ("nsp", "sop")}


def near(count, total, share):
    """Whether `count` of `total` is what a probability of `share` gives, to 3 sigma."""
    return abs(count - total * share) < 3 * np.sqrt(total * share * (1 - share))


@pytest.mark.parametrize("seed", range(12))
def test_next_sentences_of_three_documents(stored, tokenizer, seed):
    """By hand: nothing is cut and a row takes a whole document, so each chunk runs to its document's end."""
    store = stored([[2, 1, 3], [4, 2], [1, 1, 1, 2]])
    starts = [[0, 2, 3], [6, 10], [12, 13, 14, 15]]
    ends = [6, 12, 17]
    tokenized, labels = data.sentence_pairs(store, tokenizer, 40, seed=seed, short_share=0)
    assert tokenized.truncated == 0
    walk = iter(texts_of(tokenized, labels))
    for document in range(3):
        at = starts[document][0]
        while at < ends[document]:
            first, second, label = next(walk)
            assert first[0] == at
            if label == 0:
                assert first[1] in starts[document]
                assert second == (first[1], ends[document])  # what follows, to the end
                at = ends[document]
            else:
                assert first[1] in [*starts[document], ends[document]]
                (other,) = [number for number in range(3) if second[0] in starts[number]]
                assert other != document
                assert second[1] == ends[other]  # 37 tokens are wanted, so to its end
                at = first[1]  # the sentences that were replaced come next
    assert next(walk, None) is None


@pytest.mark.parametrize("seed", range(6))
def test_sentence_order_of_three_documents(stored, tokenizer, seed):
    """By hand: one pair a document, either way round; the last, of one sentence, has none."""
    store = stored([[2, 1, 3], [4, 2], [5]])
    with pytest.warns(UserWarning, match="1 of 3 documents have one sentence: no pair in order, so they are left out"):
        tokenized, labels = data.sentence_pairs(store, tokenizer, 40, "sop", seed=seed, short_share=0)
    (first, second, label), (third, fourth, other) = texts_of(tokenized, labels)
    assert (first, second)[:: -1 if label else 1] in [((0, 2), (2, 6)), ((0, 3), (3, 6))]
    assert (third, fourth)[:: -1 if other else 1] == ((6, 10), (10, 12))


def test_half_are_random_and_from_another_document(made, corpus):
    bounds = corpus.sentences[corpus.documents]
    document = np.searchsorted(bounds, [first[0] for first, _, _ in made["nsp"]], "right")
    other = np.searchsorted(bounds, [second[0] for _, second, _ in made["nsp"]], "right")
    label = np.array([label for _, _, label in made["nsp"]])
    assert np.all((document != other) == (label == 1))
    # The last sentence of a document has no next and always gets a random one; it is the only one that did not choose.
    last = corpus.sentences[corpus.documents[1:] - 1]
    chose = ~np.isin([first[0] for first, _, _ in made["nsp"]], last)
    assert np.all(label[~chose] == 1)
    assert near(label[chose].sum(), chose.sum(), 0.5)
    # Every other document alike: its distance, around the corpus, is uniform on 1 to 399.
    away = ((other - document) % 400)[label == 1]
    assert abs(away.mean() - 200) < 3 * np.sqrt((399**2 - 1) / 12 / len(away))


def test_half_are_swapped(made):
    swapped = [first[0] > second[0] for first, second, _ in made["sop"]]
    assert swapped == [label == 1 for _, _, label in made["sop"]]
    assert near(sum(swapped), len(swapped), 0.5)
    for first, second, _ in made["sop"]:
        low, high = sorted((first, second))
        assert 0 <= high[0] - low[1] <= 11  # next to each other, but for what was cut off


def test_what_is_too_long_is_cut_at_either_end_alike():
    ranges = np.tile([[100, 160], [0, 20]], (1000, 1, 1))  # 60 and 20 tokens, 60 in all to stay
    found, _ = pairs._truncate(ranges, 60, np.random.default_rng(0))
    front, back = np.abs(found - ranges)[:, 0].sum(0)
    assert front + back == 20_000
    assert near(front, 20_000, 0.5)
    np.testing.assert_array_equal(found[:, 1], ranges[:, 1])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=20), room=st.integers(2, 40)
)
def test_lengths_are_cut_as_bert_cuts_them(sizes, room):
    def cut(a, b):  # truncate_seq_pair of BERT's create_pretraining_data.py
        while a + b > room:
            a, b = (a - 1, b) if a > b else (a, b - 1)
        return [a, b]

    ranges = np.array([[[50, 50 + a], [100, 100 + b]] for a, b in sizes])
    found, truncated = pairs._truncate(ranges, room, np.random.default_rng(0))
    assert (found[:, :, 1] - found[:, :, 0]).tolist() == [cut(a, b) for a, b in sizes]
    assert np.all(found[:, :, 0] >= ranges[:, :, 0])
    assert np.all(found[:, :, 1] <= ranges[:, :, 1])
    assert truncated == sum(a + b > room for a, b in sizes)


def test_short_documents_aim_at_any_length(stored, tokenizer):
    # Sentences of one token, so the first chunk has just the tokens aimed at: uniform on 2 to 37.
    store = stored([[1] * 100] * 500)
    tokenized, labels = data.sentence_pairs(store, tokenizer, 40, "sop", short_share=1)
    pairs_found = texts_of(tokenized, labels)
    aimed = [max(first[1], second[1]) % 100 for first, second, _ in pairs_found if min(first[0], second[0]) % 100 == 0]
    assert len(aimed) == 500
    assert (min(aimed), max(aimed)) == (2, 37)
    assert abs(np.mean(aimed) - 39 / 2) < 3 * np.sqrt((36**2 - 1) / 12 / 500)
    longer, _ = data.sentence_pairs(store, tokenizer, 40, "sop", short_share=0)
    assert np.bincount(longer.lengths).argmax() == 40


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), min_size=2, max_size=6),
    max_length=st.integers(5, 40),
    short_share=st.sampled_from([0, 0.5, 1]),
    seed=st.integers(0, 5),
)
def test_every_pair_is_sound(stored, tokenizer, documents, max_length, short_share, seed):
    store = stored([[2, 3], *documents])
    for kind in ("nsp", "sop"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenized, labels = data.sentence_pairs(
                store, tokenizer, max_length, kind, seed=seed, short_share=short_share
            )
        assert (labels.dtype, labels.shape) == (np.dtype(np.int32), (len(tokenized),))
        assert tokenized.lengths.max() <= max_length
        bounds = store.sentences[store.documents]
        for first, second, label in texts_of(tokenized, labels):
            inside = [np.searchsorted(bounds, (text[0], text[1] - 1), "right") for text in (first, second)]
            assert all(start == end for start, end in inside)
            assert (inside[0][0] != inside[1][0]) == (kind == "nsp" and label == 1)
            if inside[0][0] == inside[1][0]:
                assert (first[0] < second[0]) == (label == 0)


def test_a_first_sentence_that_fills_a_row_takes_another_along(stored, tokenizer):
    tokenized, labels = data.sentence_pairs(stored([[30, 4, 30, 1]]), tokenizer, 13, "sop", short_share=0)
    # By hand: 10 places; the longer text of 30 is cut to 6 beside 4, to 9 beside 1.
    assert sorted(tokenized.lengths.tolist()) == [13, 13]
    assert [sorted(b - a for a, b in pair[:2]) for pair in texts_of(tokenized, labels)] == [[4, 6], [1, 9]]


def test_the_seed_decides(corpus, tokenizer, made, monkeypatch):
    def make(seed):
        return texts_of(*data.sentence_pairs(corpus, tokenizer, 43, seed=seed, short_share=0))

    monkeypatch.setattr(segments, "BLOCK", 500)  # which does not show
    assert make(0) == made["nsp"]
    assert make(1) != made["nsp"]
    state = random.getstate(), np.random.get_state()[1].tolist()
    make(1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state


def test_ids_and_types_equal_transformers(tokenizer, sentences_of):
    texts = sentences_of(60, longest=12)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    store = data.TokenStore(
        np.concatenate(ids).astype(np.int32), np.cumsum([0, *map(len, ids)]), np.arange(0, 61, 2), fingerprint="texts"
    )
    tokenized, labels = data.sentence_pairs(store, tokenizer, 64, "sop", short_share=0)
    assert tokenized.truncated == 0
    for row, label in enumerate(labels):
        first, second = texts[2 * row : 2 * row + 2][:: -1 if label else 1]
        theirs = tokenizer(first, second)
        assert tokenized.row(row).tolist() == theirs["input_ids"]
        types = np.arange(tokenized.lengths[row]) >= tokenized.boundaries[row]
        assert types.astype(int).tolist() == theirs["token_type_ids"]


def test_roberta_s_pairs_have_one_type(stored, worded):
    roberta = worded(processors.RobertaProcessing(("</s>", 3), ("<s>", 2)))
    tokenized, labels = data.sentence_pairs(stored([[2, 1]]), roberta, 12, "sop", short_share=0)
    parts = [[100, 101], [102]][:: -1 if labels[0] else 1]
    assert tokenized.row(0).tolist() == [2, *parts[0], 3, 3, *parts[1], 3]
    np.testing.assert_array_equal(tokenized.boundaries, tokenized.lengths)


@pytest.mark.parametrize("kind", ["nsp", "sop"])
def test_errors(stored, tokenizer, worded, kind):
    with pytest.raises(ValueError, match="no document of 3 has more than one sentence, and a pair needs two"):
        data.sentence_pairs(stored([[2], [3], [4]]), tokenizer, 16, kind)
    with pytest.raises(ValueError, match="the corpus holds no text to make examples of"):
        data.sentence_pairs(stored([]), tokenizer, 16, kind)
    store = stored([[2, 3], [4]])
    with pytest.raises(ValueError, match="max_length is 4, and 3 are special tokens; expected at least 5"):
        data.sentence_pairs(store, tokenizer, 4, kind)
    with pytest.raises(ValueError, match="max_length is 65, and the model takes 64 tokens at most"):
        data.sentence_pairs(store, tokenizer, 65, kind)
    with pytest.raises(ValueError, match="sets no special token before a pair or none between its texts"):
        data.sentence_pairs(store, worded(), 16, kind)
    with pytest.raises(ValueError, match=r"short_share is 1\.5, expected a number from 0 to 1"):
        data.sentence_pairs(store, tokenizer, 16, kind, short_share=1.5)


def test_one_document_and_unknown_kinds(stored, tokenizer):
    with pytest.raises(ValueError, match="the corpus is 1 document, and a random next sentence comes from another"):
        data.sentence_pairs(stored([[2, 3]]), tokenizer, 16)
    with pytest.raises(ValueError, match="kind is 'order', expected 'nsp' or 'sop'"):
        data.sentence_pairs(stored([[2, 3]]), tokenizer, 16, "order")
