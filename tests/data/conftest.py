import json
from pathlib import Path

import numpy as np
import pytest

from jaxptft import data

WORDS = [
    *("the", "a", "cat", "dog", "sat", "ran", "on", "in", "mat", "house", "good", "bad", "film", "was", "not", "very"),
    *("it", "is", "one", "two", "three", "##s", "##ing", "##ed", ".", ",", "!"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Every test has a cache folder of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("JAXPTFT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A small uncased WordPiece tokenizer saved as Hugging Face saves BERT's, which truncates and pads to 16 itself."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    config = {"tokenizer_class": "BertTokenizer", "model_max_length": 64, "mask_token": "[MASK]", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    return data.load_tokenizer(tokenizer_folder)


def sentences(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    """Sentences of 1 to `longest` words, unknown ones among them."""
    random = np.random.default_rng(seed)
    words = np.array([*(word for word in WORDS if not word.startswith("##")), "cats", "running", "zebra"])
    return [" ".join(random.choice(words, random.integers(1, longest + 1))) for _ in range(count)]


@pytest.fixture(scope="session")
def sentences_of():
    return sentences


@pytest.fixture(scope="session")
def ragged():
    """A function: row lengths -> Tokenized whose tokens count up from 1, so that every token is known by its place."""

    def make(lengths, max_length=None, pad_id=0):
        lengths = np.asarray(lengths, np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return data.Tokenized(
            tokens=np.arange(1, offsets[-1] + 1, dtype=np.int32),
            offsets=offsets,
            boundaries=((lengths + 1) // 2).astype(np.int32),
            max_length=int(max_length or lengths.max()),
            truncated=0,
            pad_id=pad_id,
            fingerprint="tokens counted up",
        )

    return make


@pytest.fixture(scope="session")
def stored():
    """A function: tokens in each sentence of each document -> TokenStore whose tokens count up from 100."""

    def make(documents, name="counted up"):
        lengths = np.array([length for document in documents for length in document], np.int64)
        sentences = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return data.TokenStore(
            tokens=np.arange(100, 100 + sentences[-1], dtype=np.int32),
            sentences=sentences,
            documents=np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64),
            fingerprint=f"{name} {documents}",
        )

    return make


@pytest.fixture(scope="session")
def worded():
    """A function: post-processor, further names -> a tokenizer of the words a and b, <s> 2, </s> 3 and <pad> 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(processor=None, words=("a", "b"), **names):
        vocabulary = {word: number for number, word in enumerate(("<pad>", "<unk>", "<s>", "</s>", *words))}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        if processor is not None:
            tokenizer.post_processor = processor
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)

    return make
