"""Learn a vocabulary from raw text, and save it as a folder that `AutoTokenizer` loads.

WordPiece as BERT's, byte-level BPE as GPT-2's and RoBERTa's, Unigram as ALBERT's (SentencePiece); the special tokens
and their places are those of a family of models. The same text always gives the same bytes: where the `tokenizers`
library lets the order of a hash table decide, the order is settled here.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxptft.data.readers import first_line
from jaxptft.data.sentences import sentence_spans

Kind = Literal["wordpiece", "bpe", "unigram"]
Family = Literal["bert", "roberta", "distilbert", "albert", "electra", "modernbert", "gpt2"]

ALPHABET = 1000  # characters that WordPiece keeps, the commonest; of Chinese text all
BYTES = 256
DIGITS = 6  # of a Unigram score: beyond them is the order of sums
PENALTY = 1e-4  # by which the library sets apart the Unigram scores of characters that the text can do without
EXACT = 1e-4  # part of it that may be rounding


class Style(NamedTuple):
    """How a family's tokenizers are made; `special` in the order of their ids, by the names `transformers` has."""

    kind: Kind
    special: Mapping[str, str]
    pair: str  # A and B between special tokens; :1 is the token type
    token_types: bool  # whether the family's models take them
    max_length: int


_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_BERT_PAIR = "[CLS] $A [SEP] $B:1 [SEP]:1"
_ENDS = {"bos": "[CLS]", "eos": "[SEP]"}
_ALBERT = {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", **_ENDS}
_ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>", "bos": "<s>", "eos": "</s>"}
_GPT2: dict[str, str] = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")

STYLES: dict[str, Style] = {
    "bert": Style("wordpiece", _BERT, _BERT_PAIR, True, 512),
    "distilbert": Style("wordpiece", _BERT, _BERT_PAIR, False, 512),
    "electra": Style("wordpiece", _BERT, _BERT_PAIR, True, 512),
    "albert": Style("unigram", _ALBERT, _BERT_PAIR, True, 512),
    "roberta": Style("bpe", _ROBERTA, "<s> $A </s> </s> $B </s>", False, 512),
    "modernbert": Style("bpe", _BERT | _ENDS, "[CLS] $A [SEP] $B [SEP]", False, 8192),
    "gpt2": Style("bpe", _GPT2, "$A $B", False, 1024),
}


def train_tokenizer(
    read: Callable[[], Iterable[str]],
    *,
    family: Family,
    vocab_size: int,
    kind: Kind | None = None,
    lowercase: bool = False,
    strip_accents: bool = False,
    chinese: bool = False,
    min_frequency: int = 2,
) -> Any:
    """Learn a `tokenizers.Tokenizer` from documents.

    Args:
      read: gives all documents, one after the other, each time it is called (WordPiece reads them twice).
      family: whose special tokens and post-processing it gets.
      vocab_size: tokens at most, special ones included; little text gives fewer.
      kind: None: the family's own.
      chinese: keep every character, however rare, where WordPiece would keep the commonest thousand. (WordPiece takes
        each Chinese character for a word in any case, as BERT's does.)
      min_frequency: how often a pair must occur to become one token (WordPiece, BPE).

    Raises:
      ValueError: the vocabulary has no room for the single characters, or the text is too little to learn from.
    """
    if family not in STYLES:
        raise ValueError(f"family {family!r} is not known; choose one of {', '.join(STYLES)}")
    style = STYLES[family]
    kind = kind or style.kind
    special = list(dict.fromkeys(style.special.values()))
    floor = len(special) + (BYTES if kind == "bpe" else 1)
    if vocab_size < floor:
        raise ValueError(f"vocab_size is {vocab_size}, and {floor} are special tokens and single bytes; raise it")
    learn = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}
    if kind not in learn:
        raise ValueError(f"kind {kind!r} is not known; choose one of {', '.join(learn)}")

    from tokenizers import AddedToken

    def texts() -> Iterator[str]:
        # Cut as tokenize_corpus cuts it: a sentence keeps the white space before it.
        return (text[start:end] for text in read() for start, end in sentence_spans(text))

    options: dict[str, Any] = {"vocab_size": vocab_size, "show_progress": False}
    if kind != "unigram":
        options |= {"min_frequency": min_frequency}
    if kind == "wordpiece" and not chinese:
        options |= {"limit_alphabet": ALPHABET}
    model = learn[kind](_blank(kind, lowercase, strip_accents), texts, special, style.special["unk"], options)
    tokenizer = _blank(kind, lowercase, strip_accents)  # the other one takes all that it was given for special
    tokenizer.model = model
    size = tokenizer.get_vocab_size()
    if size > vocab_size:
        raise ValueError(
            f"vocab_size is {vocab_size}, but the special tokens and the text's single characters are {size} already; "
            "raise it"
        )
    # Where spaces are in the tokens, the mask takes the one before it with it: a word with its space is predicted.
    eager = style.special.get("mask") if kind != "wordpiece" else None
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False, lstrip=token == eager) for token in special]
    )
    tokenizer.post_processor = _post_processor(kind, style, special)
    return tokenizer


