"""A question and its context -> rows that fit the model: [CLS] question [SEP] a window of the context [SEP].

Neighbouring windows share `stride` tokens of the context, so that an answer which one of them cuts in two is whole in
the other. Each context is tokenized once, however many questions and windows it has; a window knows the characters that
each of its tokens stands for, without the white space around them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxptft.data.batches import Batches
from jaxptft.data.cache import fingerprint
from jaxptft.data.examples import Template, check_room, plan_ranges, read_template
from jaxptft.data.squad import Questions
from jaxptft.data.token_store import TokenStore
from jaxptft.data.tokenized import CHUNK, Tokenized, backend_copy, tokenizer_fingerprint

FORMAT = "answer windows 1"


@dataclass(frozen=True, eq=False)
class Windows:
    """Rows of `tokenized` with the question each belongs to, its context's place in it, and its answer's.

    `start` and `end` (included) are places in the row; both are 0, which is [CLS] where there is one, in windows that
    do not hold the whole of the first answer. `tokenized.truncated` counts the questions that were cut.
    """

    tokenized: Tokenized
    example: Int[np.ndarray, " windows"]  # int32
    context_start: Int[np.ndarray, " windows"]  # int32; place of the context's first token in the row
    context_length: Int[np.ndarray, " windows"]  # int32
    start: Int[np.ndarray, " windows"] | None  # int32
    end: Int[np.ndarray, " windows"] | None
    spans: Int[np.ndarray, "tokens 2"]  # int32; characters (first, past the last) of every token of every context
    span_at: Int[np.ndarray, " windows"]  # int64; where in `spans` the window's begin

    def __len__(self) -> int:
        return len(self.example)

    def characters(
        self,
        window: Int[np.ndarray, " chosen"],
        first: Int[np.ndarray, " chosen"],
        last: Int[np.ndarray, " chosen"],
    ) -> tuple[Int[np.ndarray, " chosen"], Int[np.ndarray, " chosen"]]:
        """The characters of the context (first, past the last) that tokens first to last of a window's row cover."""
        begin = self.span_at[window] - self.context_start[window]
        return self.spans[begin + first, 0], self.spans[begin + last, 1]


def default_stride(max_length: int) -> int:
    """Tokens that neighbouring windows share: 128 of 384."""
    return max_length // 3


def default_question_length(max_length: int) -> int:
    """Tokens of a question that are read at most: 64, in rows of 192 tokens and more."""
    return min(64, max_length // 3)


def answer_windows(
    questions: Questions,
    tokenizer: Any,
    max_length: int,
    *,
    stride: int | None = None,
    max_question: int | None = None,
) -> Windows:
    """Windows of every question, in order; the longest are `max_length` tokens, special ones included.

    Args:
      stride: tokens of the context that neighbours share (default: `default_stride`).
      max_question: tokens after which a question is cut (default: `default_question_length`).

    Raises:
      ValueError: `max_length` leaves no room, or is more than the tokenizer says its model takes.
    """
    stride = default_stride(max_length) if stride is None else stride
    max_question = default_question_length(max_length) if max_question is None else max_question
    template = read_template(tokenizer, 2)
    check_room(tokenizer, max_length, special=template.count, texts=2)
    if stride < 0 or max_question < 1 or max_length - template.count - max_question <= stride:
        raise ValueError(
            f"max_length {max_length} has no room for {template.count} special tokens, {max_question} of a question "
            f"(max_question) and more of the context than the {stride} that windows share (stride)"
        )
    backend = backend_copy(tokenizer)
    asked, asked_at, _ = _encode(backend, questions.questions)
    unique = {context: number for number, context in enumerate(dict.fromkeys(questions.contexts))}
    told, told_at, spans = _encode(backend, list(unique))
    context_of = np.array([unique[context] for context in questions.contexts], np.int64)

    question_length = np.minimum(np.diff(asked_at), max_question)
    room = max_length - template.count - question_length
    step = room - stride
    length = np.diff(told_at)[context_of]
    count = 1 + np.maximum(-(-(length - room) // step), 0)
    example = np.repeat(np.arange(len(questions)), count)
    number = np.arange(len(example)) - np.repeat(np.cumsum(count) - count, count)
    first = number * step[example]  # tokens of the context, counted in it
    last = np.minimum(first + room[example], length[example])

    base = told_at[context_of][example]
    question_at = asked_at[:-1][example]
    ranges = np.stack(
        [
            np.stack([question_at, question_at + question_length[example]], 1),
            np.stack([base + first, base + last], 1) + len(asked),
        ],
        axis=1,
    )
    context_start = len(template.pieces[0]) + question_length[example] + len(template.pieces[1])
    settings = (tokenizer_fingerprint(tokenizer), questions.fingerprint, max_length, stride, max_question)
    tokenized = _tokenized(
        np.concatenate([asked, told]),
        ranges,
        template,
        max_length=max_length,
        truncated=int(np.count_nonzero(np.diff(asked_at) > max_question)),
        pad_id=0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id),
        key=fingerprint([FORMAT, repr(settings)]),
    )
    tokenized = replace(tokenized, cut=(np.diff(asked_at) > max_question)[example])
    start = end = None
    if questions.answers is not None:
        places = _answer_tokens(questions, spans, told_at, context_of)[example]
        whole = (places[:, 0] >= first) & (places[:, 1] < last) & (places[:, 0] <= places[:, 1])
        within = np.where(whole[:, None], context_start[:, None] + places - first[:, None], 0).astype(np.int32)
        start, end = within[:, 0], within[:, 1]
    return Windows(
        tokenized=tokenized,
        example=example.astype(np.int32),
        context_start=context_start.astype(np.int32),
        context_length=(last - first).astype(np.int32),
        start=start,
        end=end,
        spans=spans,
        span_at=base + first,
    )


class WindowBatches(Batches):
    """`Batches` of windows, whose `ids` are windows' numbers.

    Beside its arrays a batch holds `context` bool [batch, length], True at the tokens of the context, and where answers
    are known `start` and `end` int32 [batch], 0 in padding rows.
    """

    def __init__(self, windows: Windows, **options: Any):
        super().__init__(windows.tokenized, **options)
        self.windows = windows

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        batch = super().batch_at(step)
        windows, valid = self.windows, batch["valid"]
        chosen = np.where(valid, batch["ids"], 0)
        place = np.arange(batch["input_ids"].shape[1]) - windows.context_start[chosen][:, None]
        batch["context"] = (place >= 0) & (place < windows.context_length[chosen][:, None]) & valid[:, None]
        if windows.start is not None and windows.end is not None:
            batch["start"] = np.where(valid, windows.start[chosen], np.int32(0))
            batch["end"] = np.where(valid, windows.end[chosen], np.int32(0))
        return batch


def _tokenized(
    tokens: Int[np.ndarray, " tokens"],
    ranges: Int[np.ndarray, "rows texts 2"],
    template: Template,
    *,
    max_length: int,
    truncated: int,
    pad_id: int,
    key: str,
) -> Tokenized:
    whole = np.array([0, len(tokens)], np.int64)
    plan = plan_ranges(TokenStore(tokens, whole, np.array([0, 1], np.int64), key), ranges, template)
    return Tokenized(
        tokens=plan.tokens(0, len(ranges)),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(plan.lengths, dtype=np.int64)]),
        boundaries=plan.boundaries.astype(np.int32),
        max_length=max_length,
        truncated=truncated,
        pad_id=pad_id,
        fingerprint=key,
    )


