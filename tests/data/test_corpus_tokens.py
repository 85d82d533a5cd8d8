"""Token ids are line numbers in the fixture's vocabulary: [UNK] 1, the 5, a 6, cat 7, ... `.` 29, `,` 30, `!` 31."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxptft import data
from jaxptft.data import corpus_files
from jaxptft.data import corpus_tokens as module

TEXT = "The cat sat on the mat. It was a good film!\n\nA zebra ran."
IDS = [[5, 7, 9, 11, 5, 13, 29], [21, 18, 6, 15, 17, 31], [6, 1, 10, 29]]  # zebra is unknown


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "texts"
    root.mkdir()
    (root / "a.txt").write_text(TEXT)
    (root / "b.txt").write_text("One, two, three")
    (root / "c.txt").write_text("\u200d\u200d")  # characters that the tokenizer removes
    return root


def arrays(store):
    return [store.tokens.tolist(), store.sentences.tolist(), store.documents.tolist(), store.characters.tolist()]


def test_by_hand(folder, tokenizer):
    store = data.tokenize_corpus(folder, tokenizer)
    assert [sentence.tolist() for sentence in store.document(0)] == IDS
    assert [sentence.tolist() for sentence in store.document(1)] == [[23, 30, 24, 30, 25]]
    assert (store.document_count, store.sentence_count, store.token_count) == (2, 4, 22)
    assert (store.unknown, store.unknown_share) == (1, 1 / 22)
    assert store.character_count == len(TEXT) + len("One, two, three")
    assert store.report.rows == 3
    whole = data.tokenize_corpus(folder, tokenizer, sentences=False)
    assert whole.tokens.tolist() == store.tokens.tolist()
    assert whole.sentences.tolist() == [0, 17, 22]


def test_what_makes_it_anew(folder, tokenizer, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "_tokenized", lambda *given, real=module._tokenized: calls.append(1) or real(*given))
    first = data.tokenize_corpus(folder, tokenizer)
    assert data.tokenize_corpus(str(folder), tokenizer, workers=1).fingerprint == first.fingerprint
    assert len(calls) == 1
    moved = folder.rename(tmp_path / "elsewhere")  # the same bytes in another place
    assert data.tokenize_corpus(moved, tokenizer).fingerprint == first.fingerprint
    assert len(calls) == 1
    found = {first.fingerprint}
    for options in ({"sentences": False}, {"documents": "line"}, {"on_bad_document": "skip"}):
        found.add(data.tokenize_corpus(moved, tokenizer, **options).fingerprint)
    before = (moved / "b.txt").stat()
    (moved / "b.txt").write_text("One, two, seven")  # as long, and said to be as old
    os.utime(moved / "b.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    found.add(data.tokenize_corpus(moved, tokenizer).fingerprint)
    assert len(found) == len(calls) == 5


def test_files_at_rest_are_not_read_again(folder, tokenizer, monkeypatch):
    monkeypatch.setattr(corpus_files, "SETTLED_SECONDS", -1.0)
    first = data.tokenize_corpus(folder, tokenizer)
    monkeypatch.setattr(corpus_files, "file_sha256", lambda path: pytest.fail(f"{path} is read again"))
    assert data.tokenize_corpus(folder, tokenizer).fingerprint == first.fingerprint


def test_a_file_that_changes_meanwhile(folder, tokenizer, monkeypatch):
    def meddle(*given, real=module._tokenized):
        (folder / "b.txt").write_text("one more")
        return real(*given)

    monkeypatch.setattr(module, "_tokenized", meddle)
    with pytest.raises(ValueError, match=r"b\.txt: changed while it was read; run this again"):
        data.tokenize_corpus(folder, tokenizer)


def test_refusals(folder, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="workers is 0, expected 1 at least"):
        data.tokenize_corpus(folder, tokenizer, workers=0)
    with pytest.raises(ValueError, match="documents is 'page'"):
        data.tokenize_corpus(folder, tokenizer, documents="page")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"c\.txt: the tokenizer gives no token for any text of the corpus"):
        data.tokenize_corpus(folder / "c.txt", tokenizer)
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"bad\.txt, line 1, byte 1: is 0xff"):
        data.tokenize_corpus(tmp_path / "bad.txt", tokenizer)


def test_a_tokenizer_that_fails(folder):
    import transformers
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordPiece({"a": 0}, unk_token="[UNK]"))  # which it does not have
    broken = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(ValueError, match=r"the tokenizer fails on the corpus \(WordPiece error"):
        data.tokenize_corpus(folder, broken)


def test_white_space_stays_where_it_means_something(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    (tmp_path / "t.txt").write_text(f"{TEXT}  Über 曹操。次回！\n\n\tEnd")
    store = data.tokenize_corpus(tmp_path / "t.txt", PreTrainedTokenizerFast(tokenizer_object=backend))
    assert backend.decode(store.tokens.tolist()) == (tmp_path / "t.txt").read_text()
    assert store.sentence_count == 6
    # As the text in one piece.
    assert store.tokens.tolist() == backend.encode((tmp_path / "t.txt").read_text()).ids


def test_workers_change_nothing(tmp_path, tokenizer, own_cache, monkeypatch, sentences_of):
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text(". ".join(sentences_of(5, seed=number)))
    monkeypatch.setattr(module, "CHUNK", 500)
    alone = arrays(data.tokenize_corpus(f"{tmp_path}/*.txt", tokenizer))
    monkeypatch.setenv("JAXPTFT_CACHE", str(tmp_path / "another"))
    together = data.tokenize_corpus(f"{tmp_path}/*.txt", tokenizer, workers=2)
    assert arrays(together) == alone
    assert (together.document_count, together.unknown > 0) == (40, True)


def test_a_worker_that_dies(folder, tokenizer, monkeypatch, own_cache):
    monkeypatch.setattr(module, "_chunks", lambda texts: iter([signal.SIGKILL]))
    monkeypatch.setattr(module, "_work", signal.raise_signal)
    with pytest.raises(RuntimeError, match=r"a process that tokenized the corpus died .*: try fewer workers"):
        data.tokenize_corpus(folder, tokenizer, workers=2)
    assert [path.suffix for path in (own_cache / "corpora").iterdir()] == [".lock"]


SCRIPT = """
import multiprocessing, sys, time
from jaxptft import data
from jaxptft.data import corpus_tokens as module

