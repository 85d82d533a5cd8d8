"""Pieces of a token store -> examples, with the special tokens that a tokenizer puts around a text or a pair.

Those of a large corpus are written to the cache folder a chunk at a time and mapped into memory; what is in memory
while they are made is where each begins and ends.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxptft.data.cache import cache_folder, fingerprint, publish, read_manifest
from jaxptft.data.readers import first_line
from jaxptft.data.token_store import TokenStore
from jaxptft.data.tokenized import Tokenized, backend_copy, load_tokenized

LARGE = 1 << 24  # tokens; the examples of a smaller corpus are made anew, in memory, within a second
CHUNK = 1 << 20  # tokens written at a time
FORMAT = "examples 1"


class Template(NamedTuple):
    """What a tokenizer adds: special tokens before the first text, after it and, for a pair, after the second.

    A row's first tokens are of type 0 and the rest of type 1: of type 0 are `zeros` of the special ones, and the texts
    for which `text_zero` is True.
    """

    pieces: tuple[tuple[int, ...], ...]
    zeros: int
    text_zero: tuple[bool, ...]

    @property
    def count(self) -> int:
        """Special tokens in a row."""
        return sum(map(len, self.pieces))


class Plan(NamedTuple):
    """Examples yet to be written: `tokens(first, last)` gives the ids of rows first to last - 1, end to end."""

    lengths: Int[np.ndarray, " rows"]
    boundaries: Int[np.ndarray, " rows"]
    tokens: Callable[[int, int], Int[np.ndarray, " tokens"]]
    truncated: int = 0
    labels: Int[np.ndarray, " rows"] | None = None


def spans(starts: Int[np.ndarray, " spans"], lengths: Int[np.ndarray, " spans"]) -> Int[np.ndarray, " places"]:
    """The places starts[0], starts[0] + 1, ..., lengths[0] of them, then those from starts[1] on, and so forth.

    >>> spans(np.array([10, 3]), np.array([3, 2]))
    array([10, 11, 12,  3,  4])
    """
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


def read_template(tokenizer: Any, texts: int) -> Template:
    """The special tokens around one text or two, learnt from what the tokenizer does to a short one.

    Raises:
      ValueError: the tokenizer makes a token of nothing, or its token types are not zeros followed by ones.
    """
    backend = backend_copy(tokenizer)

    def probes() -> Iterator[str]:
        yield from ("a", "1", "一")
        yield from backend.get_vocab()

    for probe in probes():
        sample = backend.encode(*[probe] * texts)
        owners = np.array([-1 if owner is None else owner for owner in sample.sequence_ids], np.int64)
        if set(range(texts)) <= set(owners.tolist()):
            break
    else:
        raise ValueError("the tokenizer makes tokens of no text at all; train it, or choose another")
    types = np.array(sample.type_ids)
    if np.any(types != (np.arange(len(types)) >= np.count_nonzero(types == 0))):
        raise ValueError("the tokenizer's token types are not zeros followed by ones; they cannot be stored")
    places = [np.flatnonzero(owners == text) for text in range(texts)]
    starts, ends = [int(place[0]) for place in places], [int(place[-1]) + 1 for place in places]
    pieces = tuple(
        tuple(sample.ids[start:end]) for start, end in zip([0, *ends], [*starts, len(sample.ids)], strict=True)
    )
    zeros = int(np.count_nonzero(types[owners < 0] == 0))
    return Template(pieces, zeros, tuple(bool(types[start] == 0) for start in starts))


def check_room(tokenizer: Any, max_length: int, *, special: int, texts: int) -> None:
    """Raise ValueError unless rows of `max_length` have room for a token of every text, and the model for the rows."""
    if max_length < special + texts:
        raise ValueError(
            f"max_length is {max_length}, and {special} are special tokens; expected at least {special + texts}"
        )
    if max_length > tokenizer.model_max_length:
        raise ValueError(f"max_length is {max_length}, and the model takes {tokenizer.model_max_length} tokens at most")


def plan_ranges(
    store: TokenStore,
    ranges: Int[np.ndarray, "rows texts 2"],
    template: Template,
    *,
    truncated: int = 0,
    labels: Int[np.ndarray, " rows"] | None = None,
) -> Plan:
    """Rows of one or two ranges of the store's tokens each, with the template's special tokens around them."""
    sizes = ranges[:, :, 1] - ranges[:, :, 0]

    def tokens(first: int, last: int) -> Int[np.ndarray, " tokens"]:
        size = sizes[first:last]
        lengths = size.sum(1) + template.count
        ids = np.empty(lengths.sum(), np.int32)
        at = np.cumsum(lengths) - lengths
        for number, piece in enumerate(template.pieces):
            for special in piece:
                ids[at] = special
                at = at + 1
            if number < size.shape[1]:
                source = spans(ranges[first:last, number, 0], size[:, number])
                ids[spans(at, size[:, number])] = store.tokens[source]
                at = at + size[:, number]
        return ids

    boundaries = template.zeros + (sizes * np.array(template.text_zero)).sum(1)
    return Plan(sizes.sum(1) + template.count, boundaries, tokens, truncated, labels)


def make_examples(
    plan: Callable[[], Plan],
    store: TokenStore,
    tokenizer: Any,
    max_length: int,
    *,
    settings: tuple[Any, ...],
    cache: bool,
) -> tuple[Tokenized, Int[np.ndarray, " rows"] | None]:
    """The planned examples and their labels, from the cache folder if they are there and sound.

    Args:
      plan: called where they have to be made.
      settings: everything besides the store and `max_length` that decides them.
      cache: keep those of a large corpus in the cache folder. Where it cannot be written, a warning says so and they
        stay in memory.
    """
    if not len(store):
        raise ValueError("the corpus holds no text to make examples of")
    pad_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    key = fingerprint([FORMAT, store.fingerprint, repr((max_length, pad_id, *settings))])
    folder = cache_folder() / "examples" / key
    facts = {"key": key, "max_length": max_length, "pad_id": pad_id}
    cache = cache and len(store.tokens) > LARGE
    if cache and (manifest := read_manifest(folder, facts)) is not None:
        return load_tokenized(folder, manifest), _load_labels(folder)

    made = plan()
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(made.lengths, dtype=np.int64)])
    arrays = {"offsets": offsets, "boundaries": made.boundaries.astype(np.int32)}
    facts["truncated"] = made.truncated
    if cache:

        def fill(fresh: Path) -> dict[str, Any]:
            tokens = np.lib.format.open_memmap(fresh / "tokens.npy", "w+", np.int32, (int(offsets[-1]),))
            _write(made, offsets, tokens)
            tokens.flush()
            for name, array in arrays.items():
                np.save(fresh / f"{name}.npy", array)
            if made.labels is not None:
                np.save(fresh / "labels.npy", made.labels)
            return facts

        try:
            publish(folder, fill)
            return load_tokenized(folder, facts), _load_labels(folder)
        except OSError as error:
            warnings.warn(
                f"examples are not cached: {folder.parent} cannot be written ({first_line(error)})", stacklevel=3
            )
    tokens = np.empty(offsets[-1], np.int32)
    _write(made, offsets, tokens)
    rest = {name: facts[name] for name in ("max_length", "truncated", "pad_id")}
    return Tokenized(tokens, **arrays, **rest, fingerprint=key), made.labels


def _write(plan: Plan, offsets: Int[np.ndarray, " rows+1"], out: Int[np.ndarray, " tokens"]) -> None:
    first, rows = 0, len(offsets) - 1
    while first < rows:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + CHUNK, "right")) - 1)
        out[offsets[first] : offsets[last]] = plan.tokens(first, last)
        first = last


def _load_labels(folder: Path) -> Int[np.ndarray, " rows"] | None:
    path = folder / "labels.npy"
    return np.load(path, allow_pickle=False) if path.is_file() else None
