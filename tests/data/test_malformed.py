"""Every way a file may be wrong: the message names the file, the row as an editor counts it, and the column."""

import json

import numpy as np
import pytest

from jaxptft import data

GOOD = [("a fine film", "pos"), ("a dull film", "neg")]


def csv_file(bad: bytes, header: bytes = b"text,label") -> bytes:
    """Header, two good rows (lines 2 and 3), the bad one (line 4), a good one (line 5)."""
    return header + b"\na fine film,pos\na dull film,neg\n" + bad + b"\nfine again,pos\n"


def tsv_file(bad: bytes) -> bytes:
    return b"text\tlabel\na fine film\tpos\na dull film\tneg\n" + bad + b"\nfine again\tpos\n"


def jsonl_file(bad: bytes) -> bytes:
    """Three good rows around the bad one, which is line 3."""
    good = [json.dumps({"text": text, "label": label}).encode() for text, label in GOOD]
    return b"\n".join([*good, bad, good[0]]) + b"\n"


# suffix, bytes of the file, row, column (None: the whole row), reason, what the message says
ROWS = {
    "csv-too-many-fields": ("csv", csv_file(b"one, two,pos"), 4, None, "ragged row", "has 3 fields where .* has 2"),
    "csv-too-few-fields": ("csv", csv_file(b"only text"), 4, "label", "ragged row", "has 1 field where .* has 2"),
    "csv-empty-text": ("csv", csv_file(b",pos"), 4, "text", "empty text", "is empty"),
    "csv-blank-text": ("csv", csv_file(b" \t ,pos"), 4, "text", "empty text", "is empty"),
    "csv-wide-blank-text": ("csv", csv_file("\u3000\u00a0,pos".encode()), 4, "text", "empty text", "is empty"),
    "csv-empty-label": ("csv", csv_file(b"text,"), 4, "label", "missing value", "has no label"),
    "csv-blank-label": ("csv", csv_file(b"text,  "), 4, "label", "missing value", "has no label"),
    "csv-nan-label": ("csv", csv_file(b"text,NaN"), 4, "label", "NaN", "is 'NaN', expected a class"),
    "csv-real-label": ("csv", csv_file(b"text,0.5"), 4, "label", "wrong type", "is '0.5', a real number"),
    "csv-infinite-label": ("csv", csv_file(b"text,-inf"), 4, "label", "wrong type", "is '-inf', a real number"),
    "csv-unlabelled": ("csv", csv_file(b"text,-1"), 4, "label", "unlabelled", "is -1, which marks an unlabelled row"),
    "csv-latin-1-text": ("csv", csv_file(b"caf\xe9,pos"), 4, "text", "not UTF-8", r"byte 0xe9 at character 4"),
    "csv-latin-1-label": ("csv", csv_file(b"text,n\xe9g"), 4, "label", "not UTF-8", r"byte 0xe9 at character 2"),
    "csv-cut-utf-8": ("csv", csv_file(b"\xe4\xb8,pos"), 4, "text", "not UTF-8", r"byte 0xe4 at character 1"),
    "csv-encoded-surrogate": ("csv", csv_file(b"\xed\xa0\x80,pos"), 4, "text", "not UTF-8", r"byte 0xed at char"),
    "csv-nul-text": ("csv", csv_file(b"a\0b,pos"), 4, "text", "NUL byte", r"NUL byte \(character 2\)"),
    "csv-nul-label": ("csv", csv_file(b"text,\0"), 4, "label", "NUL byte", r"NUL byte \(character 1\)"),
    "csv-text-after-quote": ("csv", csv_file(b'"a" b,pos'), 4, None, "broken quoting", "is not valid CSV"),
    "csv-multi-line-before": (
        "csv",
        b'text,label\n"two\nlines",pos\nother,neg\n\n,pos\nlast,neg\n',
        6,
        "text",
        "empty text",
        "is empty",
    ),
    "csv-carriage-returns": ("csv", b"text,label\ra,pos\rb,neg\r,neg\rc,pos\r", 4, "text", "empty text", "is empty"),
    "tsv-too-many-fields": ("tsv", tsv_file(b"a\tb\tpos"), 4, None, "ragged row", "has 3 fields where .* has 2"),
    "tsv-too-few-fields": ("tsv", tsv_file(b"a"), 4, "label", "ragged row", "has 1 field where .* has 2"),
    "tsv-spaces-for-tab": ("tsv", tsv_file(b"a    pos"), 4, "label", "ragged row", "has 1 field where .* has 2"),
    "tsv-empty-text": ("tsv", tsv_file(b"\tpos"), 4, "text", "empty text", "is empty"),
    "tsv-unlabelled": ("tsv", tsv_file(b"a\t-1"), 4, "label", "unlabelled", "unlabelled row"),
    "tsv-not-utf-8": ("tsv", tsv_file(b"a\xff\tpos"), 4, "text", "not UTF-8", "byte 0xff at character 2"),
    "jsonl-cut-short": ("jsonl", jsonl_file(b'{"text": "a", "la'), 3, None, "invalid JSON", "may be cut short"),
    "jsonl-trailing-comma": ("jsonl", jsonl_file(b'{"text": "a",}'), 3, None, "invalid JSON", "is not valid JSON"),
    "jsonl-two-objects": ("jsonl", jsonl_file(b"{} {}"), 3, None, "invalid JSON", "Extra data at character 4"),
    "jsonl-list": ("jsonl", jsonl_file(b'["a", "pos"]'), 3, None, "invalid JSON", "is a JSON list, expected an object"),
    "jsonl-null": ("jsonl", jsonl_file(b"null"), 3, None, "invalid JSON", "is a JSON NoneType, expected an object"),
    "jsonl-deep": ("jsonl", jsonl_file(b'{"text":' + b"[" * 200_000), 3, None, "invalid JSON", "is not JSON that can"),
    "jsonl-long-number": (
        "jsonl",
        jsonl_file(b'{"text": "a", "label": ' + b"9" * 5000 + b"}"),
        3,
        None,
        "invalid JSON",
        "is not JSON that can",
    ),
    "jsonl-not-utf-8": ("jsonl", jsonl_file(b'{"text": "\xe9"}'), 3, None, "not UTF-8", r"byte 0xe9 at byte 11"),
    "jsonl-raw-nul": ("jsonl", jsonl_file(b'{"text": "\0"}'), 3, None, "NUL byte", r"NUL byte \(character 11\)"),
    "jsonl-escaped-nul": (
        "jsonl",
        jsonl_file(rb'{"text": "ab\u0000", "label": "pos"}'),
        3,
        "text",
        "NUL byte",
        r"NUL byte \(character 3\)",
    ),
    "jsonl-lone-surrogate": (
        "jsonl",
        jsonl_file(rb'{"text": "a\ud800", "label": "pos"}'),
        3,
        "text",
        "not UTF-8",
        r"surrogate U\+D800 at character 2",
    ),
    "jsonl-no-text": ("jsonl", jsonl_file(b'{"label": "pos"}'), 3, "text", "missing value", "has no value"),
    "jsonl-no-label": ("jsonl", jsonl_file(b'{"text": "a"}'), 3, "label", "missing value", "has no label"),
    "jsonl-null-text": (
        "jsonl",
        jsonl_file(b'{"text": null, "label": "pos"}'),
        3,
        "text",
        "missing value",
        "has no value",
    ),
    "jsonl-nan-text": ("jsonl", jsonl_file(b'{"text": NaN, "label": "pos"}'), 3, "text", "NaN", "is NaN, expected"),
    "jsonl-nan-label": ("jsonl", jsonl_file(b'{"text": "a", "label": NaN}'), 3, "label", "NaN", "is NaN, expected"),
    "jsonl-number-text": (
        "jsonl",
        jsonl_file(b'{"text": 7, "label": "pos"}'),
        3,
        "text",
        "wrong type",
        r"is 7 \(int\), expected text",
    ),
    "jsonl-list-text": (
        "jsonl",
        jsonl_file(b'{"text": ["a"], "label": "pos"}'),
        3,
        "text",
        "wrong type",
        r"\(list\), expected text",
    ),
    "jsonl-real-label": (
        "jsonl",
        jsonl_file(b'{"text": "a", "label": 1.0}'),
        3,
        "label",
        "wrong type",
        r"is 1.0 \(float\), expected a class name",
    ),
    "jsonl-object-label": (
        "jsonl",
        jsonl_file(b'{"text": "a", "label": {"x": 1}}'),
        3,
        "label",
        "wrong type",
        r"\(dict\), expected a class name",
    ),
    "jsonl-empty-text": (
        "jsonl",
        jsonl_file(b'{"text": "", "label": "pos"}'),
        3,
        "text",
        "empty text",
        "is empty",
    ),
    "jsonl-unlabelled": (
        "jsonl",
        jsonl_file(b'{"text": "a", "label": -1}'),
        3,
        "label",
        "unlabelled",
        "unlabelled row",
    ),
}


