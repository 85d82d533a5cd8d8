import json

import numpy as np
import pytest

from jaxptft import data

TEXTS = ["a fine film", "a dull, long film", 'he said "no"', "naïve 映画"]
LABELS = ["pos", "neg", "neg", "pos"]


def write(path, suffix):
    rows = list(zip(TEXTS, LABELS, strict=True))
    if suffix == "csv":
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    elif suffix == "tsv":
        path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    elif suffix == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "label": LABELS}), path)
    else:
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "ndjson", "json", "parquet", "CSV"])
def test_every_format_gives_the_same_table(tmp_path, suffix):
    path = tmp_path / f"train.{suffix}"
    write(path, suffix.lower())
    table = data.read_table(path)
    assert table.texts == TEXTS
    assert table.pairs is None
    assert table.names == ("neg", "pos")
    np.testing.assert_array_equal(table.labels, [1, 0, 0, 1])  # by hand
    assert table.labels.dtype == np.int32
    assert table.report == data.Report(rows=4)
    assert table.fingerprint == data.make_table(TEXTS, LABELS).fingerprint


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_byte_order_mark_and_line_ends(tmp_path, bom, newline):
    (tmp_path / "t.csv").write_bytes(bom + newline.join([b"text,label", b"a,x", b"b,y", b""]))
    (tmp_path / "t.jsonl").write_bytes(
        bom + newline.join([b'{"text":"a","label":"x"}', b"", b'{"text":"b","label":"y"}'])
    )
    for name, rows in (("t.csv", [2, 3]), ("t.jsonl", [1, 3])):  # lines of the file, by hand
        table = data.read_table(tmp_path / name)
        assert table.texts == ["a", "b"]
        np.testing.assert_array_equal(table.rows, rows)


def test_quoted_lines_and_long_fields(tmp_path):
    long = "word " * 60_000  # longer than the csv module takes unless told
    (tmp_path / "t.csv").write_text(f'text,label\n"two\nlines, ""quoted""",x\n\n"{long}",y\n')
    table = data.read_table(tmp_path / "t.csv")
    assert table.texts == ['two\nlines, "quoted"', long]
    np.testing.assert_array_equal(table.rows, [2, 5])  # the quoted row takes lines 2 and 3, line 4 is blank


def test_pairs_and_keys(tmp_path):
    (tmp_path / "t.csv").write_text("uid,premise,hypothesis,label\nq1,a,b,0\nq2,c,d,1\nq3,e,f,1\n")
    table = data.read_table(tmp_path / "t.csv", columns=data.Columns(id="uid"))
    assert (table.texts, table.pairs, table.keys) == (["a", "c", "e"], ["b", "d", "f"], ["q1", "q2", "q3"])
    chosen = table.select(np.array([2, 0]))
    assert (chosen.texts, chosen.pairs, chosen.keys) == (["e", "a"], ["f", "b"], ["q3", "q1"])
    np.testing.assert_array_equal(chosen.labels, [1, 0])
    np.testing.assert_array_equal(chosen.rows, [4, 2])


@pytest.mark.parametrize(
    ("value", "said"), [("null", "has no value"), ("1.5", "is 1.5"), ("true", "is True"), ('"\\u0000"', "NUL byte")]
)
def test_bad_key(tmp_path, value, said):
    row = '{"text": "a", "label": "%s", "uid": %s}\n'
    (tmp_path / "t.jsonl").write_text(row % ("x", '"q1"') + row % ("y", value))
    with pytest.raises(ValueError, match=rf"t\.jsonl, row 2, column 'uid': .*{said}"):
        data.read_table(tmp_path / "t.jsonl", columns=data.Columns(id="uid"))


def test_bad_pair_names_its_column(tmp_path):
    (tmp_path / "t.csv").write_text("premise,hypothesis,label\na,b,x\nc,,y\n")
    with pytest.raises(ValueError, match=r"t\.csv, row 3, column 'hypothesis': is empty"):
        data.read_table(tmp_path / "t.csv")


def test_labels_of_training_are_kept_at_evaluation(tmp_path):
    (tmp_path / "dev.csv").write_text("text,label\na,pos\nb,pos\n")
    table = data.read_table(tmp_path / "dev.csv", names=("zero", "pos", "neg"))
    assert table.names == ("zero", "pos", "neg")
    np.testing.assert_array_equal(table.labels, [1, 1])


def test_unlabelled(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na,-1\nb,\n")
    table = data.read_table(tmp_path / "t.csv", labelled=False, names=("x", "y"))
    assert table.labels is None
    assert table.names == ("x", "y")
    assert table.texts == ["a", "b"]


def test_fingerprint_covers_content_and_order():
    def of(texts=("a", "b"), labels=("x", "y"), **options):
        return data.make_table(texts, labels, **options).fingerprint

    others = [
        of(),
        of(texts=("a", "c")),
        of(texts=("b", "a")),
        of(texts=("ab", "b")),
        of(labels=("y", "x")),
        of(labels=("x", "z")),
        of(labels=None),
        of(pairs=("c", "d")),
        of(pairs=("d", "c")),
        of(names=("x", "y", "z")),
        of(names=("y", "x")),
    ]
    assert len(set(others)) == len(others)
    assert of(source="elsewhere") == of()


def test_rows_in_memory_are_checked():
    with pytest.raises(ValueError, match="the rows given, row 2, column 'text': is empty"):
        data.make_table(["a", ""], ["x", "y"])
    with pytest.raises(ValueError, match="movies: 1 values of 'label' for 2 texts; expected as many"):
        data.make_table(["a", "b"], ["x"], source="movies")
    with pytest.raises(ValueError, match="the rows given: has no rows"):
        data.make_table([], [])
    with pytest.raises(ValueError, match="row 1, column 'pair': has no value"):
        data.make_table(["a"], pairs=[None])
