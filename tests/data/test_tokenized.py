import json
import shutil
import warnings

import numpy as np
import pytest

from jaxptft import data
from jaxptft.data import tokenized as module


def hf(tokenizer, table, max_length):
    """What transformers itself gives, row by row."""
    return tokenizer(table.texts, table.pairs, truncation=True, max_length=max_length, padding=False)


@pytest.fixture
def table(sentences_of):
    return data.make_table(sentences_of(300), source="sentences")


@pytest.fixture
def pairs(sentences_of):
    return data.make_table(sentences_of(300), pairs=sentences_of(300, seed=1))


@pytest.mark.parametrize("max_length", [3, 16, 17, 32, 64])
def test_ids_equal_transformers(tokenizer, table, max_length):
    ours, theirs = data.tokenize(table, tokenizer, max_length), hf(tokenizer, table, max_length)
    assert [ours.row(row).tolist() for row in range(len(ours))] == theirs["input_ids"]
    assert ours.lengths.tolist() == list(map(len, theirs["input_ids"]))
    full = hf(tokenizer, table, 64)["input_ids"]
    assert ours.truncated == sum(len(row) > max_length for row in full)
    assert ours.tokens.dtype == np.int32


@pytest.mark.parametrize("max_length", [8, 31, 64])
def test_pairs_equal_transformers(tokenizer, pairs, max_length):
    ours, theirs = data.tokenize(pairs, tokenizer, max_length), hf(tokenizer, pairs, max_length)
    assert [ours.row(row).tolist() for row in range(len(ours))] == theirs["input_ids"]
    types = [(np.arange(n) >= b).astype(int).tolist() for n, b in zip(ours.lengths, ours.boundaries, strict=True)]
    assert types == theirs["token_type_ids"]
    # Untruncated lengths, by transformers.
    full = [len(row) for row in tokenizer(pairs.texts, pairs.pairs, truncation=False)["input_ids"]]
    assert ours.truncated == sum(length > max_length for length in full)


def test_rows_beyond_one_chunk(tokenizer, table, monkeypatch):
    whole = data.tokenize(table, tokenizer, 32, cache=False)
    monkeypatch.setattr(module, "CHUNK", 7)
    np.testing.assert_array_equal(data.tokenize(table, tokenizer, 32, cache=False).tokens, whole.tokens)


def test_the_tokenizer_is_not_changed(tokenizer, table):
    before = tokenizer.backend_tokenizer.to_str()
    data.tokenize(table, tokenizer, 5)
    assert tokenizer.backend_tokenizer.to_str() == before


def test_padding_and_truncation_of_the_file_are_dropped(tokenizer_folder):
    state = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    assert state["truncation"]["max_length"] == 16
    assert state["padding"]["strategy"] == {"Fixed": 16}
    backend = data.load_tokenizer(tokenizer_folder).backend_tokenizer
    assert backend.padding is None
    assert backend.truncation is None


def test_cache_is_used(tokenizer, table, own_cache, monkeypatch):
    first = data.tokenize(table, tokenizer, 32)
    monkeypatch.setattr(module, "_encode", lambda *_: pytest.fail("tokenized again"))
    second = data.tokenize(table, tokenizer, 32)
    np.testing.assert_array_equal(second.tokens, first.tokens)
    np.testing.assert_array_equal(second.offsets, first.offsets)
    np.testing.assert_array_equal(second.boundaries, first.boundaries)
    assert (second.truncated, second.fingerprint) == (first.truncated, first.fingerprint)
    assert isinstance(second.tokens.base, np.memmap)
    assert len(list((own_cache / "tokenized").iterdir())) == 1


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "boundaries.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damaged_cache_is_made_anew(tokenizer, table, own_cache, name, damage):
    first = data.tokenize(table, tokenizer, 32)
    expected = first.tokens.copy()
    path = next((own_cache / "tokenized").iterdir()) / name
    content = bytearray(path.read_bytes())
    path.unlink()  # the mapped file itself stays as it is
    if damage == "flip":
        content[len(content) // 2] ^= 1
    if damage != "delete":
        path.write_bytes(content if damage == "flip" else content[:-3])
    np.testing.assert_array_equal(data.tokenize(table, tokenizer, 32).tokens, expected)
    assert len(list((own_cache / "tokenized").iterdir())) == 1


def test_cache_that_cannot_be_written(tokenizer, table, own_cache):
    own_cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="tokens are not cached: .*tokenized cannot be written"):
        tokenized = data.tokenize(table, tokenizer, 32)
    assert len(tokenized) == len(table)


def test_without_cache(tokenizer, table, own_cache):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.tokenize(table, tokenizer, 32, cache=False)
    assert not own_cache.exists()