def _blank(kind: Kind, lowercase: bool, strip_accents: bool) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    accents = [normalizers.NFD(), normalizers.StripAccents()] if strip_accents else []
    lower = [normalizers.Lowercase()] if lowercase else []
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        if accents or lower:
            tokenizer.normalizer = normalizers.Sequence([*accents, *lower, normalizers.NFC()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer = Tokenizer(models.Unigram())
        quotes = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        space = normalizers.Replace(Regex(r"\s+"), " ")
        tokenizer.normalizer = normalizers.Sequence([*quotes, *accents, *lower, normalizers.NFKC(), space])
        # Punctuation stands alone, as SentencePiece leaves it by splitting where the script changes.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
        tokenizer.decoder = decoders.Metaspace()
    return tokenizer


Texts = Callable[[], Iterator[str]]


def _wordpiece(tokenizer: Any, texts: Texts, special: list[str], unknown: str, options: dict[str, Any]) -> Any:
    from tokenizers import models, trainers

    def vocabulary(first: list[str], size: int) -> dict[str, int]:
        settings: dict[str, Any] = {**options, "special_tokens": first, "vocab_size": size}
        _learn(tokenizer, texts(), trainers.WordPieceTrainer(**settings))
        return tokenizer.get_vocab(with_added_tokens=False)

    # The library numbers the characters inside words in a random order, by which it then breaks ties between pairs. A
    # first look at the text tells which they are, and they are given their numbers from outside.
    tokenizer.model = models.WordPiece(unk_token=unknown)
    inside = sorted(token for token in vocabulary(special, 0) if token.startswith("##") and len(token) == 3)
    tokenizer.model = models.WordPiece(unk_token=unknown)
    learnt = vocabulary([*special, *inside], options["vocab_size"])
    outside = {**dict.fromkeys(special), **dict.fromkeys(sorted(token for token in learnt if len(token) == 1))}
    order = [*outside, *inside, *sorted(learnt.keys() - outside.keys() - set(inside), key=learnt.__getitem__)]
    return models.WordPiece({token: number for number, token in enumerate(order)}, unk_token=unknown)


def _bpe(tokenizer: Any, texts: Texts, special: list[str], unknown: str, options: dict[str, Any]) -> Any:
    from tokenizers import pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _learn(tokenizer, texts(), trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, **options))
    return tokenizer.model


def _unigram(tokenizer: Any, texts: Texts, special: list[str], unknown: str, options: dict[str, Any]) -> Any:
    from tokenizers import models, trainers

    _learn(tokenizer, texts(), trainers.UnigramTrainer(special_tokens=special, unk_token=unknown, **options))
    learnt = json.loads(tokenizer.to_str())["model"]["vocab"]
    pieces = _settled({token: score for token, score in learnt if token not in special})
    ranked = sorted(pieces.items(), key=lambda piece: (-piece[1], piece[0]))
    vocabulary = [*((token, 0.0) for token in special), *ranked]
    return models.Unigram(vocabulary, unk_id=special.index(unknown), byte_fallback=False)


def _settled(pieces: dict[str, float]) -> dict[str, float]:
    """The scores without what chance put in them."""
    # Characters that the text could do without get the least score of all and, one by one in a random order, PENALTY
    # more each. Whoever has such a score is given one of them by the order of characters.
    least = min(pieces.values(), default=0.0)
    steps: dict[int, list[str]] = {}
    for token, score in pieces.items():
        step = (score - least) / PENALTY
        if len(token) == 1 and abs(step - round(step)) < EXACT:
            steps.setdefault(round(step), []).append(token)
    runs = takewhile(bool, (steps.get(step, []) for step in range(len(pieces))))
    spare = sorted(chain.from_iterable(runs))
    scores = sorted((pieces[token] for token in spare), reverse=True)
    settled = {**pieces, **dict(zip(spare, scores, strict=True))}
    return {token: round(score, DIGITS) for token, score in settled.items()}


def _learn(tokenizer: Any, texts: Iterator[str], trainer: Any) -> None:
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except (ValueError, OSError):  # of the corpus
        raise
    except BaseException as error:  # besides Exception itself, the library's panics, which are none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"no vocabulary can be learnt from the corpus ({first_line(error)}); raise vocab_size or give more text"
        ) from None


def _post_processor(kind: Kind, style: Style, special: list[str]) -> Any:
    from tokenizers import processors

    parts: list[Any] = [processors.ByteLevel(trim_offsets=style.pair != "$A $B")] if kind == "bpe" else []
    if style.pair != "$A $B":
        single = style.pair.partition(" $B")[0].replace("</s> </s>", "</s>")
        numbered = [(token, special.index(token)) for token in special]
        parts.append(processors.TemplateProcessing(single=single, pair=style.pair, special_tokens=numbered))
    elif not parts:
        return None
    return parts[0] if len(parts) == 1 else processors.Sequence(parts)


def save_tokenizer(folder: Path, tokenizer: Any, *, family: Family, max_length: int | None = None) -> None:
    """Write tokenizer.json and tokenizer_config.json; `max_length` (None: the family's) is in tokens."""
    style = STYLES[family]
    config = {
        # This class takes tokenizer.json as it stands, in every version of transformers and beside any config.json.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length or style.max_length,
        "model_input_names": ["input_ids", *(["token_type_ids"] if style.token_types else []), "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": token for name, token in style.special.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }
    for name, content in contents.items():
        unfinished = folder / f".{name}"
        unfinished.write_text(content, encoding="utf-8")
        unfinished.replace(folder / name)
