"""Text -> token ids, once: stored without padding, kept in the cache folder, and mapped into memory.

Row i is `tokens[offsets[i]:offsets[i + 1]]`, special tokens included, and its tokens from `boundaries[i]` on are of
type 1 (the second text of a pair).
"""

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jaxptft.data.cache import cache_folder, fingerprint, publish, read_manifest
from jaxptft.data.readers import first_line
from jaxptft.data.tables import Table

CHUNK = 8192  # rows a call, so that the tokenizer's own objects never all exist at once
FORMAT = "tokenized 1"
ARRAYS = ("tokens", "offsets", "boundaries")


@dataclass(frozen=True, eq=False)
class Tokenized:
    """Rows of token ids, of different lengths, end to end. `truncated` counts the rows cut to `max_length`; which they
    are is in `cut`, where the rows did not come from the cache."""

    tokens: Int[np.ndarray, " tokens"]  # int32
    offsets: Int[np.ndarray, " rows+1"]  # int64
    boundaries: Int[np.ndarray, " rows"]  # int32; the row's length where it has no second text
    max_length: int
    truncated: int
    pad_id: int
    fingerprint: str
    cut: Bool[np.ndarray, " rows"] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Int[np.ndarray, " rows"]:
        """Tokens in each row, special ones included."""
        return np.diff(self.offsets).astype(np.int32)

    def row(self, index: int) -> Int[np.ndarray, " length"]:
        """The token ids of one row."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def rows(self, chosen: Int[np.ndarray, " chosen"]) -> "Tokenized":
        """Some of the rows, copied, in the order of `chosen`; `truncated` stays that of all."""
        lengths = self.lengths[chosen].astype(np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        places = np.repeat(self.offsets[chosen] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return replace(
            self,
            tokens=self.tokens[places],
            offsets=offsets,
            boundaries=self.boundaries[chosen],
            cut=None if self.cut is None else self.cut[chosen],
            fingerprint=fingerprint([self.fingerprint, np.asarray(chosen, "<i8").tobytes()]),
        )


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer kept in a Hugging Face folder; nothing is fetched and no code of the folder's is run.

    Truncation and padding that its tokenizer.json asks for are dropped: batches are padded here alone.

    Raises:
      FileNotFoundError: no such folder, or no tokenizer in it.
      ValueError: its files cannot be read, or only a tokenizer written in Python fits them.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder to load a tokenizer from")
    known = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
    if not any((folder / name).is_file() for name in known):
        raise FileNotFoundError(f"{folder}: holds no tokenizer; expected tokenizer.json or vocab.txt")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # broken JSON, unknown classes, missing parts: the libraries below raise all kinds
        raise ValueError(f"{folder}: its tokenizer cannot be loaded ({first_line(error)})") from None
    backend = backend_of(tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return tokenizer


class FixedTokenizer:
    """A tokenizer that nobody changes any more: the copies that are made of it, and its fingerprint, are made once.

    Of a vocabulary of 30,000 words each takes longer than tokenizing a hundred sentences.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._copies: dict[int | None, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    @cached_property
    def fingerprint(self) -> str:
        """See `tokenizer_fingerprint`."""
        return tokenizer_fingerprint(self._tokenizer)

    @cached_property
    def state(self) -> Any:
        """See `tokenizer_state`."""
        return tokenizer_state(self._tokenizer)

    def copy(self, max_length: int | None) -> Any:
        """See `backend_copy`."""
        if max_length not in self._copies:
            self._copies[max_length] = backend_copy(self._tokenizer, max_length)
        return self._copies[max_length]


def backend_copy(tokenizer: Any, max_length: int | None = None) -> Any:
    """The tokenizer's backend, so that the caller's keeps its settings, without padding, that cuts to `max_length`."""
    if isinstance(tokenizer, FixedTokenizer):
        return tokenizer.copy(max_length)
    backend = copy.deepcopy(backend_of(tokenizer))
    backend.no_padding()
    backend.no_truncation()
    if max_length is not None:
        backend.enable_truncation(max_length, strategy="longest_first", direction=tokenizer.truncation_side)
    return backend


def tokenizer_state(tokenizer: Any) -> Any:
    """What a tokenizer.json says of it."""
    return tokenizer.state if isinstance(tokenizer, FixedTokenizer) else json.loads(backend_of(tokenizer).to_str())


def backend_of(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        kind = type(tokenizer).__name__
        raise ValueError(f"tokenizer {kind} is not one of the `tokenizers` library; save it with a tokenizer.json")
    return backend


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of everything that decides which ids a text gets, padding id included."""
    if isinstance(tokenizer, FixedTokenizer):
        return tokenizer.fingerprint
    state = json.loads(backend_of(tokenizer).to_str())
    state["truncation"] = state["padding"] = None
    rest = (str(tokenizer.pad_token_id), str(tokenizer.truncation_side))
    return fingerprint([json.dumps(state, sort_keys=True), *rest])


def check_vocabulary(tokenizer: Any, vocab_size: int) -> None:
    """Raise ValueError if the tokenizer gives ids for which the model has no embedding; a smaller tokenizer is fine."""
    highest = max(backend_of(tokenizer).get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= vocab_size:
        raise ValueError(
            f"the tokenizer has {highest + 1} ids, and the model's embedding table {vocab_size} rows; "
            "use the tokenizer that came with the model"
        )


def check_tokens(tokenized: Tokenized, vocab_size: int) -> None:
    """Raise ValueError, naming the first row, if an id is not in [0, vocab_size): on a device it would be clamped."""
    wrong = np.flatnonzero((tokenized.tokens < 0) | (tokenized.tokens >= vocab_size))
    if len(wrong):
        row = int(np.searchsorted(tokenized.offsets, wrong[0], "right")) - 1
        raise ValueError(
            f"example {row} has token id {tokenized.tokens[wrong[0]]}, expected 0 to {vocab_size - 1}; "
            "its tokenizer is not this model's"
        )


def tokenize(table: Table, tokenizer: Any, max_length: int, *, cache: bool = True) -> Tokenized:
    """Token ids of every row, cut to `max_length` (pairs: the longer text first), computed once and kept on disk.

    Args:
      max_length: tokens in a row at most, special ones included.
      cache: look in the cache folder first and store the result there. A damaged entry is made anew; where the folder
        cannot be written, a warning says so and the result stays in memory.

    Raises:
      ValueError: `max_length` leaves no room for text, or is more than the tokenizer says its model takes.
    """
    backend = backend_of(tokenizer)
    special = backend.num_special_tokens_to_add(table.pairs is not None)
    if max_length <= special:
        raise ValueError(
            f"max_length is {max_length}, and {special} are special tokens; expected at least {special + 1}"
        )
    if max_length > tokenizer.model_max_length:
        raise ValueError(f"max_length is {max_length}, and the model takes {tokenizer.model_max_length} tokens at most")
    import tokenizers

    pad_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    # The texts alone decide the tokens; the labels, which are in the table's fingerprint, do no harm in the key.
    key = fingerprint(
        [FORMAT, tokenizers.__version__, table.fingerprint, tokenizer_fingerprint(tokenizer), str(max_length)]
    )
    folder = cache_folder() / "tokenized" / key
    expected = {"key": key, "max_length": max_length, "pad_id": pad_id}
    if cache and (manifest := read_manifest(folder, expected)) is not None:
        return load_tokenized(folder, manifest)

    arrays, cut = _encode(table, tokenizer, max_length)
    facts = {**expected, "truncated": int(cut.sum())}
    if cache:
        try:
            publish(folder, _writer(arrays, facts))
            return load_tokenized(folder, facts)
        except OSError as error:
            warnings.warn(
                f"tokens are not cached: {folder.parent} cannot be written ({first_line(error)})", stacklevel=2
            )
    return Tokenized(
        **arrays, max_length=max_length, truncated=facts["truncated"], pad_id=pad_id, fingerprint=key, cut=cut
    )


def _writer(arrays: Mapping[str, np.ndarray], facts: dict[str, Any]) -> Callable[[Path], dict[str, Any]]:
    def fill(folder: Path) -> dict[str, Any]:
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", arrays[name])
        return facts

    return fill


def load_tokenized(folder: Path, facts: Mapping[str, Any]) -> Tokenized:
    # Viewed as plain arrays: np.memmap's own indexing is several times slower.
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray) for name in ARRAYS
    }
    rest = {name: facts[name] for name in ("max_length", "truncated", "pad_id")}
    return Tokenized(**arrays, **rest, fingerprint=facts["key"])


def _encode(table: Table, tokenizer: Any, max_length: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    backend = backend_copy(tokenizer, max_length)
    inputs: list[Any] = table.texts if table.pairs is None else list(zip(table.texts, table.pairs, strict=True))
    tokens: list[np.ndarray] = []
    lengths = np.zeros(len(table), np.int64)
    boundaries = np.zeros(len(table), np.int32)
    cut = np.zeros(len(table), bool)
    for start in range(0, len(inputs), CHUNK):
        for row, encoding in enumerate(backend.encode_batch_fast(inputs[start : start + CHUNK]), start=start):
            ids = np.array(encoding.ids, np.int32)
            tokens.append(ids)
            lengths[row] = boundaries[row] = len(ids)
            cut[row] = bool(encoding.overflowing)
            if table.pairs is not None:
                types = np.array(encoding.type_ids, np.int32)
                boundaries[row] -= types.sum()
                if np.any(types != (np.arange(len(types)) >= boundaries[row])):
                    raise ValueError(
                        "the tokenizer's token types are not zeros followed by ones; they cannot be stored"
                    )
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    arrays = {"tokens": np.concatenate(tokens), "offsets": offsets, "boundaries": boundaries}
    return arrays, cut
