from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, processors

from jaxptft import data
from jaxptft.data import examples, segments
from jaxptft.data.examples import read_template

CLS, SEP = 2, 3
documents = st.lists(st.lists(st.integers(1, 23), min_size=1, max_size=9), min_size=1, max_size=6)


def rows_of(tokenized):
    return [tokenized.row(row).tolist() for row in range(len(tokenized))]


def bounds_of(store):
    return store.sentences[store.documents]


def test_whole_sentences_as_long_as_they_fit(stored, tokenizer):
    # By hand: 6 places for text; the second document begins a row of its own.
    tokenized = data.full_segments(stored([[3, 3, 2], [4]]), tokenizer, 8)
    assert rows_of(tokenized) == [
        [CLS, *range(100, 106), SEP],
        [CLS, 106, 107, SEP],
        [CLS, *range(108, 112), SEP],
    ]
    assert tokenized.boundaries.tolist() == [8, 4, 6]
    assert (tokenized.max_length, tokenized.truncated, tokenized.pad_id) == (8, 0, 0)
    assert (tokenized.tokens.dtype, tokenized.offsets.dtype, tokenized.boundaries.dtype) == (
        np.dtype(np.int32),
        np.dtype(np.int64),
        np.dtype(np.int32),
    )


def test_a_sentence_longer_than_a_row_is_cut_and_its_rest_goes_on(stored, tokenizer):
    # By hand: 6 places. 1 token does not take part of the long one; 13 = 6 + 6 + 1, and 1 + 4 fit together.
    tokenized = data.full_segments(stored([[1, 13, 4, 2]]), tokenizer, 8)
    assert [row[1:-1] for row in rows_of(tokenized)] == [
        [100],
        [*range(101, 107)],
        [*range(107, 113)],
        [*range(113, 118)],
        [118, 119],
    ]


@settings(max_examples=60, deadline=None)
@given(documents=documents, max_length=st.integers(3, 40))
def test_every_token_once_and_no_row_could_take_the_next_sentence(stored, tokenizer, documents, max_length):
    store, room = stored(documents), max_length - 2
    rows = rows_of(data.full_segments(store, tokenizer, max_length))
    assert all((row[0], row[-1]) == (CLS, SEP) for row in rows)
    texts = [row[1:-1] for row in rows]
    assert [token for text in texts for token in text] == store.tokens.tolist()
    ends, starts = set((bounds_of(store)[1:] + 100).tolist()), (store.sentences + 100).tolist()
    for text in texts:
        assert 1 <= len(text) <= room
        assert not ends & set(text[1:])  # within one document
        stop = text[-1] + 1
        if stop in ends:
            continue
        if stop in starts:  # a whole sentence, or the first piece of a long one, would be too much
            following = starts[starts.index(stop) + 1] - stop
            assert len(text) + min(following, room) > room
        else:
            assert len(text) == room


