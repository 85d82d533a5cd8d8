"""Some words of a text replaced by what a masked language model guesses in their place.

A word is hidden behind one mask, whatever its pieces, and a token that begins a word is drawn from the model's
distribution, never the word that was there. The words hidden together are drawn independently. What is chosen and drawn
is a function of (seed, copy, row): neither the rows beside it nor the width of a batch change it.
"""

import copy as copying
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxptft import data, models
from jaxptft.recipes.model_source import open_model

_MULTIPLE = 32  # of tokens, that batches are padded to: each is one more program to compile


class Hole(NamedTuple):
    """A hidden word: where it stands in which of a row's texts, and its token (-1 where it was several)."""

    text: int
    start: int
    end: int
    token: int


class Masked(NamedTuple):
    """A row's tokens with some words hidden, and what is to be filled in at which positions."""

    ids: list[int]
    types: list[int]
    positions: list[int]
    holes: list[Hole]


class WordGuesser:
    """A model with a head that predicts masked words, and how boldly it is asked.

    Raises ValueError for a model or a tokenizer without masks, and for one whose tokens are no words.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        rate: float,
        top_k: int,
        temperature: float,
        max_length: int | None = None,
        batch_size: int = 32,
        seed: int = 0,
        family: str | None = None,
        allow_bin: bool = False,
    ):
        folder, checkpoint = open_model(model, family=family, allow_bin=allow_bin)
        if "mlm" not in checkpoint.params:
            raise ValueError(
                f"{model} has no head that predicts masked words; pre-train it first (jaxptft pretrain --objective mlm)"
            )
        tokenizer = data.load_tokenizer(folder)
        table = data.token_table(tokenizer, checkpoint.config.vocab_size)
        assert table.mask_id is not None
        longest = min(checkpoint.config.max_length, tokenizer.model_max_length)
        self._longest = min(max_length or longest, longest)
        self._mask_id, self._starts_word = table.mask_id, table.starts_word
        self._pad_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.backend_of = copying.deepcopy(tokenizer.backend_tokenizer)
        self.backend_of.enable_truncation(self._longest, direction=tokenizer.truncation_side)
        usable = np.flatnonzero(table.starts_word & ~table.special).tolist()
        spelt = {token: self.backend_of.decode([token]).strip() for token in usable}
        self._spelt = {token: word for token, word in spelt.items() if word.isalnum()}
        if len(self._spelt) < 2:
            raise ValueError(f"the tokenizer of {model} has no tokens that are whole words; choose another model")
        self._rate, self._batch_size, self._seed, self._source = rate, batch_size, seed, str(model)
        self._params = checkpoint.params
        self._sample = _sampler(
            models.build(checkpoint.config, "masked_lm"),
            allowed=np.isin(np.arange(checkpoint.config.vocab_size), list(self._spelt)),
            top_k=min(top_k, len(self._spelt) - 1),
            temperature=temperature,
            seed=seed,
        )

    def __call__(
        self, rows: Sequence[int], texts: Sequence[tuple[str, ...]], copy: int
    ) -> list[tuple[tuple[str, ...], int]]:
        """For each row (its number, and its text or pair): the texts with words replaced, and how many were.

        Raises FloatingPointError where the model gives NaN.
        """
        made: list[tuple[tuple[str, ...], int]] = []
        for first in range(0, len(rows), self._batch_size):
            part = slice(first, first + self._batch_size)
            masked = [self._hide(row, text, copy) for row, text in zip(rows[part], texts[part], strict=True)]
            for text, row, tokens in zip(texts[part], masked, self._guess(rows[part], masked, copy), strict=True):
                words = [self._spelt[token] for token in tokens[: len(row.holes)]]
                made.append((_fill(text, row.holes, words), len(words)))
        return made

    def _hide(self, row: int, texts: tuple[str, ...], copy: int) -> Masked:
        encoding = self.backend_of.encode(*texts)
        rng = np.random.default_rng((self._seed, copy, row))
        words = _words(encoding, texts, self._starts_word)
        chosen: dict[int, tuple[int, Hole]] = {}  # first token -> the token after the last
        if words:
            count = min(len(words), max(1, int(self._rate * len(words) + rng.random())))
            for place in sorted(rng.choice(len(words), count, replace=False).tolist()):
                begin, end, hole = words[place]
                chosen[begin] = (end, hole)
        masked, at = Masked([], [], [], []), 0
        while at < len(encoding.ids):
            end, hole = chosen.get(at, (at + 1, None))
            if hole is not None:
                masked.positions.append(len(masked.ids))
                masked.holes.append(hole)
            masked.ids.append(encoding.ids[at] if hole is None else self._mask_id)
            masked.types.append(encoding.type_ids[at])
            at = end
        return masked

    def _guess(self, rows: Sequence[int], masked: list[Masked], copy: int) -> list[list[int]]:
        """A token for each place, of each row; as many places as the width allows."""
        longest = max(len(row.ids) for row in masked)
        width = min(-(-longest // _MULTIPLE) * _MULTIPLE, self._longest)
        capacity = min(width, int(np.ceil(self._rate * width)) + 1)
        shape = (self._batch_size, width)
        batch = {name: np.zeros(shape, np.int32) for name in ("attention_mask", "token_type_ids")}
        batch["input_ids"] = np.full(shape, self._pad_id, np.int32)
        batch["positions"] = np.zeros((self._batch_size, capacity), np.int32)
        forbidden = np.full((self._batch_size, capacity), -1, np.int32)
        for place, row in enumerate(masked):
            batch["input_ids"][place, : len(row.ids)] = row.ids
            batch["token_type_ids"][place, : len(row.ids)] = row.types
            batch["attention_mask"][place, : len(row.ids)] = 1
            batch["positions"][place, : len(row.positions)] = row.positions
            forbidden[place, : len(row.holes)] = [hole.token for hole in row.holes]
        # A row of padding alone attends to nothing; its first token spares the softmax that.
        batch["attention_mask"][len(masked) :, 0] = 1
        numbers = np.zeros(self._batch_size, np.uint32)
        numbers[: len(rows)] = rows
        tokens, sound = jax.device_get(self._sample(self._params, batch, numbers, np.uint32(copy), forbidden))
        if not sound[: len(masked)].all():
            raise FloatingPointError(f"{self._source} gives NaN or infinity; its weights are broken")
        return tokens[: len(masked)].tolist()


def _sampler(model: models.Model, *, allowed: np.ndarray, top_k: int, temperature: float, seed: int) -> Any:
    """A compiled (params, batch, rows, copy, forbidden) -> (tokens at the batch's positions, which rows are finite)."""

    def sample(params, batch, rows, copy, forbidden):
        logits = model.apply(params, batch)
        sound = jnp.isfinite(logits).all(axis=(1, 2))
        barred = ~jnp.asarray(allowed) | (jnp.arange(len(allowed)) == forbidden[..., None])
        values, tokens = jax.lax.top_k(jnp.where(barred, -jnp.inf, logits / temperature), top_k)

        def draw(row, values):  # keyed by the row and the place, whatever stands beside them
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), copy), row)
            keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(values.shape[0]))
            return jax.vmap(jax.random.categorical)(keys, values)

        picks = jax.vmap(draw)(rows, values)
        return jnp.take_along_axis(tokens, picks[..., None], axis=-1)[..., 0], sound

    return jax.jit(sample)


