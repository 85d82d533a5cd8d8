"""A corpus as token ids: sentences in documents, end to end on disk and mapped into memory.

Sentence s is `tokens[sentences[s]:sentences[s + 1]]`, document d the sentences `documents[d]` to `documents[d + 1]`, so
that its tokens are contiguous too. No special tokens are among them: those come with the examples that are cut from it.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxptft.data.cache import cache_folder, exclusive, fingerprint, publish, read_manifest
from jaxptft.data.validate import Report

FORMAT = "token store 1"
BLOCK = 1 << 22  # tokens copied at a time
DTYPES = {"tokens": "<i4", "sentences": "<i8", "documents": "<i8", "characters": "<i8"}


@dataclass(frozen=True, eq=False)
class TokenStore:
    """A corpus's token ids. Every sentence has a token, and every document a sentence.

    `report` counts the documents that were read and those left out; of a part of a corpus it is the whole's.
    """

    tokens: Int[np.ndarray, " tokens"]  # int32
    sentences: Int[np.ndarray, " sentences+1"]  # int64, offsets into tokens
    documents: Int[np.ndarray, " documents+1"]  # int64, offsets into sentences
    fingerprint: str
    characters: Int[np.ndarray, " documents"] | None = None  # int64; of the text each document was
    unknown_id: int | None = None  # of the token that stands for what the vocabulary lacks
    unknown: int = 0  # tokens that are it
    report: Report = Report()  # noqa: RUF009

    def __len__(self) -> int:
        return len(self.documents) - 1

    @property
    def document_count(self) -> int:
        """Documents in it."""
        return len(self)

    @property
    def sentence_count(self) -> int:
        """Sentences in it."""
        return len(self.sentences) - 1

    @property
    def token_count(self) -> int:
        """Tokens in it."""
        return len(self.tokens)

    @property
    def character_count(self) -> int:
        """Characters of the text it was made of."""
        return 0 if self.characters is None else int(self.characters.sum())

    @property
    def unknown_share(self) -> float:
        """The share of its tokens that are [UNK]."""
        return self.unknown / max(1, self.token_count)

    def sentence(self, index: int) -> Int[np.ndarray, " length"]:
        """The token ids of one sentence of the corpus."""
        return self.tokens[self.sentences[index] : self.sentences[index + 1]]

    def document(self, index: int) -> list[Int[np.ndarray, " length"]]:
        """The sentences of one document."""
        return [self.sentence(number) for number in range(self.documents[index], self.documents[index + 1])]

    def document_tokens(self, index: int) -> Int[np.ndarray, " length"]:
        """The token ids of one document, all sentences in one."""
        first, last = self.documents[index], self.documents[index + 1]
        return self.tokens[self.sentences[first] : self.sentences[last]]


class Part(NamedTuple):
    """Some documents that follow one another: their ids, and lengths in place of offsets."""

    tokens: Int[np.ndarray, " tokens"]
    sentences: Int[np.ndarray, " sentences"]  # tokens in each
    documents: Int[np.ndarray, " documents"]  # sentences in each
    characters: Int[np.ndarray, " documents"]


class StoreWriter:
    """Appends parts to the files of a store, none of which is ever in memory whole."""

    def __init__(self, folder: Path, unknown_id: int | None):
        self.unknown_id = unknown_id
        self.unknown = 0
        self.ends = {"sentences": 0, "documents": 0}
        self.files: dict[str, IO[bytes]] = {name: (folder / f"{name}.bin").open("wb") for name in DTYPES}
        for name in self.ends:
            self.files[name].write(np.zeros(1, DTYPES[name]).tobytes())

    def append(self, part: Part) -> None:
        for name in ("tokens", "characters"):
            self.files[name].write(getattr(part, name).astype(DTYPES[name]).tobytes())
        for name in self.ends:
            ends = self.ends[name] + np.cumsum(getattr(part, name), dtype=np.int64)
            self.files[name].write(ends.astype(DTYPES[name]).tobytes())
            self.ends[name] = int(ends[-1]) if len(ends) else self.ends[name]
        if self.unknown_id is not None:
            self.unknown += int(np.count_nonzero(part.tokens == self.unknown_id))

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def store_folder(key: str) -> Path:
    """Where the store with this key is, or would be."""
    return cache_folder() / "corpora" / key


def cached_store(key: str, build: Callable[[StoreWriter], Report], unknown_id: int | None) -> TokenStore:
    """The store with this key from the cache folder, or built there: by one process, while others that want it wait.

    Args:
      key: a fingerprint of everything that decides what is in it.
      build: appends every part to the writer and returns what was left out; if it raises, nothing is left behind.

    Raises:
      OSError: the cache folder cannot be written.
    """
    if (found := open_store(key)) is not None:
        return found
    folder = store_folder(key)
    lock = folder.parent / f".{key}.lock"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise OSError(f"{folder.parent} cannot be written ({error.strerror}); JAXPTFT_CACHE names another") from None
    with exclusive(lock):
        if (found := open_store(key)) is not None:
            return found
        for left in folder.parent.glob(f".{key}-*"):  # by a process that was killed: whoever lives has the lock
            shutil.rmtree(left, ignore_errors=True)

        def fill(fresh: Path) -> dict[str, Any]:
            writer = StoreWriter(fresh, unknown_id)
            try:
                report = build(writer)
            finally:
                writer.close()
            return {"key": key, "unknown": writer.unknown, "unknown_id": unknown_id, "report": asdict(report)}

        publish(folder, fill)
        found = open_store(key)
    if found is None:
        raise OSError(f"{folder}: what was just written there cannot be read back; look at the disk")
    return found


def open_store(key: str) -> TokenStore | None:
    """The store with this key if it is in the cache folder and every file of it is sound."""
    folder = store_folder(key)
    manifest = read_manifest(folder, {"key": key})
    return None if manifest is None else _load(folder, manifest)


def _load(folder: Path, facts: Mapping[str, Any]) -> TokenStore:
    def mapped(name: str) -> np.ndarray:
        # Viewed as plain arrays: np.memmap's own indexing is several times slower.
        return np.memmap(folder / f"{name}.bin", DTYPES[name], mode="r").view(np.ndarray)

    report = Report(**{**facts["report"], "examples": tuple(facts["report"]["examples"])})
    rest = {name: facts[name] for name in ("unknown", "unknown_id")}
    return TokenStore(**{name: mapped(name) for name in DTYPES}, fingerprint=facts["key"], report=report, **rest)


def split_documents(store: TokenStore, share: float, seed: int = 0) -> tuple[TokenStore, TokenStore]:
    """The documents to train on and those held out, each in the order it had; both kept in the cache folder.

    A document's own tokens decide where it goes, so that equal documents stay on one side, and one keeps its side when
    others join or leave the corpus. About `share` of the documents are held out, one at least.

    Raises:
      ValueError: `share` is not between 0 and 1, or no two documents differ.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}, expected a number between 0 and 1")
    place = _places(store, seed)
    if len(np.unique(place)) < 2:
        count = f"{len(store)} document" + ("s, all alike" if len(store) > 1 else "")
        raise ValueError(
            f"the corpus holds {count}: none can be held out; say what a document is (documents='line' or "
            "'blank-line'), or give held-out text"
        )
    held = place < share
    if held.all():
        held = place < place.max()
    elif not held.any():
        held = place == place.min()
    key = fingerprint([FORMAT, "split 1", store.fingerprint, str(share), str(seed)])
    train = cached_store(fingerprint([key, "train"]), lambda writer: _copy(store, ~held, writer), store.unknown_id)
    return train, cached_store(
        fingerprint([key, "held out"]), lambda writer: _copy(store, held, writer), store.unknown_id
    )