@pytest.mark.parametrize(("suffix", "content", "row", "column", "reason", "said"), ROWS.values(), ids=ROWS)
class TestBadRow:
    def test_error_names_file_row_and_column(self, tmp_path, suffix, content, row, column, reason, said):
        path = tmp_path / f"train.{suffix}"
        path.write_bytes(content)
        place = rf"train\.{suffix}, row {row}" + (f", column '{column}'" if column else "")
        with pytest.raises(ValueError, match=f"{place}: .*{said}") as caught:
            data.read_table(path)
        assert "\n" not in str(caught.value)

    def test_skip_counts_exactly(self, tmp_path, suffix, content, row, column, reason, said):
        path = tmp_path / f"train.{suffix}"
        path.write_bytes(content)
        table = data.read_table(path, on_bad_row="skip")
        assert (table.report.rows, table.report.skipped, table.report.by_reason) == (4, 1, {reason: 1})
        assert len(table) == 3  # by hand: every file above holds three good rows
        assert row not in table.rows
        assert len(table.report.examples) == 1
        assert f"row {row}" in table.report.examples[0]


# name of the file, its bytes, what the message says
FILES = {
    "csv-empty": ("t.csv", b"", r"t\.csv: is empty, expected a header and rows"),
    "csv-blank-lines": ("t.csv", b"\n\n\n", r"t\.csv: is empty"),
    "csv-bom-only": ("t.csv", b"\xef\xbb\xbf", r"t\.csv: is empty"),
    "csv-header-only": ("t.csv", b"text,label\n", r"t\.csv: has a header and no rows"),
    "csv-header-not-utf-8": ("t.csv", b"t\xe9xt,label\na,b\n", r"t\.csv, row 1: the header is not UTF-8 text"),
    "csv-utf-16": ("t.csv", "text,label\na,b\n".encode("utf-16"), r"t\.csv, row 1: the header .*UTF-8"),
    "csv-header-nul": ("t.csv", b"te\0xt,label\na,b\n", r"t\.csv, row 1: the header holds a NUL byte"),
    "csv-header-quoting": ("t.csv", b'"text"x,label\na,b\n', r"t\.csv, row 1: the header is not valid CSV"),
    "csv-open-quote": ("t.csv", b'text,label\na,b\n"c,d\ne,f\n', r"t\.csv, row 3: a quote is opened .* never closed"),
    "csv-repeated-column": ("t.csv", b"text,label,text\na,b,c\n", r"t\.csv: column 'text' appears twice"),
    "csv-no-text": ("t.csv", b"words,label\na,b\n", r"t\.csv: no column could be the text; .*'words', 'label'"),
    "csv-no-label": ("t.csv", b"text,stars\na,b\n", r"t\.csv: no column could be the label; .*'text', 'stars'"),
    "csv-two-texts": ("t.csv", b"text,review,label\na,b,c\n", r"t\.csv: several .* the text \('text', 'review'\)"),
    "csv-two-labels": ("t.csv", b"text,label,class\na,b,c\n", r"t\.csv: several .* label \('label', 'class'\)"),
    "csv-semicolons": ("t.csv", b"text;label\na;b\n", r"t\.csv: no column .*columns found: 'text;label'"),
    "csv-one-class": ("t.csv", b"text,label\na,pos\nb,pos\n", r"t\.csv, column 'label': every row has label 'pos'"),
    "csv-all-unlabelled": ("t.csv", b"text,label\na,-1\nb,-1\n", r"t\.csv, row 2, column 'label': is -1"),
    "jsonl-empty": ("t.jsonl", b"", r"t\.jsonl: is empty, expected one JSON object a line"),
    "jsonl-array": ("t.json", b'[{"text": "a", "label": 1}]', r"t\.json: holds one JSON array, expected one JSON obj"),
    "jsonl-nothing-readable": ("t.jsonl", b"text,label\na,b\n", r"t\.jsonl, row 1: is not valid JSON.*no row of this"),
    "jsonl-no-keys": ("t.jsonl", b"{}\n{}\n", r"t\.jsonl, row 1: is an object without keys"),
    "jsonl-no-text": ("t.jsonl", b'{"label": 1}\n', r"t\.jsonl: no column could be the text"),
    "parquet-empty": ("t.parquet", b"", r"t\.parquet: is empty, expected a Parquet file"),
    "parquet-other": ("t.parquet", b"text,label\na,b\n" * 9, r"t\.parquet: is not a whole Parquet file"),
    "unknown-suffix": ("t.xlsx", b"PK", r"t\.xlsx: suffix '\.xlsx' is not known; expected one of \.csv, \.tsv"),
}


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize(("name", "content", "said"), FILES.values(), ids=FILES)
def test_bad_file(tmp_path, name, content, said, on_bad_row):
    path = tmp_path / name
    path.write_bytes(content)
    if said.endswith("is -1") and on_bad_row == "skip":
        said = r"t\.csv: every row was refused; 2 rows, 2 skipped \(2 unlabelled\)"
    with pytest.raises(ValueError, match=said) as caught:
        data.read_table(path, on_bad_row=on_bad_row)
    assert "\n" not in str(caught.value)


