"""A corpus kept on disk: offsets, the cache, and the cut into two parts; its tokens are counted up by hand."""

import threading

import numpy as np
import pytest

from jaxptft import data
from jaxptft.data import token_store
from jaxptft.data.token_store import Part, cached_store, open_store, store_folder
from jaxptft.data.validate import Report

# Two documents: sentences of 2 and 1 tokens, and one of 3; 1 is the unknown token.
PARTS = [
    Part(np.array([5, 6, 1]), np.array([2, 1]), np.array([2]), np.array([9])),
    Part(np.array([7, 1, 8]), np.array([3]), np.array([1]), np.array([12])),
]


def build(writer):
    for part in PARTS:
        writer.append(part)
    return Report(3, 1, {"NUL byte": 1}, ("somewhere",))


@pytest.fixture
def many(tmp_path):
    """A store of 400 documents of 1 to 4 sentences of 1 to 5 tokens, the last two of which are alike."""
    random = np.random.default_rng(0)
    sizes = random.integers(1, 5, 400)
    lengths = random.integers(1, 6, sizes.sum())
    documents, sentences = np.append(0, np.cumsum(sizes)), np.append(0, np.cumsum(lengths))
    tokens = random.integers(5, 90, sentences[-1]).astype(np.int32)
    last = tokens[sentences[documents[-2]] :]
    extra = np.append(sentences, sentences[documents[-2] + 1 :] + len(last))
    return data.TokenStore(
        tokens=np.append(tokens, last),
        sentences=extra,
        documents=np.append(documents, documents[-1] + sizes[-1]),
        characters=np.arange(401),
        unknown_id=7,
        fingerprint="many",
    )


def test_parts_become_one_store():
    store = cached_store("key", build, 1)
    assert store.tokens.tolist() == [5, 6, 1, 7, 1, 8]
    assert store.sentences.tolist() == [0, 2, 3, 6]
    assert store.documents.tolist() == [0, 2, 3]
    assert [sentence.tolist() for sentence in store.document(0)] == [[5, 6], [1]]
    assert (store.sentence(2).tolist(), store.document_tokens(1).tolist()) == ([7, 1, 8], [7, 1, 8])
    assert (len(store), store.document_count, store.sentence_count, store.token_count) == (2, 2, 3, 6)
    assert (store.character_count, store.unknown, store.unknown_share) == (21, 2, 2 / 6)
    assert store.report == Report(3, 1, {"NUL byte": 1}, ("somewhere",))
    assert [store.tokens.dtype, store.sentences.dtype, store.documents.dtype] == [np.int32, np.int64, np.int64]
    with pytest.raises(ValueError, match="read-only"):  # mapped, not copied
        store.tokens[0] = 3


def test_it_is_built_once_and_again_when_damaged():
    built = []

    def counted(writer):
        built.append(1)
        return build(writer)

    for _ in range(2):
        cached_store("key", counted, None)
    assert len(built) == 1
    (store_folder("key") / "tokens.bin").write_bytes(b"\0" * 24)
    assert cached_store("key", counted, None).tokens.tolist() == [5, 6, 1, 7, 1, 8]
    assert len(built) == 2


def test_whoever_comes_second_waits():
    entered, found, built = threading.Event(), [], []

    def slow(writer):
        built.append(1)
        entered.set()
        # The other thread is at the lock, or about to be: it must not come in.
        second.join(0.3)
        assert second.is_alive()
        return build(writer)

    second = threading.Thread(target=lambda: (entered.wait(), found.append(cached_store("key", slow, None))))
    second.start()
    cached_store("key", slow, None)
    second.join()
    assert (len(built), found[0].token_count) == (1, 6)


def test_a_failed_build_leaves_nothing(own_cache):
    def fail(writer):
        writer.append(PARTS[0])
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        cached_store("key", fail, None)
    assert open_store("key") is None
    assert [path.name for path in (own_cache / "corpora").iterdir()] == [".key.lock"]


def test_leftovers_of_a_killed_build_are_removed(own_cache):
    left = own_cache / "corpora" / ".key-abc" / "fresh"
    left.mkdir(parents=True)
    (own_cache / "corpora" / ".other-abc").mkdir()
    cached_store("key", build, None)
    assert {path.name for path in (own_cache / "corpora").iterdir()} == {".key.lock", "key", ".other-abc"}


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXPTFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"corpora cannot be written \(.*\); JAXPTFT_CACHE names another"):
        cached_store("key", build, None)


@pytest.mark.parametrize("block", [1, 97, 1 << 20])
def test_split(many, monkeypatch, block):
    monkeypatch.setattr(token_store, "BLOCK", block)  # tokens copied at a time, which must not matter
    train, held = data.split_documents(many, 0.2, seed=1)
    whole = [(tuple(map(tuple, many.document(index))), index) for index in range(len(many))]
    parts = [[tuple(map(tuple, part.document(index))) for index in range(len(part))] for part in (train, held)]
    assert sorted(parts[0] + parts[1]) == sorted(document for document, _ in whole)
    for part, documents in zip((train, held), parts, strict=True):
        places = [place for document, place in whole if document in set(documents)]
        assert documents == [whole[place][0] for place in places]  # in their order
        assert part.characters.tolist() == places  # each document's number, in this store
        assert part.unknown == np.count_nonzero(part.tokens == 7)
        assert part.report == many.report
    assert (whole[399][0] in parts[0]) != (whole[399][0] in parts[1])  # the two alike are on one side
    assert 50 <= len(held) <= 110  # 401 draws of 0.2: 80, with a standard deviation of 8
    assert train.fingerprint != held.fingerprint


def test_split_is_stable(many):
    def held_by(store, seed=1, share=0.2):
        part = data.split_documents(store, share, seed)[1]
        return {tuple(part.document_tokens(index).tolist()) for index in range(len(part))}

    fewer = data.TokenStore(many.tokens, many.sentences, many.documents[100:], fingerprint="fewer")
    assert held_by(fewer) <= held_by(many)
    assert held_by(many) != held_by(many, seed=2)
    assert held_by(many) < held_by(many, share=0.5)
    folders = {data.split_documents(many, 0.2, 1)[1].fingerprint for _ in range(2)}
    assert len(folders) == 1


def test_split_keeps_a_document_on_either_side():
    store = cached_store("key", build, 1)
    for share in (1e-9, 1 - 1e-9):
        assert [len(part) for part in data.split_documents(store, share)] == [1, 1]


def test_split_refuses():
    one = data.TokenStore(np.arange(3, dtype=np.int32), np.array([0, 3]), np.array([0, 1]), "one")
    with pytest.raises(ValueError, match="the corpus holds 1 document: none can be held out; say what a document is"):
        data.split_documents(one, 0.1)
    alike = data.TokenStore(np.array([4, 4], np.int32), np.array([0, 1, 2]), np.array([0, 1, 2]), "alike")
    with pytest.raises(ValueError, match="the corpus holds 2 documents, all alike: none"):
        data.split_documents(alike, 0.1)
    with pytest.raises(ValueError, match="share is 1, expected a number between 0 and 1"):
        data.split_documents(alike, 1)