@pytest.mark.parametrize("max_length", [16, 64])
def test_rows_equal_what_transformers_makes_of_their_text(tokenizer, sentences_of, max_length):
    texts = [sentences_of(12, seed=seed, longest=10) for seed in range(4)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    tokens = np.array([token for document in ids for sentence in document for token in sentence], np.int32)
    lengths = [len(sentence) for document in ids for sentence in document]
    store = data.TokenStore(tokens, np.cumsum([0, *lengths]), np.cumsum([0, *map(len, texts)]), fingerprint="sentences")
    ours = rows_of(data.full_segments(store, tokenizer, max_length))
    expected = []  # a plain loop over sentences; no sentence here is longer than a row
    for document, sizes in zip(texts, ids, strict=True):
        held, length = [], 0
        for text, size in zip(document, map(len, sizes), strict=True):
            if length + size > max_length - 2:
                expected.append(tokenizer(" ".join(held))["input_ids"])
                held, length = [], 0
            held, length = [*held, text], length + size
        expected.append(tokenizer(" ".join(held))["input_ids"])
    assert ours == expected


def test_blocks_of_documents_and_chunks_do_not_show(stored, tokenizer, worded, monkeypatch):
    random = np.random.default_rng(0)
    store = stored([random.integers(1, 30, random.integers(1, 12)).tolist() for _ in range(30)])
    makers = (
        lambda: data.full_segments(store, tokenizer, 20),
        lambda: data.line_segments(store, tokenizer, 20),
        lambda: data.causal_segments(store, worded(eos_token="</s>"), 20),
    )
    whole = [make() for make in makers]
    monkeypatch.setattr(segments, "BLOCK", 50)
    monkeypatch.setattr(examples, "CHUNK", 33)
    for make, expected in zip(makers, whole, strict=True):
        assert rows_of(make()) == rows_of(expected)


def test_lines(stored, tokenizer):
    store = stored([[2, 3], [7], [1]])
    # By hand: 4 places for text, and 5 = 4 + 1, 7 = 4 + 3.
    texts = [row[1:-1] for row in rows_of(data.line_segments(store, tokenizer, 6))]
    assert texts == [[100, 101, 102, 103], [104], [105, 106, 107, 108], [109, 110, 111], [112]]
    texts = [row[1:-1] for row in rows_of(data.line_segments(store, tokenizer, 6, unit="sentence"))]
    assert texts == [[100, 101], [102, 103, 104], [105, 106, 107, 108], [109, 110, 111], [112]]


@pytest.mark.parametrize("max_length", [2, 5, 64])
def test_causal_rows_are_those_of_the_usual_grouping(stored, worded, max_length):
    store, tokenizer = stored([[2, 3], [7], [1], [30]]), worded(eos_token="</s>")
    bounds = bounds_of(store).tolist()
    texts = [[*store.tokens[start:end].tolist(), 3] for start, end in pairwise(bounds)]
    # As transformers' run_clm.py groups texts, but for the short rest, which is kept.
    stream = [token for text in texts for token in text]
    grouped = [stream[at : at + max_length] for at in range(0, len(stream), max_length)]
    assert rows_of(data.causal_segments(store, tokenizer, max_length)) == grouped
    apart = [text[at : at + max_length] for text in texts for at in range(0, len(text), max_length)]
    tokenized = data.causal_segments(store, tokenizer, max_length, cross_documents=False)
    assert rows_of(tokenized) == apart
    np.testing.assert_array_equal(tokenized.boundaries, tokenized.lengths)


def test_a_document_ends_with_bos_where_there_is_no_eos(stored, worded):
    assert rows_of(data.causal_segments(stored([[2]]), worded(bos_token="<s>"), 8)) == [[100, 101, 2]]


def test_special_tokens_are_the_tokenizer_s(stored, worded):
    roberta = worded(processors.RobertaProcessing(("</s>", 3), ("<s>", 2)), pad_token="<pad>")
    # RoBERTa's: <s> A </s></s> B </s>, all of type 0.
    assert read_template(roberta, 1) == (((2,), (3,)), 2, (True,))
    assert read_template(roberta, 2) == (((2,), (3, 3), (3,)), 4, (True, True))
    assert rows_of(data.full_segments(stored([[2]]), roberta, 8)) == [[2, 100, 101, 3]]
    # T5's: only an end.
    ending = worded(processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)]))
    assert rows_of(data.full_segments(stored([[2]]), ending, 8)) == [[100, 101, 3]]
    assert rows_of(data.full_segments(stored([[2]]), worded(), 8)) == [[100, 101]]


def test_special_tokens_where_no_latin_letter_is_known(worded):
    processor = processors.RobertaProcessing(("</s>", 3), ("<s>", 2))
    tokenizer = worded(processor)
    # BPE without an unknown token drops what it does not know.
    tokenizer.backend_tokenizer.model = models.BPE({"<s>": 2, "</s>": 3, "ж": 4}, [])
    assert read_template(tokenizer, 2).pieces == ((2,), (3, 3), (3,))


def test_a_tokenizer_of_no_text(worded):
    tokenizer = worded()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(".*"), "")
    with pytest.raises(ValueError, match="the tokenizer makes tokens of no text at all"):
        read_template(tokenizer, 1)


def test_odd_token_types(stored, worded):
    odd = worded(processors.TemplateProcessing(single="<s>:1 $A </s>:1", special_tokens=[("<s>", 2), ("</s>", 3)]))
    with pytest.raises(ValueError, match="token types are not zeros followed by ones"):
        data.full_segments(stored([[2]]), odd, 8)


@pytest.mark.parametrize("make", [data.full_segments, data.line_segments])
def test_max_length(stored, tokenizer, make):
    with pytest.raises(ValueError, match="max_length is 2, and 2 are special tokens; expected at least 3"):
        make(stored([[2]]), tokenizer, 2)
    with pytest.raises(ValueError, match="max_length is 65, and the model takes 64 tokens at most"):
        make(stored([[2]]), tokenizer, 65)
    with pytest.raises(ValueError, match="the corpus holds no text to make examples of"):
        make(stored([]), tokenizer, 8)


def test_causal_errors(stored, worded, tokenizer):
    with pytest.raises(ValueError, match="the tokenizer has no eos_token to end a document with, nor a bos_token"):
        data.causal_segments(stored([[2]]), tokenizer, 8)
    ended = worded(eos_token="</s>", model_max_length=16)
    with pytest.raises(ValueError, match="max_length is 1, expected at least 2: a token, and the next to predict"):
        data.causal_segments(stored([[2]]), ended, 1)
    with pytest.raises(ValueError, match="max_length is 17, and the model takes 16 tokens at most"):
        data.causal_segments(stored([[2]]), ended, 17)
    with pytest.raises(ValueError, match="the corpus holds no text to make examples of"):
        data.causal_segments(stored([]), ended, 8)


def test_unknown_unit(stored, tokenizer):
    with pytest.raises(ValueError, match="unit is 'word', expected 'document' or 'sentence'"):
        data.line_segments(stored([[2]]), tokenizer, 8, unit="word")
