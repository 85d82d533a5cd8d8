import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxptft import data


def made(backend, *special, **names):
    backend.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def starts(table, tokenizer):
    """The tokens that begin a word, special ones aside."""
    ids = np.flatnonzero(table.starts_word & ~table.special)
    return set(tokenizer.convert_ids_to_tokens(ids.tolist()))


def test_word_piece(tokenizer):
    table = data.token_table(tokenizer, 40)
    assert table.mask_id == 4
    # [PAD] [UNK] [CLS] [SEP] [MASK], and the ids that no token has.
    assert np.flatnonzero(table.special).tolist() == [0, 1, 2, 3, 4, *range(32, 40)]
    assert np.flatnonzero(~table.starts_word).tolist() == [26, 27, 28]  # ##s ##ing ##ed
    assert [array.dtype for array in table[1:]] == [bool, bool]


def test_byte_level():
    words = ["<s>", "<mask>", "Ġcat", "cat", "s", "Ċ", ".", "æĽ¹", "æ", "Ľ", "¹", "Ã¼"]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.decoder = decoders.ByteLevel()
    tokenizer = made(backend, "<s>", "<mask>", mask_token="<mask>")
    table = data.token_table(tokenizer, len(words))
    assert (table.mask_id, np.flatnonzero(table.special).tolist()) == (1, [0, 1])
    assert backend.decode([7]) == "曹"  # a Chinese character, whose first byte is æ's 0xE6
    assert starts(table, tokenizer) == {"Ġcat", "Ċ", "æĽ¹", "æ"}


def test_sentence_piece():
    words = ["<pad>", "[MASK]", "▁cat", "s", "▁", ".", "张飞", "ü"]
    backend = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = made(backend, "<pad>", "[MASK]", mask_token="[MASK]")
    assert starts(data.token_table(tokenizer, 8), tokenizer) == {"▁cat", "▁", "张飞"}


def test_whole_words_and_added_tokens():
    backend = Tokenizer(models.WordLevel({"cat": 0, "dog": 1, "##s": 2}, unk_token="cat"))
    backend.add_tokens([AddedToken("extra", special=False)])
    tokenizer = made(backend, "<mask>", mask_token="<mask>")
    table = data.token_table(tokenizer, 5)
    assert np.flatnonzero(table.special).tolist() == [4]
    assert table.starts_word.all()


def test_no_mask_token():
    backend = Tokenizer(models.WordLevel({"cat": 0}, unk_token="cat"))
    tokenizer = made(backend)
    with pytest.raises(ValueError, match=r"the tokenizer \(.*\) has no mask token, and none can be hidden without one"):
        data.token_table(tokenizer, 1)
    assert data.token_table(tokenizer, 1, mask=False).mask_id is None


def test_more_ids_than_the_model(tokenizer):
    with pytest.raises(ValueError, match="the tokenizer has 32 ids, and the model's embedding table 31 rows"):
        data.token_table(tokenizer, 31)
