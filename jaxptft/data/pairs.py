"""A token store -> pairs of texts for next-sentence and sentence-order prediction.

Sentences of one document are gathered until they fill a row, and cut at a random place in two texts. Under "nsp" the
second is replaced, half of the time, by text of another document, and the sentences it took the place of come next;
under "sop" the two are swapped, half of the time. Labels are as Hugging Face has them: 0 is next or in order, 1 random
or swapped.
"""

import random
import warnings
from bisect import bisect_left
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from jaxptft.data.examples import Plan, check_room, make_examples, plan_ranges, read_template
from jaxptft.data.segments import document_blocks
from jaxptft.data.token_store import TokenStore
from jaxptft.data.tokenized import Tokenized


def sentence_pairs(
    store: TokenStore,
    tokenizer: Any,
    max_length: int,
    kind: Literal["nsp", "sop"] = "nsp",
    *,
    seed: int = 0,
    short_share: float = 0.1,
    cache: bool = True,
) -> tuple[Tokenized, Int[np.ndarray, " rows"]]:
    """Pairs as [CLS] A [SEP] B [SEP], or what the tokenizer has for it, and their labels, int32.

    The longer text of a pair that does not fit is cut, a token at a time, at its front or its back at random. A single
    sentence that fills a row, or is left at a document's end, has no next: under "nsp" it always gets a random one, so
    that more than half of the pairs of short documents are random; under "sop" the first takes another sentence along,
    and the second is left out.

    Args:
      max_length: tokens in a row at most, special ones included.
      short_share: documents whose pairs aim at fewer tokens, uniformly from 2 on, so that short rows are known too.
      cache: keep the pairs of a large corpus in the cache folder, mapped into memory.

    Raises:
      ValueError: no document has two sentences, there is no other document to draw from, the tokenizer sets no special
        token before a pair or between its texts, or `max_length` leaves no room for a token of each.

    Source: Devlin et al. 2019 (arXiv:1810.04805), A.2, and `create_instances_from_document` of its code; Lan et al.
    2020, ALBERT (arXiv:1909.11942), 3.1.
    """
    if kind not in ("nsp", "sop"):
        raise ValueError(f"kind is {kind!r}, expected 'nsp' or 'sop'")
    if not 0 <= short_share <= 1:
        raise ValueError(f"short_share is {short_share}, expected a number from 0 to 1")
    template = read_template(tokenizer, 2)
    if not template.pieces[0] or not template.pieces[1]:
        raise ValueError(
            "the tokenizer sets no special token before a pair or none between its texts; "
            "choose one that does, as BERT's [CLS] and [SEP]"
        )
    check_room(tokenizer, max_length, special=template.count, texts=2)
    _check_documents(store, kind)
    room = max_length - template.count

    def plan() -> Plan:
        draw = np.random.default_rng(seed)
        ranges, labels = _gather(store, kind, room, short_share, seed, draw)
        ranges, truncated = _truncate(ranges, room, draw)
        return plan_ranges(store, ranges, template, truncated=truncated, labels=labels)

    settings = (kind, seed, short_share, template)
    tokenized, labels = make_examples(plan, store, tokenizer, max_length, settings=settings, cache=cache)
    assert labels is not None
    return tokenized, labels


def _check_documents(store: TokenStore, kind: str) -> None:
    if not len(store):
        return  # an error of its own
    alone = int(np.count_nonzero(np.diff(store.documents) < 2))
    if len(store) == 1 and kind == "nsp":
        raise ValueError(
            "the corpus is 1 document, and a random next sentence comes from another; say where documents end, "
            "or choose kind='sop'"
        )
    if alone == len(store):
        raise ValueError(
            f"no document of {len(store)} has more than one sentence, and a pair needs two that follow each other; "
            "give documents of several sentences, or an objective without pairs"
        )
    if alone and kind == "sop":
        warnings.warn(
            f"{alone} of {len(store)} documents have one sentence: no pair in order, so they are left out", stacklevel=3
        )


def _gather(
    store: TokenStore, kind: str, room: int, short_share: float, seed: int, draw: np.random.Generator
) -> tuple[Int[np.ndarray, "rows 2 2"], Int[np.ndarray, " rows"]]:
    """The token ranges of the two texts of every pair, before they are cut to fit, and its label."""
    parts: list[np.ndarray] = []
    uniform = random.Random(seed).random
    for first, last in document_blocks(store):
        rows: list[tuple[int, int, int, int, int, int]] = []  # start, middle, end, label, document, tokens wanted
        documents = store.documents[first : last + 1].tolist()
        sentences = store.sentences[documents[0] : documents[-1] + 1].tolist()
        for document in range(first, last):
            at, end = (documents[document - first + place] - documents[0] for place in (0, 1))
            target = 2 + int(uniform() * (room - 1)) if uniform() < short_share else room
            while at < end:
                stop = min(end, bisect_left(sentences, sentences[at] + target, at + 1, end + 1))
                if kind == "sop":
                    stop = min(end, max(stop, at + 2))
                    if stop - at < 2:
                        break
                middle = at + 1 + int(uniform() * (stop - at - 1))
                label = int(stop - at == 1 or uniform() < 0.5)
                start, cut = sentences[at], sentences[middle]
                rows.append((start, cut, sentences[stop], label, document, target - (cut - start)))
                at = middle if label and kind == "nsp" else stop
        parts.append(np.array(rows, np.int64).reshape(-1, 6))
    start, middle, stop, label, document, wanted = np.concatenate(parts).T
    ranges = np.stack([start, middle, middle, stop], 1).reshape(-1, 2, 2)
    turned = label == 1
    if kind == "sop":
        ranges[turned] = ranges[turned, ::-1]
    else:
        ranges[turned, 1] = _other_text(store, document[turned], wanted[turned], draw)
    return ranges, label.astype(np.int32)


def _other_text(
    store: TokenStore,
    document: Int[np.ndarray, " rows"],
    wanted: Int[np.ndarray, " rows"],
    draw: np.random.Generator,
) -> Int[np.ndarray, "rows 2"]:
    """From a random sentence of any other document on, until it is as long as wanted or its document ends."""
    other = draw.integers(len(store) - 1, size=len(document))
    other += other >= document
    first, last = store.documents[other], store.documents[other + 1]
    begin = draw.integers(first, last)
    start = store.sentences[begin]
    end = np.searchsorted(store.sentences, start + np.maximum(wanted, 1))
    return np.stack([start, store.sentences[np.minimum(end, last)]], 1)


def _truncate(
    ranges: Int[np.ndarray, "rows 2 2"], room: int, draw: np.random.Generator
) -> tuple[Int[np.ndarray, "rows 2 2"], int]:
    """Both texts of every pair cut to `room` tokens together, always from the longer, and how many pairs were."""
    sizes = ranges[:, :, 1] - ranges[:, :, 0]
    excess = np.maximum(sizes.sum(1) - room, 0)
    longer = sizes[:, 0] - sizes[:, 1]
    first = np.minimum(excess, np.abs(longer))
    rest = excess - first  # taken in turns once they are equal, the second text's first
    cut = np.stack([first * (longer > 0) + rest // 2, first * (longer < 0) + (rest + 1) // 2], 1)
    front = draw.binomial(cut, 0.5)
    return ranges + np.stack([front, front - cut], 2), int(np.count_nonzero(excess))
