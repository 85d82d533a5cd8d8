"""Words -> labelled tokens: transformers' own tokenizers, told that the text is split, are the reference."""

import numpy as np
import pytest

from jaxptft import data
from jaxptft.data.tagged_tokens import UNCOUNTED, _windows

SENTENCES = [
    (["The", "cats", "ran", "in", "zebra-land", "."], ["O", "B-X", "I-X", "O", "B-Y", "O"]),
    (["running"], ["B-Y"]),
    (["dog", "\u200b", "sat"], ["B-X", "I-X", "I-X"]),
]
NAMES = ("O", "B-X", "I-X", "B-Y", "I-Y")


def taggings_of(sentences, names=NAMES, scheme="IOB2"):
    return data.Taggings(
        words=[words for words, _ in sentences],
        tags=[tags for _, tags in sentences],
        names=names,
        scheme=scheme,
        loose=0,
        report=data.Report(len(sentences)),
        source="the rows given",
        rows=np.arange(1, len(sentences) + 1, dtype=np.int32),
    )


def byte_level(template=None):
    """Byte-level BPE whose only tokens are bytes and a few words, as RoBERTa's (with its template) or GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "d"), ("Ġd", "o"), ("Ġdo", "g"), ("d", "o"), ("do", "g"), ("Ġ", "c"), ("a", "t")]
    tokens = ["<s>", "</s>", "<pad>", *letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if template:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def with_prefix_space(tokenizer):
    """The same tokenizer as transformers wants it for text that is split."""
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=tokenizer.pad_token)


@pytest.mark.parametrize("kind", ["wordpiece", "roberta", "gpt2"])
@pytest.mark.parametrize("all_pieces", [False, True])
def test_tokens_and_labels_are_those_of_transformers(tokenizer, kind, all_pieces):
    ours = tokenizer if kind == "wordpiece" else byte_level(kind == "roberta")
    tagged = data.tag_tokens(taggings_of(SENTENCES), ours, 64, label_all_pieces=all_pieces)
    theirs = with_prefix_space(ours)
    for row, (words, tags) in enumerate(SENTENCES):
        expected = theirs(words, is_split_into_words=True)
        np.testing.assert_array_equal(tagged.tokenized.row(row), expected["input_ids"])
        # The loop of transformers' run_ner, with B- turned to I- on the further tokens.
        labels, before = [], None
        for word in expected.word_ids():
            if word is None:
                labels.append(UNCOUNTED)
            elif word != before:
                labels.append(NAMES.index(tags[word]))
            else:
                labels.append(NAMES.index(tags[word].replace("B-", "I-")) if all_pieces else UNCOUNTED)
            before = word
        start, end = tagged.tokenized.offsets[row : row + 2]
        np.testing.assert_array_equal(tagged.labels[start:end], labels)
    assert tagged.tokenized.truncated == 0
    if kind == "wordpiece":
        assert (tagged.positions == -1).sum() == 1  # the invisible space, which has no token
        assert tagged.labels.max() == 3 + all_pieces  # only a further token is I-Y


def test_words_get_back_what_their_first_token_has(tokenizer):
    tagged = data.tag_tokens(taggings_of(SENTENCES), tokenizer, 64)
    values = np.arange(3 * 20).reshape(3, 20)
    found = [row.tolist() for row in tagged.by_word(values, -7)]
    # By hand: [CLS] the cat ##s ran in zebra - land . [SEP], where three are [UNK]; [CLS] [UNK]; [CLS] dog sat.
    assert found == [[1, 2, 4, 5, 6, 9], [21], [41, -7, 42]]


def test_long_sentences_become_windows_and_no_word_is_lost(tokenizer):
    rng = np.random.default_rng(0)
    vocabulary = ["cat", "cats", "dog", "a-b-c", "\u200b", "one-" * 8 + "one"]
    sentences = []
    for length in rng.integers(1, 60, 40):
        words = [str(word) for word in rng.choice(vocabulary, length, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05])]
        sentences.append((words, [str(tag) for tag in rng.choice(NAMES, length)]))
    taggings = taggings_of(sentences)
    tagged = data.tag_tokens(taggings, tokenizer, 12)
    tokenized = tagged.tokenized
    assert tokenized.lengths.max() == 12
    whole = [len(tokenizer(words, is_split_into_words=True)["input_ids"]) for words, _ in sentences]
    assert tokenized.truncated == sum(length > 12 for length in whole)
    # Each word once: labels read back through the words are the tags, where a word has a token.
    labels = np.full((len(tokenized), 12), UNCOUNTED)
    for row in range(len(tokenized)):
        start, end = tokenized.offsets[row : row + 2]
        labels[row, : end - start] = tagged.labels[start:end]
    for (words, tags), found in zip(sentences, tagged.by_word(labels, -1), strict=True):
        expected = [-1 if word == "\u200b" else NAMES.index(tag) for word, tag in zip(words, tags, strict=True)]
        assert found.tolist() == expected
    assert (labels != UNCOUNTED).sum() == (tagged.positions >= 0).sum()
    # And its first token is its own.
    flat = [word for words, _ in sentences for word in words]
    for word, window, position in zip(flat, tagged.windows, tagged.positions, strict=True):
        if position >= 0:
            first = tokenizer(word, add_special_tokens=False)["input_ids"][0]
            assert tokenized.row(window)[position] == first


def test_windows_overlap_by_a_quarter_and_share_it():
    assert _windows(np.arange(21), 8) == [(0, 8, 0, 7), (6, 14, 7, 13), (12, 20, 13, 20)]  # by hand
    assert _windows(np.array([0, 3, 13, 14]), 8) == [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]
    assert _windows(np.array([0, 2, 4]), 8) == [(0, 2, 0, 2)]


def test_batches_hold_labels_that_padding_does_not_move(tokenizer):
    tagged = data.tag_tokens(taggings_of(SENTENCES), tokenizer, 64)
    for buckets in ((11,), (16,), (24, 40)):
        batches = data.TaggedBatches(tagged, batch_size=2, multiple_of=4, buckets=buckets, seed=3)
        seen = {}
        for step in range(batches.steps_per_epoch):
            batch = batches.batch_at(step)
            assert batch["labels"].dtype == np.int32
            assert batch["labels"].shape == batch["input_ids"].shape
            assert (batch["labels"][batch["attention_mask"] == 0] == UNCOUNTED).all()
            assert (batch["labels"][~batch["valid"]] == UNCOUNTED).all()
            for number, mask, labels in zip(batch["ids"], batch["attention_mask"], batch["labels"], strict=True):
                if number >= 0:
                    seen[int(number)] = labels[mask > 0].tolist()
        assert len(seen) == 3
        for row, labels in seen.items():
            start, end = tagged.tokenized.offsets[row : row + 2]
            assert labels == tagged.labels[start:end].tolist()


def test_fingerprints_tell_labels_apart(tokenizer):
    other = [(words, ["O"] * len(words)) for words, _ in SENTENCES]
    both = [data.tag_tokens(taggings_of(rows), tokenizer, 64) for rows in (SENTENCES, other)]
    assert both[0].tokenized.fingerprint != both[1].tokenized.fingerprint  # by which a resumed run knows its data
    np.testing.assert_array_equal(both[0].tokenized.tokens, both[1].tokenized.tokens)
    batches = [data.TaggedBatches(tagged, batch_size=2) for tagged in both]
    assert batches[0].fingerprint != batches[1].fingerprint
    assert data.tag_tokens(taggings_of(SENTENCES), tokenizer, 6).tokenized.fingerprint != both[0].tokenized.fingerprint


def test_length_must_have_room_and_fit_the_model(tokenizer):
    with pytest.raises(ValueError, match="max_length is 2, and 2 are special tokens; expected at least 3"):
        data.tag_tokens(taggings_of(SENTENCES), tokenizer, 2)
    with pytest.raises(ValueError, match="max_length is 65, and the model takes 64 tokens at most"):
        data.tag_tokens(taggings_of(SENTENCES), tokenizer, 65)


def test_sentences_without_tags_have_no_labels(tokenizer, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "the cat sat."}\n')
    tagged = data.tag_tokens(data.read_sentences(tmp_path / "t.jsonl"), tokenizer, 64)
    assert (tagged.labels == UNCOUNTED).all()
    assert tagged.positions.tolist() == [1, 2, 3, 4]
