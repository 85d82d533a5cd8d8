"""Random deletion and swap of words, on the token ids of a training batch.

Wei and Zou 2019, arXiv:1901.11196 (EDA), section 2: each word goes with a probability, and a share of the words change
places in pairs. Words are runs of word pieces; special tokens stay where they are, words never cross them, and every
text keeps one word at least. What happens to a row is a function of (seed, step, example id): the rows beside it, the
width of the batch and padding rows change nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Int

from jaxptft.data.cache import fingerprint
from jaxptft.data.tokenized import Tokenized

_KNOWN = {"input_ids", "attention_mask", "token_type_ids", "ids", "valid", "label"}


@dataclass(frozen=True, kw_only=True)
class WordEdits:
    """How much is changed. Raises ValueError, naming the field, on a share outside [0, 1]."""

    deletion: float = 0.1  # probability that a word goes
    swap: float = 0.1  # swaps in a text, as a share of its words
    rows: float = 1.0  # share of the rows that are changed; the others stay as they are

    def __post_init__(self) -> None:
        for name in ("deletion", "swap", "rows"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share between 0 and 1")


class _Batches(Protocol):
    tokenized: Tokenized
    steps_per_epoch: int

    @property
    def fingerprint(self) -> str: ...
    def batch_at(self, step: int) -> dict[str, Any]: ...


class AugmentedBatches:
    """Training batches whose words are deleted and swapped, differently at every step; else as the batches given.

    Args:
      special: token ids that stay where they are (see `token_table`).
      starts_word: token ids that begin a word; the others go on with the word before them.
    """

    def __init__(
        self,
        batches: _Batches,
        edits: WordEdits,
        *,
        special: Bool[np.ndarray, " vocab"],
        starts_word: Bool[np.ndarray, " vocab"],
        seed: int = 0,
    ):
        self._batches, self.edits, self.seed = batches, edits, seed
        self._special, self._starts_word = special, starts_word
        self.tokenized, self.steps_per_epoch = batches.tokenized, batches.steps_per_epoch

    @property
    def content(self) -> str:
        """SHA-256 of the rows' tokens alone."""
        return self.tokenized.fingerprint

    @property
    def fingerprint(self) -> str:
        tables = (np.packbits(self._special).tobytes(), np.packbits(self._starts_word).tobytes())
        return fingerprint(["augmented 1", self._batches.fingerprint, repr((self.edits, self.seed)), *tables])

    def batch_at(self, step: int) -> dict[str, Any]:
        """The batch of a step, changed."""
        return edit_words(
            self._batches.batch_at(step),
            self.edits,
            special=self._special,
            starts_word=self._starts_word,
            pad_id=self.tokenized.pad_id,
            seed=self.seed,
            step=step,
        )


def edit_words(
    batch: Mapping[str, Any],
    edits: WordEdits,
    *,
    special: Bool[np.ndarray, " vocab"],
    starts_word: Bool[np.ndarray, " vocab"],
    pad_id: int,
    seed: int,
    step: int,
) -> dict[str, Any]:
    """A copy of the batch with words deleted and swapped; a row that becomes shorter is padded at its end.

    Raises:
      ValueError: the batch holds something that says where tokens are (tags, spans), which moving words would break,
        or has more than one text a row of `input_ids`.
    """
    ids = np.asarray(batch["input_ids"])
    if odd := sorted(set(batch) - _KNOWN):
        raise ValueError(f"words cannot be moved in a batch with {odd[0]}: it may say where they are")
    label = np.asarray(batch.get("label", 0))
    if ids.ndim != 2 or (label.ndim > 1 and label.dtype.kind != "f"):
        raise ValueError(
            f"words can be moved in one text with one label a row; the batch has input_ids {ids.shape} and label "
            f"{label.dtype} {label.shape}"
        )
    mask, types = np.asarray(batch["attention_mask"]), np.asarray(batch["token_type_ids"])
    new_ids, new_mask, new_types = np.full_like(ids, pad_id), np.zeros_like(mask), np.zeros_like(types)
    for row, example in enumerate(np.asarray(batch["ids"]).tolist()):
        length = int(mask[row].sum())
        order = np.arange(length)
        if example >= 0:
            rng = np.random.default_rng((seed, step, example))
            if rng.random() < edits.rows:
                order = _edited(ids[row, :length], edits, special, starts_word, rng)
        new_ids[row, : len(order)] = ids[row, order]
        new_types[row, : len(order)] = types[row, order]
        new_mask[row, : len(order)] = mask[row, order]
    return {**batch, "input_ids": new_ids, "attention_mask": new_mask, "token_type_ids": new_types}


def _edited(
    tokens: Int[np.ndarray, " length"],
    edits: WordEdits,
    special: Bool[np.ndarray, " vocab"],
    starts_word: Bool[np.ndarray, " vocab"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " kept"]:
    """The places of the tokens that stay, in their new order."""
    ordinary = ~special[tokens]
    # A text is a run of ordinary tokens; its first token begins a word, whatever the vocabulary says.
    first = ordinary & ~np.concatenate([[False], ordinary[:-1]])
    starts = np.flatnonzero(~ordinary | first | starts_word[tokens])
    pieces = np.split(np.arange(len(tokens)), starts[1:])
    kept: list[np.ndarray] = []
    text: list[np.ndarray] = []
    for piece in [*pieces, None]:
        if piece is None or not ordinary[piece[0]]:
            kept += _edited_words(text, edits, rng)
            text = []
            if piece is not None:
                kept.append(piece)
        else:
            if first[piece[0]]:
                text = []
            text.append(piece)
    return np.concatenate(kept) if kept else np.arange(0)


def _edited_words(words: list[np.ndarray], edits: WordEdits, rng: np.random.Generator) -> list[np.ndarray]:
    if len(words) < 2:
        return words
    words = list(words)
    # Rounded up or down at random, so that short texts are swapped as often as long ones, for their length.
    for _ in range(int(edits.swap * len(words) + rng.random())):
        one, other = rng.choice(len(words), 2, replace=False)
        words[one], words[other] = words[other], words[one]
    stay = rng.random(len(words)) >= edits.deletion
    if not stay.any():
        stay[rng.integers(len(words))] = True
    return [word for word, stays in zip(words, stay, strict=True) if stays]
