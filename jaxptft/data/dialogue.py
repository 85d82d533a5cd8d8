"""Prompts and the responses to them, as a causal model reads them: one row, of which the response alone is learnt.

A row is prompt, separator, response, end of text; its tokens from the boundary on are those of the response and the
end. Where it is too long, the prompt loses its beginning, and the response its end only when no prompt would be left.
"""

import copy
from typing import Any

import numpy as np

from jaxptft.data.cache import fingerprint
from jaxptft.data.columns import Columns
from jaxptft.data.sources import open_source
from jaxptft.data.tables import Table, read_table
from jaxptft.data.tokenized import Tokenized, backend_of, tokenizer_fingerprint
from jaxptft.data.validate import OnBadRow

PROMPT = ("prompt", "instruction", "question", "utterance", "input")
RESPONSE = ("response", "completion", "answer", "reply", "output")


def read_dialogue(
    source: Any,
    *,
    prompt: str | None = None,
    response: str | None = None,
    answered: bool = True,
    split: str | None = None,
    id: str | None = None,
    on_bad_row: OnBadRow = "error",
) -> Table:
    """Rows of a prompt (`texts`) and a response (`pairs`), from any source that `read_table` reads.

    Column names that are not given are told from those found. With `answered` False prompts alone are read.

    Raises ValueError, naming the columns found, where one is absent or several could be meant, and as `read_table`.
    """
    opened = open_source(source, split)
    found, name = opened.columns, opened.name
    chosen = _one(name, "prompt", prompt, PROMPT, found)
    answer = _one(name, "response", response, RESPONSE, found) if answered else ""
    columns = Columns(chosen, answer, id=id)
    return read_table(source, columns=columns, labelled=False, split=split, on_bad_row=on_bad_row)


def _one(source: str, role: str, given: str | None, names: tuple[str, ...], found: tuple[str, ...]) -> str:
    listing = f"columns found: {', '.join(map(repr, found)) or 'none'}"
    if given is not None:
        if given not in found:
            raise ValueError(f"{source}: there is no column {given!r} for the {role}; {listing}")
        return given
    options = [column for column in found if column.strip().lower() in names]
    if len(options) != 1:
        several = f"several columns could be the {role}" if options else f"no column could be the {role}"
        raise ValueError(f"{source}: {several}; choose one; {listing}")
    return options[0]


def dialogue_tokens(table: Table, tokenizer: Any, max_length: int, *, separator: str = "\n") -> Tokenized:
    """Token ids of each prompt and response, ended by the tokenizer's eos token; `boundaries` is where responses begin.

    Raises ValueError where the tokenizer has no eos token, a response has no tokens, or `max_length` is below 3.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer has no eos token, by which a response would end; choose a causal model's")
    if max_length < 3:
        raise ValueError(f"max_length is {max_length}; expected at least 3, for a prompt, a response and its end")
    assert table.pairs is not None
    prompts = encode_prompts(table.texts, tokenizer, separator=separator)
    responses = _encode(table.pairs, tokenizer)
    rows, boundaries, truncated = [], np.zeros(len(table), np.int32), 0
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not response:
            raise ValueError(f"{table.source}, row {table.rows[index]}: the tokenizer makes no tokens of the response")
        whole = len(prompt) + len(response) + 1
        kept = response[: max_length - 2] if whole > max_length else response
        room = max_length - len(kept) - 1
        start = max(0, len(prompt) - room)
        truncated += whole > max_length
        boundaries[index] = len(prompt) - start
        # A response that was cut does not end here.
        rows.append(np.array([*prompt[start:], *kept, *([end] if len(kept) == len(response) else [])], np.int32))
    lengths = np.array([len(row) for row in rows], np.int64)
    key = ["dialogue 1", table.fingerprint, tokenizer_fingerprint(tokenizer), str(max_length), separator, str(end)]
    return Tokenized(
        tokens=np.concatenate(rows),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        boundaries=boundaries,
        max_length=max_length,
        truncated=truncated,
        pad_id=0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id),
        fingerprint=fingerprint(key),
    )


def encode_prompts(prompts: list[str], tokenizer: Any, *, separator: str = "\n") -> list[list[int]]:
    """The ids of prompts as they stand before a response; a prompt of no tokens is the token that begins a text."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [ids or [first] for ids in _encode([prompt + separator for prompt in prompts], tokenizer)]


def _encode(texts: list[str], tokenizer: Any) -> list[list[int]]:
    backend = copy.deepcopy(backend_of(tokenizer))
    backend.no_padding()
    backend.no_truncation()
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