def _encode(
    backend: Any, texts: Sequence[str]
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " texts+1"], Int[np.ndarray, "tokens 2"]]:
    """Ids of every text end to end, where each text begins, and the characters of every token."""
    ids, spans, lengths = [np.empty(0, np.int32)], [np.empty((0, 2), np.int32)], [0]
    for begin in range(0, len(texts), CHUNK):
        chunk = list(texts[begin : begin + CHUNK])
        for text, encoding in zip(chunk, backend.encode_batch(chunk, add_special_tokens=False), strict=True):
            ids.append(np.array(encoding.ids, np.int32))
            spans.append(_without_space(text, np.array(encoding.offsets, np.int32).reshape(-1, 2)))
            lengths.append(len(encoding.ids))
    return np.concatenate(ids), np.cumsum(lengths, dtype=np.int64), np.concatenate(spans)


def _without_space(text: str, spans: Int[np.ndarray, "tokens 2"]) -> Int[np.ndarray, "tokens 2"]:
    """Spans without white space at their ends, which byte-level vocabularies count to a token; empty where all is."""
    space = np.fromiter(map(str.isspace, text), bool, len(text))
    places = np.arange(len(text) + 1)
    following = np.minimum.accumulate(np.append(np.where(space, len(text), places[:-1]), len(text))[::-1])[::-1]
    preceding = np.maximum.accumulate(np.insert(np.where(space, 0, places[1:]), 0, 0))
    first = np.minimum(following[spans[:, 0]], spans[:, 1])
    return np.stack([first, np.maximum(preceding[spans[:, 1]], first)], 1).astype(np.int32)


def _answer_tokens(
    questions: Questions,
    spans: Int[np.ndarray, "tokens 2"],
    told_at: Int[np.ndarray, " contexts+1"],
    context_of: Int[np.ndarray, " rows"],
) -> Int[np.ndarray, "rows 2"]:
    """The tokens (first, last) of its context that the first answer to each question is; (0, -1) for none."""
    places = np.tile(np.array([0, -1], np.int64), (len(questions), 1))
    for row, answers in enumerate(questions.answers or ()):
        if not answers:
            continue
        text, start = answers[0]
        begin, past = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
        inside = spans[told_at[context_of[row]] : told_at[context_of[row] + 1]]
        places[row] = _touched(inside, begin, past)
    return places


def _touched(spans: Int[np.ndarray, "tokens 2"], begin: int, past: int) -> tuple[int, int]:
    """The fewest tokens that hold characters begin to past, or all that touch them; (0, -1) where none does.

    Several tokens may stand for one character (the bytes of a face). Where that is at an end of the answer, the
    innermost is taken, as in transformers' run_qa.py; but it is all of them that are the answer, if it is nothing else.
    """
    starts, ends = spans[:, 0], spans[:, 1]
    first, last = int(np.searchsorted(starts, begin, "right")) - 1, int(np.searchsorted(ends, past, "left"))
    if 0 <= first <= last < len(spans) and ends[first] > begin and starts[last] < past:
        return first, last
    first, last = int(np.searchsorted(ends, begin, "right")), int(np.searchsorted(starts, past, "left")) - 1
    return (first, last) if first <= last else (0, -1)
