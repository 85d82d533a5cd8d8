import gzip
import json
import os

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from jaxptft import data


def read(*sources, **options):
    return list(data.read_corpus([str(source) for source in sources], **options))


def write(path, content: str | bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines_of(*rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"


@pytest.fixture
def folder(tmp_path):
    """Five documents in files of every kind, and files that are none."""
    root = tmp_path / "texts"
    write(root / "b.txt", "\ufeffsecond\r\nline\r\n")
    write(root / "a" / "z.rst", "first\n")
    write(root / "c.md.gz", gzip.compress("drítte".encode()))
    write(root / "d.jsonl", lines_of({"text": "四", "id": 1}, {"text": "fünf", "id": 2}))
    write(root / "image.png", b"\x89PNG\0")
    write(root / "empty.txt", " \n")
    write(root / ".hidden" / "h.txt", "hidden")
    return root


def test_folder_is_read_through_and_through_by_name(folder):
    assert read(folder) == ["first", "second\nline", "drítte", "四", "fünf"]


def test_suffixes_and_globs_and_repeats(folder):
    write(folder / "x.log", "logged")
    assert read(folder, suffixes=[".log"])[-1] == "logged"
    assert read(folder / "x.log") == ["logged"]  # named itself: text, whatever its suffix
    assert read(f"{folder}/**/*.rst", folder / "a" / "z.rst", f"{folder}/*.txt") == ["first", "second\nline"]


def test_documents(tmp_path):
    path = write(tmp_path / "t.txt", "one\ntwo\n \n\nthree\n\n")
    assert read(path) == ["one\ntwo\n \n\nthree"]
    assert read(path, documents="line") == ["one", "two", "three"]
    assert read(path, documents="blank-line") == ["one\ntwo", "three"]


def test_tables(tmp_path):
    table = pyarrow.table({"content": ["one", "two"], "n": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == ["one", "two"]
    write(
        tmp_path / "t.jsonl.gz", gzip.compress(lines_of({"body": "b", "text": "t"}, {"body": "c", "text": ""}).encode())
    )
    assert read(tmp_path / "t.jsonl.gz") == ["t"]  # empty text is no document
    assert read(tmp_path / "t.jsonl.gz", text_column="body") == ["b", "c"]
    rows = datasets.Dataset.from_dict({"text": ["x", "y"]})
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == ["x", "y"]
    assert read(tmp_path / "saved", split="test") == ["y"]


def test_it_streams(tmp_path):
    path = write(tmp_path / "t.jsonl", lines_of({"text": "good"}) + "broken\n")
    stream = data.read_corpus(path)
    assert next(stream) == "good"  # before the bad line is looked at
    with pytest.raises(ValueError, match=r"t\.jsonl, row 2: is not valid JSON"):
        next(stream)


# name of the file, its bytes, what the message says, the documents that remain when it is skipped
BAD = {
    "latin-1": (
        "t.txt",
        b"one\n\ncaf\xe9\n\ntwo",
        r"t\.txt, line 3, byte 9: is 0xe9, which is not UTF-8",
        ["one", "two"],
    ),
    "NUL": ("t.txt", b"one\n\na\0b\n\ntwo", r"t\.txt, line 3, byte 7: is a NUL byte", ["one", "two"]),
    "after a byte order mark": ("t.txt", b"\xef\xbb\xbfa\xff\n\ntwo", r"line 1, byte 5: is 0xff", ["two"]),
    "no such column": (
        "t.jsonl",
        lines_of({"text": "one"}, {"id": 3}, {"text": "two"}).encode(),
        r"t\.jsonl, row 2: has no column 'text'; columns found: 'id'",
        ["one", "two"],
    ),
    "not a text": (
        "t.jsonl",
        lines_of({"text": "one"}, {"text": 3}, {"text": "two"}).encode(),
        r"t\.jsonl, row 2, column 'text': is 3 \(int\), expected text",
        ["one", "two"],
    ),
    "null": (
        "t.jsonl",
        lines_of({"text": "one"}, {"text": None}, {"text": "two"}).encode(),
        r"t\.jsonl, row 2, column 'text': has no value",
        ["one", "two"],
    ),
    "not an object": ("t.jsonl", b'{"text": "one"}\n[1]\n', r"t\.jsonl, row 2: is a JSON list", ["one"]),
    "cut gzip": (
        "t.txt.gz",
        gzip.compress(b"one\n\ntwo\n\n")[:-6],
        r"t\.txt\.gz: cannot be unpacked \(Compressed file ended",
        ["one", "two"],
    ),
    "no gzip": ("t.txt.gz", b"plain", r"t\.txt\.gz: cannot be unpacked \(Not a gzipped file", None),
    "no parquet": ("t.parquet", b"PAR1", r"t\.parquet: is not a whole Parquet file", None),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_documents(tmp_path, name):
    file, content, message, left = BAD[name]
    path = write(tmp_path / file, content)
    with pytest.raises(ValueError, match=message):
        read(path, documents="blank-line")
    tally = data.DocumentTally("skip")
    if left is None:
        with pytest.raises(ValueError, match="there is no text in the corpus; 1 rows, 1 skipped"):
            read(path, documents="blank-line", tally=tally)
    else:
        assert read(path, documents="blank-line", tally=tally) == left
    report = tally.report()
    assert (report.rows, report.skipped) == (len(left or ()) + 1, 1)
    assert file in report.examples[0]


SOURCES = {
    "no such file": ("missing.txt", FileNotFoundError, r"missing\.txt: there is no such file or folder"),
    "pipe": ("pipe", FileNotFoundError, r"pipe: is no ordinary file; rows are read more than once"),
    "no match": ("*.txt", FileNotFoundError, r"\*\.txt: no file matches"),
    "no text": ("white.txt", ValueError, r"white\.txt: there is no text in the corpus$"),
    "empty folder": ("nothing", ValueError, r"nothing: holds no file that ends in \.txt, .*\(it is empty\)"),
    "folder of others": ("images", ValueError, r"images: holds no file .*\(suffixes found: \.png, none\)"),
    "table": ("t.csv", ValueError, r"t\.csv: is a table; a corpus is text, JSONL"),
    "no column": ("n.jsonl", ValueError, r"n\.jsonl, row 1: no column could be the text; .* 'n'"),
    "two columns": ("two.jsonl", ValueError, r"two\.jsonl, row 1: several columns could be the text"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_bad_sources(tmp_path, name):
    source, kind, message = SOURCES[name]
    write(tmp_path / "white.txt" if name == "no text" else tmp_path / "white", " \n")
    write(tmp_path / "t.csv", "text\na\n")
    write(tmp_path / "n.jsonl", lines_of({"n": 1}))
    write(tmp_path / "two.jsonl", lines_of({"content": "a", "review": "b"}))
    write(tmp_path / "images" / "i.png", b"")
    write(tmp_path / "images" / "Makefile", b"")
    (tmp_path / "nothing").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(kind, match=message):
        read(tmp_path / source)


def test_bad_arguments(tmp_path):
    path = write(tmp_path / "t.txt", "a")
    with pytest.raises(ValueError, match="documents is 'page'; choose one of file, line, blank-line"):
        data.read_corpus(path, documents="page")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_bad_document is 'drop'; choose 'error' or 'skip'"):
        data.read_corpus(path, on_bad_document="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"suffix 'log' must begin with a full stop: '\.log'"):
        data.read_corpus(path, suffixes=["log"])
    with pytest.raises(ValueError, match="the corpus names no source"):
        data.read_corpus([])
    with pytest.raises(TypeError, match="corpus source is int, expected a path, a glob or a hub name"):
        data.read_corpus([3])
    write(tmp_path / "saved" / "dataset_dict.json", "{}")
    with pytest.raises(ValueError, match="saved: the data set saved here cannot be read"):
        read(tmp_path / "saved")


class Builder:
    """What `datasets.load_dataset_builder` gives, as far as a corpus needs it."""

    config_id, hash = "default", "commit"
    config = type("Config", (), {"data_files": {"train": ["hf://owner/name@commit/a.parquet"]}})

    def __init__(self, rows):
        self.rows = rows

    def as_streaming_dataset(self):
        return {"train": datasets.IterableDataset.from_generator(lambda: iter(self.rows)), "test": []}


def test_hub(monkeypatch):
    asked = []

    def load(path, name):
        asked.append((path, name))
        if name == "name":
            raise datasets.exceptions.DatasetNotFoundError("no data set owner")
        return Builder([{"text": "one"}, {"text": None}, {"text": "two"}])

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    assert read("owner/name", on_bad_document="skip") == ["one", "two"]
    assert asked == [("owner", "name"), ("owner/name", None)]
    with pytest.raises(ValueError, match="owner/name, row 2, column 'text': has no value"):
        read("owner/name")
    with pytest.raises(ValueError, match="owner/name: there is no split 'dev'; splits found: 'train', 'test'"):
        read("owner/name", split="dev")


def test_hub_that_breaks_off(monkeypatch):
    def rows():
        yield {"text": "one"}
        raise OSError("connection reset")

    builder = Builder(None)
    builder.as_streaming_dataset = lambda: {"train": rows()}  # type: ignore[method-assign]
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda path, name: builder)
    stream = data.read_corpus("texts")
    assert next(stream) == "one"
    with pytest.raises(ConnectionError, match=r"texts: the hub broke off after row 1 \(connection reset\)"):
        next(stream)
