import json

import pytest
from transformers import AutoTokenizer


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("The cat sat on the mat. The cats ran.\n\nThe dog saw the cat.\n")
    (folder / "b.jsonl").write_text(json.dumps({"body": "Dogs and cats."}) + "\n")
    return folder


def test_command(command, corpus, tmp_path):
    out = tmp_path / "tokenizer"
    line = ["tokenizer", "train", "--corpus", corpus / "a.txt", corpus / "b.jsonl", "--vocab-size", "60", "--out", out]
    line += ["--text-column", "body", "--documents", "blank-line", "--lowercase", "--max-length", "64"]
    told = command(*line)
    assert (told.status, told.err) == (0, "")
    # Two documents of a.txt and one of b.jsonl; no character of the text is unknown to what was learnt from it.
    assert told.out.splitlines()[0] == "corpus: 3 documents"
    assert f"{out}: " in told.out
    assert " characters a token, 0.00% unknown" in told.out
    tokenizer = AutoTokenizer.from_pretrained(str(out))
    assert tokenizer.tokenize("THE cat") == ["the", "cat"]
    assert (tokenizer.model_max_length, tokenizer.mask_token) == (64, "[MASK]")

    again = command(*line)
    assert again.status == 2
    assert f"{out} already holds a tokenizer; replace it with --overwrite" in again.err
    before = (out / "tokenizer.json").read_bytes()
    assert command(*line, "--overwrite").status == 0
    assert (out / "tokenizer.json").read_bytes() == before


def test_bad_documents_are_counted(command, corpus, tmp_path):
    (corpus / "c.txt").write_bytes(b"caf\xe9")
    line = ["tokenizer", "train", "--corpus", f"{corpus}/*.txt", "--vocab-size", "60", "--out", tmp_path / "tokenizer"]
    told = command(*line)
    assert told.status == 2
    assert "c.txt, line 1, byte 4: is 0xe9, which is not UTF-8 text" in told.err
    assert not (tmp_path / "tokenizer").exists()
    told = command(*line, "--on-bad-document", "skip")
    assert told.out.startswith("corpus: 1 documents; 2 rows, 1 skipped (1 not UTF-8); the first: ")


def test_mistakes_are_one_line(refused, corpus, tmp_path):
    line = ["tokenizer", "train", "--out", tmp_path / "tokenizer"]
    assert refused(*line, "--corpus", tmp_path / "none.txt").endswith("none.txt: there is no such file or folder")
    message = refused(*line, "--corpus", corpus / "a.txt", "--vocab-size", "10")
    assert message.startswith("vocab_size is 10, but the special tokens and the text's single characters are ")
    (tmp_path / "tokenizer").write_text("")
    message = refused(*line, "--corpus", corpus / "a.txt")
    assert message.endswith("tokenizer is a file; choose a folder for the tokenizer")
    assert "corpus is empty" in refused(*line, "--corpus")