def _places(store: TokenStore, seed: int) -> Float[np.ndarray, " documents"]:
    """A number from 0 to 1 for every document, which its tokens and the seed decide."""
    key = seed.to_bytes(16, "little", signed=True)
    bounds = store.sentences[store.documents].tolist()
    place = np.zeros(len(store))
    for index, (start, end) in enumerate(pairwise(bounds)):
        digest = hashlib.blake2b(store.tokens[start:end].tobytes(), digest_size=8, key=key).digest()
        place[index] = int.from_bytes(digest, "little") / 2**64
    return place


def _copy(store: TokenStore, chosen: Bool[np.ndarray, " documents"], writer: StoreWriter) -> Report:
    lengths, sizes = np.diff(store.sentences), np.diff(store.documents)
    bounds = store.sentences[store.documents]
    start = 0
    while start < len(store):
        end = max(start + 1, int(np.searchsorted(bounds, bounds[start] + BLOCK, "right")) - 1)
        first, last = store.documents[start], store.documents[end]
        keep = np.repeat(chosen[start:end], sizes[start:end])
        tokens = np.repeat(keep, lengths[first:last])
        characters = np.zeros(len(store), np.int64) if store.characters is None else store.characters
        writer.append(
            Part(
                store.tokens[store.sentences[first] : store.sentences[last]][tokens],
                lengths[first:last][keep],
                sizes[start:end][chosen[start:end]],
                characters[start:end][chosen[start:end]],
            )
        )
        start = end
    return store.report
