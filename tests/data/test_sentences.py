"""Expected boundaries are those a reader sets; each line is one rule."""

import pytest

from jaxptft import data

CASES = {
    "plain": ["It rained.", "We stayed in."],
    "question and exclamation": ["Why?", "Because!", "So it is."],
    "title": ["Mr. Smith met Dr. Jones at St. Mary's.", "They left."],
    "initials": ["J. R. R. Tolkien wrote it.", "He did."],
    "abbreviation inside": ["It rose, e.g. Monday, by 3.5 per cent.", "Then it fell."],
    "abbreviation at the end": ["He lives in the U.S.", "She does not."],
    "abbreviation before a name": ["The U.S. Senate met at 9 a.m. Monday."],
    "company": ["Smith & Co. Ltd. sold it to Brown Inc.", "The price was low."],
    "number": ["See No. 5 and Fig. 2.", "No.", "It is there."],
    "lower case goes on": ['"Why?" he asked.', "Nobody knew."],
    "closing quote": ['He said "Go."', '"I will," she said.'],
    "brackets": ["(It was late.)", "We slept."],
    "ellipsis": ["He waited...", "Nobody came."],
    "ellipsis inside": ["He waited ... and waited."],
    "numbered list": ["1. Mix the flour."],
    "letter at the end": ["We chose plan B.", "The rest followed."],
    "one sentence": ["no full stop at all"],
    "decimal": ["Pi is 3.14159 and no more."],
}


@pytest.mark.parametrize("name", CASES)
def test_english(name):
    assert data.split_sentences(" ".join(CASES[name])) == CASES[name]


CHINESE = {
    "no spaces": ["天下大势，分久必合。", "合久必分！", "为何？", "且听下文；", "完"],
    "closing quote belongs to it": ["玄德曰：“白身。”", "卓甚轻之。"],
    "the sentence goes on after the quotation": ["“快走！”，他说。", "众人皆去。"],
    "several marks": ["真的吗？！", "不知道……", "好。"],
    "brackets": ["（见下文。）", "又云。"],
    "with English": ["他说OK。", "Then he left.", "众人散去。"],
}


@pytest.mark.parametrize("name", CHINESE)
def test_chinese(name):
    whole = "".join(CHINESE[name]).replace("left.众", "left. 众")
    if name == "several marks":  # an ellipsis ends nothing by itself
        assert data.split_sentences(whole) == ["真的吗？！", "不知道……好。"]
    else:
        assert data.split_sentences(whole) == CHINESE[name]


def test_a_blank_line_ends_a_sentence_and_a_line_feed_does_not():
    assert data.split_sentences("A title\n\nIt goes\non here.\n \n\nThe end") == [
        "A title",
        "It goes\non here.",
        "The end",
    ]


@pytest.mark.parametrize("text", ["", "  \n\n ", "\u3000"])
def test_no_text(text):
    assert data.split_sentences(text) == data.sentence_spans(text) == []


def test_spans_leave_nothing_out():
    text = "  One here.  Two\n\n\nthere! 三。四。 \n"
    spans = data.sentence_spans(text)
    assert [text[start:end] for start, end in spans] == ["One here.", "  Two", "\n\n\nthere!", " 三。", "四。"]
    assert "".join(text[start:end] for start, end in spans) == text.strip()


def test_long_runs_take_linear_time():
    # Patterns that back up would take hours.
    for unit in (".", "。", "\n", "a", "“", " .", "1. "):
        text = unit * 20_000
        assert "".join(text[start:end] for start, end in data.sentence_spans(text)) == text.strip()
