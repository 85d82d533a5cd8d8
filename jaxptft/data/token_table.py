"""What masking must know of each token id, as arrays: which are special, and which begin a word."""

import json
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from jaxptft.data.tokenized import check_vocabulary

SPACE_MARK = "▁"  # SentencePiece's
BYTE_SPACES = frozenset("ĠĊĉč")  # byte-level BPE's space, line feed, tab and carriage return
HAN_LEAD_BYTES = range(0xE4, 0xEA)  # of U+4000 to U+9FFF in UTF-8; byte-level BPE writes these as themselves


class TokenTable(NamedTuple):
    """Facts about each token id of a vocabulary; `mask_id` is None where there is no mask token."""

    mask_id: int | None
    special: Bool[np.ndarray, " vocab"]  # special tokens, and ids that no token has
    starts_word: Bool[np.ndarray, " vocab"]


def token_table(tokenizer: Any, vocab_size: int, *, mask: bool = True) -> TokenTable:
    """The table of a tokenizer, as long as the model's vocabulary.

    A token begins a word unless WordPiece's `##` says that it goes on with one, or no space is at its start where the
    vocabulary marks spaces (byte-level BPE, SentencePiece). A Chinese character always begins one.

    Args:
      mask: whether a mask token is needed.

    Raises:
      ValueError: the tokenizer has more ids than the model, or no mask token where one is needed.
    """
    check_vocabulary(tokenizer, vocab_size)
    if mask and tokenizer.mask_token_id is None:
        raise ValueError(
            f"the tokenizer ({type(tokenizer).__name__}) has no mask token, and none can be hidden without one; use a "
            "tokenizer that has, or the objective clm"
        )
    backend = tokenizer.backend_tokenizer
    tokens = backend.get_vocab(with_added_tokens=True)
    special = np.ones(vocab_size, bool)
    special[list(tokens.values())] = False
    special[[*tokenizer.all_special_ids]] = True
    special[[number for number, token in backend.get_added_tokens_decoder().items() if token.special]] = True
    starts_word = np.ones(vocab_size, bool)
    added = backend.get_added_tokens_decoder()
    begins = _rule(json.loads(backend.to_str()), tokens)
    for token, number in tokens.items():
        if number not in added:
            starts_word[number] = begins(token)
    return TokenTable(tokenizer.mask_token_id, special, starts_word)


def _rule(state: dict[str, Any], tokens: dict[str, int]) -> Any:
    prefix = state["model"].get("continuing_subword_prefix")
    if prefix:
        return lambda token: not token.startswith(prefix) or is_han(token[len(prefix) :])
    if "ByteLevel" in _kinds(state.get("pre_tokenizer")) | _kinds(state.get("decoder")):
        return lambda token: token[0] in BYTE_SPACES or ord(token[0]) in HAN_LEAD_BYTES
    if any(token.startswith(SPACE_MARK) for token in tokens):
        return lambda token: token.startswith(SPACE_MARK) or is_han(token)
    return lambda token: True


def _kinds(part: Any) -> set[str]:
    """The types of a pre-tokenizer or decoder, and of those that it is a sequence of."""
    if not isinstance(part, dict):
        return set()
    nested = [*part.get("pretokenizers", ()), *part.get("decoders", ())]
    return {str(part.get("type"))}.union(*map(_kinds, nested))


def is_han(text: str) -> bool:
    return bool(text) and ("\u3400" <= text[0] <= "\u9fff" or "\U00020000" <= text[0] <= "\U0003ffff")
