"""The published files themselves, kept in the user's own cache folder; skipped where no package index has them."""

import json
import os

import pytest

from jaxptft import data

OWN = os.environ.get("JAXPTFT_CACHE")
_unavailable: list[str] = []


@pytest.fixture(autouse=True)
def user_cache(own_cache, monkeypatch):
    if OWN is None:
        monkeypatch.delenv("JAXPTFT_CACHE")
    else:
        monkeypatch.setenv("JAXPTFT_CACHE", OWN)


def or_skip(get, *arguments):
    if _unavailable:  # one attempt at a dead network is enough
        pytest.skip(_unavailable[0])
    try:
        return get(*arguments)
    except data.AssetUnavailable as error:
        _unavailable.append(str(error))
        pytest.skip(str(error))


# Positive and negative sentences, counted in the files with a separate script.
COUNTS = {"movies": (5242, 5326), "tweets": (2897, 1299), "amazon": (2128, 1482), "nyt": (2204, 2742)}


@pytest.mark.parametrize("domain", COUNTS)
def test_sentences(domain):
    rows = or_skip(data.hutto_sentences, domain)
    scores = [score for _, score in rows]
    assert (sum(score > 0 for score in scores), sum(score < 0 for score in scores)) == COUNTS[domain]
    assert len(rows) == sum(COUNTS[domain])
    assert all(-4 <= score <= 4 for score in scores)
    assert data.make_table([text for text, _ in rows]).report.skipped == 0


def test_news():
    rows = or_skip(data.bbc_news)
    counts = {label: sum(topic == label for _, topic in rows) for label in {topic for _, topic in rows}}
    # Files in each folder of the archive.
    assert counts == {"sports": 511, "business": 510, "politics": 417, "tech": 401, "entertainment": 386}
    assert len({text for text, _ in rows}) == 2127
    assert sum("£15.8m signing from" in text for text, _ in rows) >= 1  # the one that is latin-1
    assert all("�" not in text for text, _ in rows)


def test_minilm():
    folder = or_skip(data.minilm_folder)
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (6, 384, 30522)
    tokenizer = data.load_tokenizer(folder)
    data.check_vocabulary(tokenizer, config["vocab_size"])
    table = data.make_table(["A fine film.", "word " * 300])
    tokenized = data.tokenize(table, tokenizer, 256, cache=False)
    # The ids of [CLS] a fine film . [SEP]: lines of its vocab.txt.
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    expected = [vocabulary.index(word) for word in ("[CLS]", "a", "fine", "film", ".", "[SEP]")]
    assert tokenized.row(0).tolist() == expected
    # Its tokenizer.json asks for 128 and a fixed width, which must not be heard.
    assert tokenized.lengths.tolist() == [6, 256]
    assert tokenized.truncated == 1
