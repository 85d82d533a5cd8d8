"""A tokenizer learnt from raw text: a folder that AutoTokenizer loads and `jaxptft pretrain --tokenizer` takes."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from jaxptft.recipes.settings import Settings

SAMPLE = 200  # documents, and
LONGEST = 100_000  # characters of each, that the result is tried on


class Config(Settings):
    """Learn a vocabulary: jaxptft tokenizer train --corpus texts/ --vocab-size 30000 --out tokenizer/"""

    corpus: tuple[str, ...]
    """files, folders, globs (text, plain or gzip; .jsonl, .parquet) or hub names"""
    out: Path
    """the folder to make: tokenizer.json, tokenizer_config.json"""
    family: Literal["bert", "roberta", "distilbert", "albert", "electra", "modernbert", "gpt2"] = "bert"
    """whose special tokens it has"""
    kind: Literal["wordpiece", "bpe", "unigram"] | None = None
    """how words are cut (default: the family's own; bpe is byte-level)"""
    vocab_size: int = Field(default=30_000, ge=1)
    """tokens at most, special ones included"""
    lowercase: bool = False
    strip_accents: bool = False
    chinese: bool = False
    """keep every character, not the commonest thousand (wordpiece)"""
    min_frequency: int = Field(default=2, ge=1)
    """how often a pair must occur to become one token (wordpiece, bpe)"""
    max_length: int | None = Field(default=None, ge=1)
    """longest input of the models it is for, in tokens (default: the family's)"""
    text_column: str | None = None
    """the column of .jsonl and .parquet that holds the text (default: text)"""
    documents: Literal["file", "line", "blank-line"] = "file"
    """what is one document in a text file"""
    on_bad_document: Literal["error", "skip"] = "error"
    overwrite: bool = False
    """replace a tokenizer that is there"""

    @model_validator(mode="after")
    def _something(self) -> "Config":
        if not self.corpus:
            raise ValueError("corpus is empty; give files, folders or names")
        return self


def run(config: Config, *, say: Callable[[str], None] = print) -> None:
    """Learn the tokenizer, save it, and say how large it is and how well it fits its text.

    Raises ValueError, FileNotFoundError or FileExistsError in one line for whatever does not fit.
    """
    from jaxptft import data

    if config.out.exists() and not config.out.is_dir():
        raise FileExistsError(f"{config.out} is a file; choose a folder for the tokenizer")
    if (config.out / "tokenizer.json").exists() and not config.overwrite:
        raise FileExistsError(f"{config.out} already holds a tokenizer; replace it with --overwrite")
    tally = data.DocumentTally(config.on_bad_document)
    options = {"text_column": config.text_column, "documents": config.documents}
    read = partial(data.read_corpus, config.corpus, on_bad_document=config.on_bad_document, **options)
    for _ in data.read_corpus(config.corpus, tally=tally, **options):  # what is wrong with it comes before the work
        pass
    report = tally.report()
    say(f"corpus: {report.rows - report.skipped:,} documents" + (f"; {report}" if report.skipped else ""))
    tokenizer = data.train_tokenizer(
        read,
        family=config.family,
        vocab_size=config.vocab_size,
        kind=config.kind,
        lowercase=config.lowercase,
        strip_accents=config.strip_accents,
        chinese=config.chinese,
        min_frequency=config.min_frequency,
    )
    data.save_tokenizer(config.out, tokenizer, family=config.family, max_length=config.max_length)
    loaded = data.load_tokenizer(config.out)
    texts = [text[:LONGEST] for text in islice(read(), SAMPLE)]
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    count = max(1, sum(len(encoding.ids) for encoding in encodings))
    unknown = sum(encoding.ids.count(loaded.unk_token_id) for encoding in encodings)
    say(
        f"{config.out}: {tokenizer.get_vocab_size():,} tokens; on its text {sum(map(len, texts)) / count:.2f} "
        f"characters a token, {unknown / count:.2%} unknown"
    )
