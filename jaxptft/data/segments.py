"""A token store -> rows for masked and causal language modelling: every token of the corpus in exactly one row."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from jaxptft.data.examples import Plan, check_room, make_examples, plan_ranges, read_template, spans
from jaxptft.data.token_store import TokenStore
from jaxptft.data.tokenized import Tokenized

BLOCK = 1 << 22  # tokens whose sentences are looked at together


def full_segments(store: TokenStore, tokenizer: Any, max_length: int, *, cache: bool = True) -> Tokenized:
    """Rows of whole sentences of one document, as many as fit, as [CLS] ... [SEP] or what the tokenizer has for it.

    A sentence longer than a row is cut into full rows, and the rest of it goes on with the sentences that follow. Rows
    at the end of a document are shorter: see `PackedBatches`.

    Args:
      max_length: tokens in a row at most, special ones included.
      cache: keep the rows of a large corpus in the cache folder, mapped into memory.

    Raises:
      ValueError: no text, `max_length` leaves no room for any or is more than the tokenizer says its model takes.

    Source: Liu et al. 2019, RoBERTa (arXiv:1907.11692), section 4.2, DOC-SENTENCES.
    """
    template = read_template(tokenizer, 1)
    check_room(tokenizer, max_length, special=template.count, texts=1)
    room = max_length - template.count

    def plan() -> Plan:
        rows = [_fill_rows(store, first, last, room) for first, last in document_blocks(store)]
        return plan_ranges(store, np.concatenate(rows)[:, None, :], template)

    return make_examples(plan, store, tokenizer, max_length, settings=("full", template), cache=cache)[0]


def line_segments(
    store: TokenStore,
    tokenizer: Any,
    max_length: int,
    *,
    unit: Literal["document", "sentence"] = "document",
    cache: bool = True,
) -> Tokenized:
    """Rows of one document or one sentence each, for corpora of short texts; a longer one is cut into full rows.

    Arguments and errors as `full_segments`; ValueError on another unit.
    """
    if unit not in ("document", "sentence"):
        raise ValueError(f"unit is {unit!r}, expected 'document' or 'sentence'")
    template = read_template(tokenizer, 1)
    check_room(tokenizer, max_length, special=template.count, texts=1)

    def plan() -> Plan:
        bounds = store.sentences if unit == "sentence" else store.sentences[store.documents]
        bounds = _cut(bounds, max_length - template.count)
        return plan_ranges(store, np.stack([bounds[:-1], bounds[1:]], 1)[:, None, :], template)

    return make_examples(plan, store, tokenizer, max_length, settings=("lines", unit, template), cache=cache)[0]


def causal_segments(
    store: TokenStore, tokenizer: Any, max_length: int, *, cross_documents: bool = True, cache: bool = True
) -> Tokenized:
    """Rows cut from documents that are each ended by the tokenizer's end-of-text token, without other special tokens.

    Args:
      cross_documents: cut all documents end to end, as GPT-2 was trained; else each begins a row of its own.

    Raises:
      ValueError: no text, a tokenizer with neither an eos nor a bos token, `max_length` below 2 or more than the
        tokenizer says its model takes.

    Source: Radford et al. 2019, GPT-2.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    if end is None:
        raise ValueError(
            "the tokenizer has no eos_token to end a document with, nor a bos_token; give it one, as GPT-2's "
            "<|endoftext|>"
        )
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}, expected at least 2: a token, and the next to predict")
    check_room(tokenizer, max_length, special=0, texts=1)

    def plan() -> Plan:
        documents = store.sentences[store.documents]
        bounds = documents + np.arange(len(documents))  # every document before has its end too
        ends = bounds[1:] - 1
        offsets = _cut(bounds[[0, -1]] if cross_documents else bounds, max_length)

        def tokens(first: int, last: int) -> Int[np.ndarray, " tokens"]:
            start, stop = offsets[first], offsets[last]
            before, until = np.searchsorted(ends, (start, stop))
            source = store.tokens[start - before : stop - until]
            return np.insert(source, documents[before + 1 : until + 1] - (start - before), end)

        lengths = np.diff(offsets)
        return Plan(lengths, lengths, tokens)

    settings = ("causal", end, cross_documents)
    return make_examples(plan, store, tokenizer, max_length, settings=settings, cache=cache)[0]


def document_blocks(store: TokenStore) -> Iterator[tuple[int, int]]:
    """Ranges of documents, each of about `BLOCK` tokens, or one document."""
    bounds = store.sentences[store.documents]
    first = 0
    while first < len(store):
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + BLOCK, "right")) - 1)
        yield first, last
        first = last


def _cut(bounds: Int[np.ndarray, " texts+1"], room: int) -> Int[np.ndarray, " pieces+1"]:
    """Where texts and their pieces begin, none longer than `room`; the last entry is where the last ends."""
    pieces = -(-np.diff(bounds) // room)
    within = spans(np.zeros_like(pieces), pieces)
    return np.append(np.repeat(bounds[:-1], pieces) + within * room, bounds[-1])


def _fill_rows(store: TokenStore, first: int, last: int, room: int) -> Int[np.ndarray, "rows 2"]:
    """The token ranges of the rows of documents first to last - 1."""
    documents = store.documents[first : last + 1]
    ends = store.sentences[documents[1:]]
    bounds = _cut(store.sentences[documents[0] : documents[-1] + 1], room)
    starts = bounds[:-1]
    # A row that began at each of the pieces would end here; which of them do begin one follows from the first.
    most = np.minimum(starts + room, ends[np.searchsorted(ends, starts, "right")])
    following = (np.searchsorted(bounds, most, "right") - 1).tolist()
    chosen = [0]
    while following[chosen[-1]] < len(following):
        chosen.append(following[chosen[-1]])
    return np.stack([bounds[chosen], bounds[[*chosen[1:], -1]]], 1)
