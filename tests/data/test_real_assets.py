"""The published files themselves, kept in the user's own cache folder; skipped where no package index has them."""

import itertools
import json
import os
import re

import numpy as np
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


def test_addresses():
    addresses = or_skip(data.state_of_the_union)
    assert (len(addresses), addresses[0].year, addresses[-1].year) == (233, 1790, 2021)
    assert addresses[0].text.startswith("Fellow-Citizens of the Senate and House of Representatives")
    read = data.read_corpus(data.sotu_corpus())
    assert next(read) == addresses[0].text


def test_brown_and_how_its_sentences_are_split():
    texts = or_skip(data.brown)
    # As the corpus's manual and NLTK count them.
    assert (len(texts), len({text.genre for text in texts})) == (500, 15)
    words = [sentence for text in texts for paragraph in text.paragraphs for sentence in paragraph]
    assert (len(words), sum(map(len, words))) == (57_340, 1_161_192)
    assert texts[0].sentences[0].endswith('produced "no evidence" that any irregularities took place.')
    right = found = there = 0
    for text in texts[::10]:
        written = " ".join(text.sentences)
        ends = set(itertools.accumulate((len(sentence) + 1 for sentence in text.sentences), initial=-1))
        split = {end for _, end in data.sentence_spans(written)}
        marked = {end for end in ends if re.search(r"""[.!?]["')]*$""", written[max(0, end - 4) : end])}
        right, found, there = right + len(split & ends), found + len(split), there + len(marked)
        assert len(list(data.split_sentences(text.text))) >= len(text.paragraphs)
    assert right / found > 0.998  # measured over all 500: 0.9994
    assert right / there > 0.985  # and 0.991


def test_three_kingdoms():
    chapters = or_skip(data.three_kingdoms)
    assert len(chapters) == 120
    assert chapters[0].startswith("第一回 宴桃园豪杰三结义")
    sentences = data.split_sentences(chapters[0])
    assert sentences[1:3] == ["滚滚长江东逝水，浪花淘尽英雄。", "是非成败转头空。"]
    assert list(data.read_corpus(data.three_kingdoms_corpus())) == chapters


# Sentences, words, and entities (LOC, MISC, ORG, PER): tables 1 and 2 of the paper; its sentences count -DOCSTART- too.
CONLL_2003 = {
    "train": (14_041, 203_621, [7140, 3438, 6321, 6600]),
    "valid": (3_250, 51_362, [1837, 922, 1341, 1842]),
    "test": (3_453, 46_435, [1668, 702, 1661, 1617]),
}


def test_conll2003():
    files = or_skip(data.conll2003)
    for split, (sentences, words, entities) in CONLL_2003.items():
        taggings = data.read_taggings(files[split])
        assert (taggings.scheme, taggings.loose, taggings.report.skipped) == ("IOB2", 0, 0)
        assert (len(taggings), sum(map(len, taggings.words))) == (sentences, words)
        found = [span.type for tags in taggings.tags for span in data.spans(tags, "IOB2")]
        assert [found.count(kind) for kind in ("LOC", "MISC", "ORG", "PER")] == entities
    assert taggings.words[0][:4] == ["SOCCER", "-", "JAPAN", "GET"]


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


def test_fashion_mnist():
    train, test = or_skip(data.fashion_mnist)
    # Section 2 and table 2 of the paper: 6,000 and 1,000 of each class.
    assert (len(train), len(test), train.size, train.channels) == (60_000, 10_000, (28, 28), 1)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert (train.names[0], train.names[9], test.names) == ("T-shirt/top", "Ankle boot", train.names)
    assert train.labels[:5].tolist() == [9, 0, 0, 3, 0]  # as its README shows the first rows
    # Mean and deviation that its users normalise by: 0.2860 and 0.3530.
    pixels = train.pixels
    assert abs(pixels.mean() / 255 - 0.2860) < 5e-5
    assert abs(pixels.std() / 255 - 0.3530) < 5e-5
