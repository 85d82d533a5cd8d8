import numpy as np
import pytest

from jaxptft import data
from jaxptft.data import examples

DOCUMENTS = [np.random.default_rng(seed).integers(1, 12, 5 + seed).tolist() for seed in range(8)]


@pytest.fixture
def large(monkeypatch):
    """Every corpus counts as large, and is written in many chunks."""
    monkeypatch.setattr(examples, "LARGE", 0)
    monkeypatch.setattr(examples, "CHUNK", 40)


def same(left, right):
    for name in ("tokens", "offsets", "boundaries"):
        ours, theirs = getattr(left, name), getattr(right, name)
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert (left.max_length, left.truncated, left.pad_id) == (right.max_length, right.truncated, right.pad_id)
    assert left.fingerprint == right.fingerprint


def test_a_small_corpus_stays_in_memory(stored, tokenizer, own_cache):
    data.full_segments(stored(DOCUMENTS), tokenizer, 16)
    assert not own_cache.exists()


def test_from_the_cache_as_in_memory(stored, tokenizer, large, monkeypatch):
    store = stored(DOCUMENTS)
    in_memory, labels = data.sentence_pairs(store, tokenizer, 16, cache=False)
    made, made_labels = data.sentence_pairs(store, tokenizer, 16)
    monkeypatch.setattr(examples, "_write", None)  # not called again
    found, found_labels = data.sentence_pairs(store, tokenizer, 16)
    for tokenized, kept in ((made, made_labels), (found, found_labels)):
        same(tokenized, in_memory)
        np.testing.assert_array_equal(kept, labels)
        assert kept.dtype == np.int32
        assert not tokenized.tokens.flags.writeable  # mapped


def test_segments_from_the_cache(stored, tokenizer, large, own_cache):
    store = stored(DOCUMENTS)
    same(data.full_segments(store, tokenizer, 16), data.full_segments(store, tokenizer, 16, cache=False))
    (folder,) = (own_cache / "examples").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        "boundaries.npy",
        "manifest.json",
        "offsets.npy",
        "tokens.npy",
    ]


def test_a_damaged_entry_is_made_anew(stored, tokenizer, large, own_cache):
    store = stored(DOCUMENTS)
    good = data.full_segments(store, tokenizer, 16, cache=False)
    data.full_segments(store, tokenizer, 16)
    (path,) = (own_cache / "examples").glob("*/tokens.npy")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-4])
    same(data.full_segments(store, tokenizer, 16), good)


def test_whatever_decides_the_examples_is_in_their_fingerprint(stored, tokenizer, worded):
    from tokenizers import processors

    store, other = stored(DOCUMENTS), stored(DOCUMENTS, name="another")
    ending = worded(processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)]), eos_token="</s>")
    bos = worded(bos_token="<s>")
    made = [
        data.full_segments(store, tokenizer, 16),
        data.full_segments(other, tokenizer, 16),
        data.full_segments(store, tokenizer, 17),
        data.full_segments(store, ending, 16),
        data.line_segments(store, tokenizer, 16),
        data.line_segments(store, tokenizer, 16, unit="sentence"),
        data.causal_segments(store, ending, 16),
        data.causal_segments(store, bos, 16),
        data.causal_segments(store, bos, 16, cross_documents=False),
        data.sentence_pairs(store, tokenizer, 16)[0],
        data.sentence_pairs(store, tokenizer, 16, "sop")[0],
        data.sentence_pairs(store, tokenizer, 16, seed=1)[0],
        data.sentence_pairs(store, tokenizer, 16, short_share=0.2)[0],
    ]
    assert len({tokenized.fingerprint for tokenized in made}) == len(made)


def test_a_folder_that_cannot_be_written(stored, tokenizer, large, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("JAXPTFT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="examples are not cached: .* cannot be written"):
        tokenized = data.full_segments(stored(DOCUMENTS), tokenizer, 16)
    same(tokenized, data.full_segments(stored(DOCUMENTS), tokenizer, 16, cache=False))