def test_fingerprint(tokenizer, tokenizer_folder, tmp_path, sentences_of):
    texts = sentences_of(20)
    table = data.make_table(texts)
    first = data.tokenize(table, tokenizer, 32).fingerprint
    assert data.tokenize(data.make_table(list(texts)), tokenizer, 32).fingerprint == first
    assert data.tokenize(table, tokenizer, 31).fingerprint != first
    assert data.tokenize(data.make_table(texts[::-1]), tokenizer, 32).fingerprint != first
    shutil.copytree(tokenizer_folder, tmp_path / "cased")
    path = tmp_path / "cased/tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase":true', '"lowercase":false').replace("dog", "dig"))
    assert data.tokenize(table, data.load_tokenizer(tmp_path / "cased"), 32).fingerprint != first


def test_tokenizer_fingerprint_does_not_see_padding(tokenizer_folder):
    tokenizer = data.load_tokenizer(tokenizer_folder)
    first = data.tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "the cat"], padding=True, truncation=True, max_length=4)
    assert data.tokenizer_fingerprint(tokenizer) == first
    tokenizer.add_tokens(["zebra"])
    assert data.tokenizer_fingerprint(tokenizer) != first


def test_vocabulary(tokenizer):
    size = len(tokenizer)
    data.check_vocabulary(tokenizer, size)
    data.check_vocabulary(tokenizer, size + 100)
    said = f"the tokenizer has {size} ids, and the model's embedding table {size - 1} rows"
    with pytest.raises(ValueError, match=said):
        data.check_vocabulary(tokenizer, size - 1)


def test_tokens_out_of_range(ragged):
    tokenized = ragged([3, 2, 4])  # tokens 1 to 9: row 2 holds 6 to 9
    data.check_tokens(tokenized, 10)
    with pytest.raises(ValueError, match="example 2 has token id 8, expected 0 to 7"):
        data.check_tokens(tokenized, 8)
    tokenized.tokens[3] = -4
    with pytest.raises(ValueError, match="example 1 has token id -4, expected 0 to 9"):
        data.check_tokens(tokenized, 10)


def test_max_length_is_checked(tokenizer, table, pairs):
    with pytest.raises(ValueError, match="max_length is 2, and 2 are special tokens; expected at least 3"):
        data.tokenize(table, tokenizer, 2)
    with pytest.raises(ValueError, match="max_length is 3, and 3 are special tokens; expected at least 4"):
        data.tokenize(pairs, tokenizer, 3)
    with pytest.raises(ValueError, match="max_length is 65, and the model takes 64 tokens at most"):
        data.tokenize(table, tokenizer, 65)


def test_token_types_that_cannot_be_stored(tokenizer_folder, pairs, tmp_path):
    shutil.copytree(tokenizer_folder, tmp_path / "odd")
    path = tmp_path / "odd/tokenizer.json"
    state = json.loads(path.read_text())
    pieces = [("SpecialToken", "[CLS]", 1), ("Sequence", "A", 0), ("SpecialToken", "[SEP]", 0), ("Sequence", "B", 1)]
    special = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (("[CLS]", 2), ("[SEP]", 3))}
    pair = [{kind: {"id": name, "type_id": number}} for kind, name, number in pieces]
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": pair[:3],
        "pair": pair,
        "special_tokens": special,
    }
    path.write_text(json.dumps(state))
    (tmp_path / "odd/tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"})
    )
    with pytest.raises(ValueError, match="token types are not zeros followed by ones"):
        data.tokenize(pairs, data.load_tokenizer(tmp_path / "odd"), 32)


def test_no_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: there is no such folder to load a tokenizer from"):
        data.load_tokenizer(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no tokenizer; expected tokenizer"):
        data.load_tokenizer(tmp_path)


def test_broken_tokenizer(tokenizer_folder, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(tokenizer_folder, folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ValueError, match="broken: its tokenizer cannot be loaded") as caught:
        data.load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_code_in_the_folder_is_not_run(tokenizer_folder, tmp_path):
    folder = tmp_path / "evil"
    shutil.copytree(tokenizer_folder, folder)
    config = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    # Refused or read without its code: either is fine, running it is not.
    try:
        data.load_tokenizer(folder)
    except ValueError as error:
        assert "evil: its tokenizer cannot be loaded" in str(error)  # noqa: PT017
    assert not (tmp_path / "ran").exists()


def test_tokenizer_without_a_backend():
    with pytest.raises(ValueError, match="tokenizer object is not one of the `tokenizers` library"):
        data.tokenizer_fingerprint(object())


def test_some_rows_are_those_rows_and_another_table(tokenizer, pairs):
    whole = data.tokenize(pairs, tokenizer, 12)
    chosen = np.array([len(whole) - 1, 0])
    part = whole.rows(chosen)
    for place, row in enumerate(chosen):
        np.testing.assert_array_equal(part.row(place), whole.row(row))
        assert part.boundaries[place] == whole.boundaries[row]
    assert part.fingerprint not in (whole.fingerprint, whole.rows(chosen[::-1]).fingerprint)