def test_json_nan_is_counted_with_its_kind(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(
        jsonl_file(b'{"text": NaN, "label": "pos"}')
        + b'{"text": 3, "label": "pos"}\n' * 2
        + b'{"text": "", "label": "pos"}\n' * 7
    )
    report = data.read_table(path, on_bad_row="skip").report
    # By hand: 3 good rows, 1 + 2 + 7 bad ones; examples are capped at five.
    assert report.rows == 13
    assert report.skipped == 10
    assert report.by_reason == {"NaN": 1, "wrong type": 2, "empty text": 7}
    assert len(report.examples) == 5
    assert str(report).startswith("13 rows, 10 skipped (1 NaN, 7 empty text, 2 wrong type); the first: ")
    assert str(data.Report(rows=3)) == "3 rows, none skipped"


def parquet(path, **columns):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


PARQUET_ROWS = {
    "null-text": ({"text": ["a", "b", None], "label": [0, 1, 0]}, "text", "missing value", "has no value"),
    "null-label": ({"text": ["a", "b", "c"], "label": [0, 1, None]}, "label", "missing value", "has no label"),
    "real-label": ({"text": ["a", "b", "c"], "label": [0.0, 1.0, 0.5]}, None, None, r"row 1, column 'label': is 0.0"),
    "unlabelled": ({"text": ["a", "b", "c"], "label": [0, 1, -1]}, "label", "unlabelled", "is -1"),
    "empty-text": ({"text": ["a", "b", ""], "label": ["x", "y", "x"]}, "text", "empty text", "is empty"),
    "nul-text": ({"text": ["a", "b", "c\0"], "label": ["x", "y", "x"]}, "text", "NUL byte", "holds a NUL byte"),
}


@pytest.mark.parametrize(("columns", "column", "reason", "said"), PARQUET_ROWS.values(), ids=PARQUET_ROWS)
def test_bad_parquet_row(tmp_path, columns, column, reason, said):
    path = parquet(tmp_path / "t.parquet", **columns)
    place = rf"t\.parquet, row 3, column '{column}': " if column else ""
    with pytest.raises(ValueError, match=place + said):
        data.read_table(path)
    if reason:
        assert data.read_table(path, on_bad_row="skip").report.by_reason == {reason: 1}


def test_parquet_string_that_is_not_utf8(tmp_path):
    import pyarrow

    raw = pyarrow.array([b"fine", b"a\xff", b"good"], pyarrow.binary())
    # A zero-copy relabelling, as writers that do not check their bytes produce.
    text = pyarrow.Array.from_buffers(pyarrow.string(), len(raw), raw.buffers())
    path = parquet(tmp_path / "t.parquet", text=text, label=pyarrow.array([0, 1, 1]))
    with pytest.raises(ValueError, match=r"t\.parquet, row 2, column 'text': is not UTF-8 text \(byte 0xff at"):
        data.read_table(path)
    assert data.read_table(path, on_bad_row="skip").texts == ["fine", "good"]


@pytest.mark.parametrize("keep", [10, -1, -20])
def test_truncated_parquet(tmp_path, keep):
    path = parquet(tmp_path / "t.parquet", text=["a", "b"] * 500, label=[0, 1] * 500)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"t\.parquet: is not a whole Parquet file .*it may be cut short"):
        data.read_table(path)


