"""Numbers and label sets read from files; what is expected was written down by hand beside the file."""

import json

import datasets
import numpy as np
import pytest

from jaxptft import data


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_numbers_from_every_kind_of_file(tmp_path):
    values = [3.5, -1, 0.25]
    (tmp_path / "t.csv").write_text("text,label\na,3.5\nb,-1\nc, 2.5e-1\n")
    (tmp_path / "t.tsv").write_text("text\tlabel\na\t3.5\nb\t-1\nc\t0.25\n")
    jsonl(tmp_path / "t.jsonl", [{"text": t, "label": v} for t, v in zip("abc", values, strict=True)])
    stored = datasets.Dataset.from_dict({"text": list("abc"), "label": values})
    stored.to_parquet(tmp_path / "t.parquet")
    sources = [tmp_path / f"t.{suffix}" for suffix in ("csv", "tsv", "jsonl", "parquet")]
    tables = [data.read_table(source, target=data.Number()) for source in [*sources, stored]]
    for table in tables:
        np.testing.assert_array_equal(table.labels, values)
        assert (table.labels.dtype, table.names) == (np.float64, ())
    assert len({table.fingerprint for table in tables}) == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("good", "is 'good', expected a number such as 3.5"),
        ("1_000", "is '1_000', expected a number"),
        ("3,5", "is '3,5', expected a number"),
        ("", "has no number"),
        (None, "has no number"),
        ("nan", "is NaN, expected a number"),
        (float("nan"), "is NaN, expected a number"),
        ("inf", "is 'inf', expected a finite number"),
        (-1e39, "is -1e.39, expected a finite number"),
        pytest.param(10**400, r"is 1000.*\.\.\., expected a finite number", id="10^400"),
        (True, "is True, expected a number"),
        ([1.0], r"is \[1.0\] \(list\), expected a number"),
    ],
)
def test_what_is_no_number_is_refused_with_its_place(tmp_path, value, said):
    path = jsonl(tmp_path / "t.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": value}])
    with pytest.raises(ValueError, match=rf"t\.jsonl, row 2, column 'label': {said}"):
        data.read_table(path, target=data.Number())
    table = data.read_table(path, target=data.Number(), on_bad_row="skip")
    assert (table.labels.tolist(), table.report.skipped) == ([1.0], 1)


def test_numbers_are_split_and_selected_with_their_rows():
    table = data.make_table([f"text {n}" for n in range(10)], np.arange(10) / 4, target=data.Number())
    rest, held = data.split(table, 3, seed=0)
    assert len(held) == 3
    for part in (rest, held):
        assert part.labels.tolist() == [int(text.split()[1]) / 4 for text in part.texts]


SETS = [("a", ("x", "z")), ("b", ()), ("c", ("y",))]
TRUTH = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]  # of x, y, z


def test_label_sets_as_lists_delimited_text_and_columns(tmp_path):
    jsonl(tmp_path / "lists.jsonl", [{"text": text, "labels": list(names)} for text, names in SETS])
    (tmp_path / "text.csv").write_text('text,labels\na,"z, x"\nb,\nc,y\n')
    (tmp_path / "bars.tsv").write_text("text\tlabels\na\tx|z|x\nb\t\nc\ty\n")
    (tmp_path / "flags.csv").write_text("x,text,y,z\n1,a,0,1\n0,b,false,0.0\n0,c,True,0\n")
    lists = datasets.Features(
        {"text": datasets.Value("string"), "labels": [datasets.ClassLabel(names=["z", "y", "x"])]}
    )
    stored = datasets.Dataset.from_dict({"text": list("abc"), "labels": [[2, 0], [], [1]]}, features=lists)
    stored.to_parquet(tmp_path / "declared.parquet")
    expected = np.array(TRUTH, bool)
    for source, target in (
        (tmp_path / "lists.jsonl", data.LabelSet()),
        (tmp_path / "text.csv", data.LabelSet()),
        (tmp_path / "bars.tsv", data.LabelSet(delimiter="|")),
        (tmp_path / "flags.csv", data.LabelSet(columns=("x", "y", "z"))),
    ):
        table = data.read_table(source, target=target)
        assert table.names == ("x", "y", "z")
        np.testing.assert_array_equal(table.labels, expected)
        assert table.labels.dtype == bool
    for source in (stored, tmp_path / "declared.parquet"):  # the data set's own order
        table = data.read_table(source, target=data.LabelSet())
        assert table.names == ("z", "y", "x")
        np.testing.assert_array_equal(table.labels, expected[:, ::-1])