def _words(encoding: Any, texts: tuple[str, ...], starts_word: np.ndarray) -> list[tuple[int, int, Hole]]:
    """The words that may be hidden: first token, token after the last, and the hole that it would leave."""
    found: list[tuple[int, int, Hole]] = []
    owners = list(zip(encoding.sequence_ids, encoding.word_ids, strict=True))
    begin = 0
    while begin < len(owners):
        end = begin + 1
        text, word = owners[begin]
        while end < len(owners) and text is not None and word is not None and owners[end] == owners[begin]:
            end += 1
        if text is not None and word is not None:
            start, stop = encoding.offsets[begin][0], encoding.offsets[end - 1][1]
            piece = texts[text][start:stop]
            start, stop = start + len(piece) - len(piece.lstrip()), stop - len(piece) + len(piece.rstrip())
            # Where spaces are marked, a piece that none is before goes on with a word, unless the text begins there.
            begins = starts_word[encoding.ids[begin]] or not texts[text][:start].strip()
            if begins and texts[text][start:stop].isalnum():
                token = encoding.ids[begin] if end == begin + 1 else -1
                found.append((begin, end, Hole(text, start, stop, token)))
        begin = end
    return found


def _fill(texts: tuple[str, ...], holes: list[Hole], words: list[str]) -> tuple[str, ...]:
    """The texts with words in place of the holes, in the case of what was there."""
    filled = list(texts)
    for hole, word in sorted(zip(holes, words, strict=True), key=lambda pair: -pair[0].start):
        old = texts[hole.text][hole.start : hole.end]
        if len(old) > 1 and old.isupper():
            word = word.upper()
        elif old[0].isupper():
            word = word[0].upper() + word[1:]
        filled[hole.text] = filled[hole.text][: hole.start] + word + filled[hole.text][hole.end :]
    return tuple(filled)