def test_damaged_parquet_page(tmp_path):
    texts = [str(number) * 20 for number in np.random.default_rng(0).integers(0, 10**9, 2000)]
    path = parquet(tmp_path / "t.parquet", text=texts, label=[0, 1] * 1000)
    damaged = bytearray(path.read_bytes())
    damaged[4:400] = b"\xff" * 396
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"t\.parquet: its data cannot be read .*it may be damaged"):
        data.read_table(path)


def test_parquet_without_rows(tmp_path):
    import pyarrow

    path = parquet(tmp_path / "t.parquet", text=pyarrow.array([], pyarrow.string()), label=pyarrow.array([], "int32"))
    with pytest.raises(ValueError, match=r"t\.parquet: has no rows"):
        data.read_table(path)


def test_unknown_label_is_an_error_even_when_skipping(tmp_path):
    path = tmp_path / "dev.csv"
    path.write_text("text,label\na,pos\nb,maybe\n")
    for on_bad_row in ("error", "skip"):
        with pytest.raises(
            ValueError, match=r"dev\.csv, row 3, column 'label': label 'maybe' is not known.*: neg, pos"
        ):
            data.read_table(path, names=("neg", "pos"), on_bad_row=on_bad_row)


def test_on_bad_row_is_checked(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,label\na,pos\nb,neg\n")
    with pytest.raises(ValueError, match="on_bad_row is 'ignore'; choose 'error' or 'skip'"):
        data.read_table(path, on_bad_row="ignore")  # type: ignore[arg-type]