def test_names_of_training_are_kept(tmp_path):
    path = jsonl(tmp_path / "t.jsonl", [{"text": "a", "label": ["y"]}])
    table = data.read_table(path, target=data.LabelSet(), names=("x", "y"))
    assert (table.names, table.labels.tolist()) == (("x", "y"), [[False, True]])
    jsonl(path, [{"text": "a", "label": ["y"]}, {"text": "b", "label": ["y", "w"]}])
    for on_bad_row in ("error", "skip"):
        with pytest.raises(
            ValueError, match=r"t\.jsonl, row 2, column 'label': label 'w' is not known; known are: x, y"
        ):
            data.read_table(path, target=data.LabelSet(), names=("x", "y"), on_bad_row=on_bad_row)
    (tmp_path / "flags.csv").write_text("text,y,x\na,1,0\n")
    flags = data.LabelSet(columns=("y", "x"))
    assert data.read_table(tmp_path / "flags.csv", target=flags, names=("x", "y")).labels.tolist() == [[False, True]]
    with pytest.raises(ValueError, match="the model's labels are x, y, z; 'z' has no column"):
        data.read_table(tmp_path / "flags.csv", target=flags, names=("x", "y", "z"))
    with pytest.raises(ValueError, match="the model's labels are x, w; 'w' has no column"):
        data.read_table(tmp_path / "flags.csv", target=flags, names=("x", "w"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "has no labels; write an empty list or text for none"),
        ("['x', 'y']", "a list as text; write its labels with ',' between"),
        ("x,,y", "is 'x,,y', with nothing between two ','"),
        (["x", None], "has no label"),
        (["x", 1.5], "is 1.5"),
        ({"x": 1}, "dict.*expected a list of labels, or text"),
        (7, "is 7 .int., expected a list of labels, or text"),
    ],
)
def test_bad_label_sets_name_their_place(tmp_path, value, said):
    path = jsonl(tmp_path / "t.jsonl", [{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": value}])
    with pytest.raises(ValueError, match=rf"t\.jsonl, row 2, column 'label': .*{said}"):
        data.read_table(path, target=data.LabelSet())


def test_bad_flags_and_columns_are_named(tmp_path):
    flags = data.LabelSet(columns=("x", "y"))
    path = tmp_path / "t.csv"
    for value, said in (("2", "is '2', expected 0 or 1"), ("", "has no value, expected 0 or 1")):
        path.write_text(f"text,x,y\na,1,0\nb,0,{value}\n")
        with pytest.raises(ValueError, match=rf"t\.csv, row 3, column 'y': {said}"):
            data.read_table(path, target=flags)
    path.write_text("text,x\na,1\n")
    with pytest.raises(ValueError, match="there is no column 'y' for a label; columns found: 'text', 'x'"):
        data.read_table(path, target=flags)
    with pytest.raises(ValueError, match="label column 'x' is given twice"):
        data.LabelSet(columns=("x", "y", "x"))
    with pytest.raises(ValueError, match="label column 'x' is alone"):
        data.LabelSet(columns=("x",))
    with pytest.raises(ValueError, match="delimiter is empty"):
        data.LabelSet(delimiter="")


@pytest.mark.parametrize(("row", "said"), [([], "no row has a label"), (["x"], "every label is 'x'")])
def test_there_must_be_two_labels(tmp_path, row, said):
    path = jsonl(tmp_path / "t.jsonl", [{"text": "a", "label": row}])
    with pytest.raises(ValueError, match=f"column 'label': {said}; label sets need two labels"):
        data.read_table(path, target=data.LabelSet())


def test_fingerprints_cover_the_labels_and_their_kind():
    def of(labels, **options):
        return data.make_table(["a", "b"], labels, **options).fingerprint

    prints = [
        of([0.0, 1.0], target=data.Number()),
        of([0.0, 2.0], target=data.Number()),
        of([["x"], ["y"]], target=data.LabelSet()),
        of([["x"], ["x", "y"]], target=data.LabelSet()),
        of(["x", "y"]),
        of([0, 1]),
    ]
    assert len(set(prints)) == len(prints)
