"""Raw text -> a `TokenStore`, once: streamed through the tokenizer by one process or several into the cache folder.

One process reads; each worker gets pieces of about a quarter of a million characters, splits their sentences and
tokenizes them; the results are written in the order of the text, so their number changes nothing but the time.
"""

import copy
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain
from typing import Any, get_args

import numpy as np

from jaxptft.data.cache import fingerprint
from jaxptft.data.corpus import Documents, DocumentTally, OnBadDocument, read_pieces
from jaxptft.data.corpus_files import content_fingerprint, find_pieces, stamps
from jaxptft.data.readers import first_line
from jaxptft.data.sentences import sentence_spans
from jaxptft.data.token_store import FORMAT, Part, StoreWriter, TokenStore, cached_store
from jaxptft.data.tokenized import tokenizer_fingerprint
from jaxptft.data.validate import Report

RULES = "sentences 1"  # counts up with data/sentences.py
CHUNK = 1 << 18  # characters of documents that are tokenized as one piece of work
AHEAD = 3  # pieces of work a worker that wait or run


def tokenize_corpus(
    sources: Any,
    tokenizer: Any,
    *,
    workers: int = 1,
    sentences: bool = True,
    text_column: str | None = None,
    documents: Documents = "file",
    on_bad_document: OnBadDocument = "error",
    suffixes: Sequence[str] = (),
    split: str | None = None,
) -> TokenStore:
    """The token ids of a corpus, computed once and kept in the cache folder.

    They are computed anew when a file, the tokenizer or a setting changes. Processes that ask for the same corpus at
    once wait for the first of them. Text goes to the tokenizer a sentence at a time, with the white space before it,
    and without special tokens.

    Args:
      sources: as `read_corpus` takes them, and so are the arguments not named here.
      workers: processes that tokenize; with one, this process does. A script that asks for more keeps what it runs
        under `if __name__ == "__main__":`, since each of them imports it.
      sentences: False takes every document for one sentence.

    Raises:
      FileNotFoundError: there is no such source.
      ValueError: a document is bad, there is no text, or the tokenizer fails.
      RuntimeError: a worker process died.
      OSError: the cache folder cannot be written.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected 1 at least")
    if documents not in get_args(Documents):
        raise ValueError(f"documents is {documents!r}; choose one of {', '.join(get_args(Documents))}")
    import tokenizers

    tally = DocumentTally(on_bad_document)
    pieces = find_pieces(sources, suffixes)
    before = [stamps(piece) for piece in pieces]
    settings = [str(text_column), documents, on_bad_document, str(split), str(sentences)]
    identity = [tokenizers.__version__, tokenizer_fingerprint(tokenizer), content_fingerprint(pieces)]
    key = fingerprint([FORMAT, RULES, *settings, *identity])
    backend = copy.deepcopy(tokenizer.backend_tokenizer)  # the caller's keeps its settings
    backend.no_padding()
    backend.no_truncation()

    def build(writer: StoreWriter) -> Report:
        texts = read_pieces(pieces, tally, text_column=text_column, documents=documents, split=split)
        run = _alone if workers == 1 else partial(_together, workers=workers)
        for part in run(_chunks(texts), backend, sentences):
            writer.append(part)
        if not writer.ends["documents"]:
            raise ValueError(f"{pieces[0].name}: the tokenizer gives no token for any text of the corpus")
        for piece, stamp in zip(pieces, before, strict=True):
            if stamps(piece) != stamp:
                raise ValueError(f"{piece.name}: changed while it was read; run this again once nobody writes to it")
        return tally.report()

    return cached_store(key, build, tokenizer.unk_token_id)


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text) + 1
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _alone(chunks: Iterator[list[str]], backend: Any, sentences: bool) -> Iterator[Part]:
    for chunk in chunks:
        yield _tokenized(chunk, backend, sentences)


def _together(chunks: Iterator[list[str]], backend: Any, sentences: bool, *, workers: int) -> Iterator[Part]:
    import multiprocessing

    # Spawned, not forked: a process that runs JAX has threads, whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(backend.to_str(), sentences))
    try:
        waiting: deque[Any] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise RuntimeError(
            "a process that tokenized the corpus died (killed, or out of memory: try fewer workers; or the script that "
            "asked for workers does so outside `if __name__ == '__main__':`)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_worker: tuple[Any, bool] | None = None  # of a worker process: its tokenizer, and whether to split sentences


def _begin(state: str, sentences: bool) -> None:
    global _worker
    import signal
    from multiprocessing import connection, parent_process

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process a core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    from tokenizers import Tokenizer

    _worker = Tokenizer.from_str(state), sentences
    parent = parent_process()
    if parent is not None:

        def follow() -> None:
            connection.wait([parent.sentinel])
            os._exit(1)  # a killed parent would leave its workers waiting for ever

        threading.Thread(target=follow, daemon=True).start()


def _work(chunk: list[str]) -> Part:
    assert _worker is not None
    return _tokenized(chunk, *_worker)


def _tokenized(texts: list[str], backend: Any, sentences: bool) -> Part:
    """The documents' tokens; sentences without a token, and documents without a sentence, are left out."""
    pieces: list[str] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        spans = sentence_spans(text) if sentences else [(0, len(text))]
        pieces += [text[start:end] for start, end in spans]
        owners += [number] * len(spans)
    try:
        encodings = backend.encode_batch_fast(pieces, add_special_tokens=False)
    except Exception as error:  # the library raises this very class
        raise ValueError(f"the tokenizer fails on the corpus ({first_line(error)})") from None
    ids = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    tokens = np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))
    sizes = np.bincount(np.asarray(owners, np.int64)[lengths > 0], minlength=len(texts))
    characters = np.fromiter(map(len, texts), np.int64, len(texts))
    return Part(tokens, lengths[lengths > 0], sizes[sizes > 0], characters[sizes > 0])