def chunks(texts):
    yield list(texts)
    yield ["one"]  # more than may wait: the first results are in
    yield ["two"]
    yield ["three"]
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    module._chunks = chunks
    data.tokenize_corpus(sys.argv[1], data.load_tokenizer(sys.argv[2]), workers=2)
"""


def test_killed_while_it_builds(folder, tokenizer, tokenizer_folder, tmp_path, own_cache):
    (tmp_path / "script.py").write_text(SCRIPT)
    line = [sys.executable, str(tmp_path / "script.py"), str(folder), str(tokenizer_folder)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(number) for number in process.stdout.readline().split()]
        process.send_signal(signal.SIGKILL)
    assert workers
    deadline = time.monotonic() + 60
    while any(_alive(number) for number in workers):  # they notice and leave
        assert time.monotonic() < deadline, "workers outlive the process that started them"
        time.sleep(0.05)
    assert len(list((own_cache / "corpora").glob(".*-*"))) == 1
    store = data.tokenize_corpus(folder, tokenizer)
    assert store.token_count == 22
    names = {path.name for path in (own_cache / "corpora").iterdir()}
    assert names - {"known"} == {store.fingerprint, f".{store.fingerprint}.lock"}


def _alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True).stdout
    return not state.startswith("Z") and bool(state.strip())


def test_special_tokens_in_the_text_are_text_of_the_tokenizer(tmp_path, tokenizer):
    # As `transformers` reads them, so that a corpus which holds such marks keeps its meaning.
    (tmp_path / "t.txt").write_text("a [SEP] cat")
    expected = tokenizer("a [SEP] cat", add_special_tokens=False)["input_ids"]
    assert np.array_equal(data.tokenize_corpus(tmp_path / "t.txt", tokenizer).tokens, expected)
