"""Files are read, checked and answered in pieces, of which one at a time is in memory."""

import json
import tracemalloc

import numpy as np
import pytest

from jaxptft import data
from jaxptft.recipes.tasks import answering
from jaxptft.recipes.tasks.answering import Answered, Answering


class Request:
    batch_size = 2


def numbered(path, rows, text="word " * 40):
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"{number} {text}"}) + "\n" for number in range(rows))
    return data.open_source(path)


def first_words(read=None, seen=None):
    """Answers with the first word of each row, and notes the sizes of the pieces."""

    def answer(rows, batching, done):
        if seen is not None:
            seen.append(len(rows))
        done(len(rows))
        return Answered(
            ({"word": text.split()[0]} for text in rows.texts), np.array([len(t) > 1000 for t in rows.texts])
        )

    read = read or (lambda source: data.read_table(source, labelled=False, on_bad_row="skip"))
    return Answering(read, answer, "{long} of {rows} are long", None)


def test_pieces_come_in_order_and_are_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "PIECE", 4)
    source, seen, said = numbered(tmp_path / "rows.jsonl", 10), [], []
    made = first_words(seen=seen)
    lines = list(answering.answers(answering.from_source(source, made), made, Request(), say=said.append))
    assert lines == [{"row": number + 1, "word": str(number)} for number in range(10)]
    assert (seen, said) == ([4, 4, 2], [])


def test_bad_rows_are_counted_over_all_pieces_even_where_a_piece_has_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "PIECE", 2)
    rows = [{"text": text} for text in ("a", "", "", "", "b", "c" * 2000, "")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, made, said = data.open_source(tmp_path / "rows.jsonl"), first_words(), []
    lines = list(answering.answers(answering.from_source(source, made), made, Request(), say=said.append))
    assert [line["row"] for line in lines] == [1, 5, 6]
    assert said == ["4 bad rows skipped", "1 of 3 are long"]

    (tmp_path / "bad.jsonl").write_text('{"text": ""}\n' * 5)
    source = data.open_source(tmp_path / "bad.jsonl")
    with pytest.raises(data.EveryRowRefused, match="every row was refused; 5 rows, 5 skipped"):
        list(answering.answers(answering.from_source(source, made), made, Request(), say=said.append))


def test_every_row_is_checked_before_the_first_is_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "PIECE", 2)
    path, seen = tmp_path / "rows.jsonl", []
    source = numbered(path, 5)
    with path.open("a") as file:
        file.write('{"text": ""}\n')
    made = first_words(lambda source: data.read_table(source, labelled=False), seen)
    with pytest.raises(ValueError, match=r"row 6, column 'text': is empty"):
        next(answering.answers(answering.from_source(source, made), made, Request(), say=print))
    assert seen == []


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_memory_does_not_grow_with_the_file(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "PIECE", 64)
    path = tmp_path / f"rows.{suffix}"

    def peak(rows):
        if suffix == "csv":
            path.write_text("text\n" + "".join(f"{number} {'word ' * 200}\n" for number in range(rows)))
            source = data.open_source(path)
        else:
            source = numbered(path, rows, "word " * 200)
        made = first_words()
        tracemalloc.start()
        try:
            lines = answering.answers(answering.from_source(source, made), made, Request(), say=print)
            assert sum(1 for _ in lines) == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(256), peak(2560)  # the larger file is 2.5 MB
    assert many < few + 300_000
    assert path.stat().st_size > 2_500_000


def test_rows_in_memory_are_cut_into_pieces_and_their_bad_ones_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "PIECE", 2)
    rows = [{"text": text} for text in ("a", "", "b", "c", "d")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made, said = first_words(), []
    table = made.read(data.open_source(tmp_path / "rows.jsonl"))
    lines = list(answering.answers(answering.from_rows(table), made, Request(), say=said.append))
    assert [(line["row"], line["word"]) for line in lines] == [(1, "a"), (3, "b"), (4, "c"), (5, "d")]
    assert said == ["1 bad rows skipped"]


def test_plain_lines_tell_how_many_rows_are_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(answering, "PIECE", 4)
    source, made = numbered(tmp_path / "rows.jsonl", 6), first_words()
    list(answering.answers(answering.from_source(source, made), made, Request(), say=print))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("predictions: 6/6 ")
    assert line.endswith("rows/s  0 s left")


def test_only_the_columns_that_are_needed_are_read(tmp_path):
    wanted = []

    def rows(columns):
        wanted.append(tuple(columns))
        return iter([(1, ["a" for _ in columns]), (2, ["b" for _ in columns])])

    source, made = data.Source("rows", ("picture", "text", "label"), rows), first_words()
    lines = list(answering.answers(answering.from_source(source, made), made, Request(), say=print))
    assert [line["word"] for line in lines] == ["a", "b"]
    assert set(wanted) == {("text",)}
    with pytest.raises(ValueError, match="rows: no column could be the text; choose one"):
        answering.from_source(data.Source("rows", ("picture",), rows), made)
