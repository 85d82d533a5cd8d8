"""Sentences of words -> rows of tokens, with a label a word and the way back from tokens to words.

Each word is tokenized by itself, as after a space, and labelled at its first token. A sentence that is longer than a
row becomes several: windows of whole words, each repeating about a quarter of the one before, so that every word has
something on both sides. A word is labelled, and later predicted, in the one window where it is farther from the edge.
No word is lost: of a word that is longer than a row the first tokens are kept, and one that the tokenizer makes no
token of is predicted O.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxptft.data.batches import Batches
from jaxptft.data.cache import fingerprint
from jaxptft.data.examples import check_room, read_template
from jaxptft.data.tag_schemes import join_tag, split_tag
from jaxptft.data.taggings import Taggings
from jaxptft.data.token_table import _kinds
from jaxptft.data.tokenized import Tokenized, backend_copy, tokenizer_state

UNCOUNTED = -100  # the label of tokens that no loss counts: special ones, those that go on with a word, padding
CHUNK = 4096  # sentences a call of the tokenizer


@dataclass(frozen=True, eq=False)
class TaggedTokens:
    """Rows of tokens, and where each word of each sentence is among them.

    `tokenized.truncated` counts the sentences that became several rows.
    """

    tokenized: Tokenized
    labels: Int[np.ndarray, " tokens"]  # int32, UNCOUNTED where there is none
    sentences: Int[np.ndarray, " sentences+1"]  # sentence i has words sentences[i] to sentences[i + 1] - 1
    windows: Int[np.ndarray, " words"]  # the row that decides a word
    positions: Int[np.ndarray, " words"]  # and the place of its first token there; -1 where it has no token

    def by_word(self, values: np.ndarray, missing: Any) -> list[np.ndarray]:
        """For each sentence, what `values` [rows, length] has at its words."""
        found = values[self.windows, np.maximum(self.positions, 0)]
        found = np.where(self.positions < 0, np.asarray(missing, found.dtype), found)
        return np.split(found, self.sentences[1:-1])


def tag_tokens(
    taggings: Taggings,
    tokenizer: Any,
    max_length: int,
    *,
    names: Sequence[str] | None = None,
    label_all_pieces: bool = False,
) -> TaggedTokens:
    """Tokenize sentences and place their labels.

    Args:
      max_length: tokens in a row at most, special ones included.
      names: the tags in the order of the model's outputs; default: the taggings' own.
      label_all_pieces: label the other tokens of a word too, with its tag, where B- and S- become I-.

    Raises:
      ValueError: `max_length` leaves no room for words, or is more than the tokenizer says its model takes.
    """
    template = read_template(tokenizer, 1)
    check_room(tokenizer, max_length, special=template.count, texts=1)
    room, lead = max_length - template.count, len(template.pieces[0])
    before, after = (np.array(piece, np.int32) for piece in template.pieces)
    own = taggings.names if names is None else tuple(names)
    index = {name: number for number, name in enumerate(own)}
    inner = np.array([index.get(_inner(name), number) for name, number in index.items()], np.int32)

    tokens: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    word_windows: list[np.ndarray] = []
    word_positions: list[np.ndarray] = []
    split = 0
    for number, (ids, owners) in enumerate(_encode(taggings.words, tokenizer)):
        words = len(taggings.words[number])
        starts = np.searchsorted(owners, np.arange(words + 1))
        tags = None
        if taggings.tags is not None:
            tags = np.fromiter((index[tag] for tag in taggings.tags[number]), np.int32, words)
        found = _windows(starts, room)
        split += len(found) > 1
        for first, last, begin, end in found:
            piece = slice(starts[first], min(starts[last], starts[first] + room))
            places = starts[begin:end] - starts[first] + lead
            has = starts[begin + 1 : end + 1] > starts[begin:end]
            word_windows.append(np.full(end - begin, len(tokens), np.int32))
            word_positions.append(np.where(has, places, -1).astype(np.int32))
            row = np.concatenate([before, ids[piece], after])
            tokens.append(row)
            label = np.full(len(row), UNCOUNTED, np.int32)
            if tags is not None:
                if label_all_pieces:
                    own_tokens = slice(max(piece.start, starts[begin]), min(piece.stop, starts[end]))
                    shift = lead - starts[first]
                    label[own_tokens.start + shift : own_tokens.stop + shift] = inner[tags[owners[own_tokens]]]
                label[places[has]] = tags[begin:end][has]
            labels.append(label)
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    pad_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    flat, offsets = np.concatenate(tokens), np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    marks = np.concatenate(labels)
    sizes = np.fromiter(map(len, taggings.words), np.int64, len(taggings))
    tokenized = Tokenized(
        tokens=flat,
        offsets=offsets,
        boundaries=(template.zeros + (lengths - template.count) * template.text_zero[0]).astype(np.int32),
        max_length=max_length,
        truncated=split,
        pad_id=pad_id,
        fingerprint=fingerprint(
            ["tagged tokens 2", repr((max_length, pad_id)), flat.tobytes(), offsets.tobytes(), marks.tobytes()]
        ),
    )
    return TaggedTokens(
        tokenized,
        marks,
        np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]),
        np.concatenate(word_windows),
        np.concatenate(word_positions),
    )


class TaggedBatches(Batches):
    """Batches that hold `labels` int32 [batch, length] too: UNCOUNTED where no word is labelled. See `Batches`."""

    def __init__(self, tagged: TaggedTokens, **options: Any):
        super().__init__(tagged.tokenized, **options)
        self._token_labels = tagged.labels

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        batch = super().batch_at(step)
        start = self.tokenized.offsets[np.maximum(batch["ids"], 0)][:, None]
        found = self._token_labels.take(start + np.arange(batch["input_ids"].shape[1]), mode="clip")
        batch["labels"] = np.where(batch["attention_mask"] > 0, found, np.int32(UNCOUNTED))
        return batch


def _inner(name: str) -> str:
    """The tag of the further tokens of a word."""
    try:
        prefix, kind = split_tag(name)
    except ValueError:
        return name
    return join_tag("I", kind) if prefix in "BS" else name


def _encode(sentences: list[list[str]], tokenizer: Any) -> Any:
    """The ids of each sentence, and which word each of them is of."""
    backend = backend_copy(tokenizer)
    # Byte-level tokenizers know a word by the space before it, which they add to the first word of a text at most.
    spaced = "ByteLevel" in _kinds(tokenizer_state(tokenizer).get("pre_tokenizer"))
    for start in range(0, len(sentences), CHUNK):
        chunk: list[Any] = sentences[start : start + CHUNK]
        if spaced:
            chunk = [[f" {word}" for word in words] for words in chunk]
        for encoding in backend.encode_batch(chunk, is_pretokenized=True, add_special_tokens=False):
            yield np.array(encoding.ids, np.int32), np.array(encoding.word_ids, np.int64)


def _windows(starts: Int[np.ndarray, " words+1"], room: int) -> list[tuple[int, int, int, int]]:
    """Windows of words, as (first, last + 1) of those it holds and (first, last + 1) of those that it decides."""
    words = len(starts) - 1
    if starts[-1] <= room:
        return [(0, words, 0, words)]

    def reach(first: int) -> int:
        return max(first + 1, int(np.searchsorted(starts, starts[first] + room, "right")) - 1)

    held: list[tuple[int, int]] = []
    first = last = 0
    while last < words:
        end = reach(first)
        if end <= last:  # the next word is so long that nothing fits beside it
            first, end = last, reach(last)
        held.append((first, end))
        last = end
        first = min(end, max(first + 1, int(np.searchsorted(starts, starts[end] - room // 4))))
    inner = [(before[1] + after[0] + 1) // 2 for before, after in pairwise(held)]
    edges = [0, *inner, words]
    return [(*window, *edge) for window, edge in zip(held, pairwise(edges), strict=True)]
