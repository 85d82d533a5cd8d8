import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from jaxptft import data


@pytest.fixture
def told(finished, files, command, tmp_path):
    """What `evaluate` and `predict` make of the same rows."""
    assert command("predict", finished.out, "--data", files.test, "--out", tmp_path / "p.jsonl").status == 0
    assert command("evaluate", finished.out, "--data", files.test, "--out", tmp_path / "deep/e.json").status == 0
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    return json.loads((tmp_path / "deep/e.json").read_text()), lines


def test_the_numbers_are_scikit_learns_on_the_predictions(told, files):
    evaluated, lines = told
    table = data.read_table(str(files.test), names=("neg", "pos"))
    truth = [table.names[label] for label in table.labels]
    predicted = [line["label"] for line in lines]
    assert evaluated["metrics"]["classification/accuracy"] == accuracy_score(truth, predicted)
    assert evaluated["metrics"]["classification/macro_f1"] == f1_score(truth, predicted, average="macro")
    np.testing.assert_array_equal(evaluated["confusion"], confusion_matrix(truth, predicted, labels=["neg", "pos"]))


def test_the_run_reported_the_same_numbers(told, finished):
    report = json.loads((finished.out / "report.json").read_text())
    assert told[0] == report["test"]


def test_a_run_folder_and_its_model_folder_are_the_same(finished, files, command):
    one, other = (command("evaluate", folder, "--data", files.dev) for folder in (finished.out, finished.out / "model"))
    assert (one.status, one.out) == (0, other.out)
    assert "24 rows from" in one.out
    assert "truth \\ predicted" in one.out


def test_bad_rows_are_skipped_and_counted_when_asked(finished, command, csv_file, tmp_path):
    rows = csv_file(tmp_path / "rows.csv", [("it was good", "pos"), ("", "neg"), ("it was bad", "neg")])
    told = command("evaluate", finished.out, "--data", rows, "--on-bad-row", "skip")
    assert f"2 rows from {rows}, 1 skipped" in told.out


def test_long_texts_are_cut_and_said(finished, command, csv_file, tmp_path):
    rows = csv_file(tmp_path / "rows.csv", [("good " * 40, "pos"), ("it was bad", "neg")])
    for folder in (finished.out, finished.out / "model"):
        told = command("evaluate", folder, "--data", rows)
        assert "1 of 2 texts are longer than 16 tokens and were cut" in told.out  # as in training
    told = command("evaluate", finished.out, "--data", rows, "--max-length", "18")
    assert "1 of 2 texts are longer than 18 tokens and were cut" in told.out


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([("it was good", "meh")], "rows.csv, row 2, column 'label': label 'meh' is not known; known are: neg, pos"),
        ([], "has a header and no rows"),
        ([("", "pos")], "row 2, column 'text': is empty"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, expected, finished, refused, csv_file, tmp_path):
    file = csv_file(tmp_path / "rows.csv", rows)
    assert expected in refused("evaluate", finished.out, "--data", file)


def test_unlabelled_rows_a_missing_head_and_an_existing_file_are_refused(
    finished, refused, files, csv_file, tmp_path, encoder
):
    file = csv_file(tmp_path / "rows.csv", [("it was good", "x")], header="text,other")
    assert "no column could be the label" in refused("evaluate", finished.out, "--data", file)
    assert "has no head of a task" in refused("evaluate", encoder, "--data", files.dev)
    assert "rows.csv exists; choose another --out" in refused("evaluate", finished.out, "--data", file, "--out", file)
    assert "nowhere does not exist" in refused("evaluate", tmp_path / "nowhere", "--data", files.dev)
    assert "--data must be given" in refused("evaluate", finished.out)
    assert "MODEL must be given" in refused("evaluate", "--data", files.dev)


def test_a_head_that_does_not_tell_classes_apart_is_refused(make_model, files, refused, tmp_path):
    one = make_model(tmp_path / "one", "BertForSequenceClassification", num_labels=1)
    fields = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps(fields | {"problem_type": "single_label_classification"}))
    assert "its head has 1 outputs" in refused("evaluate", one, "--data", files.dev)


def test_of_several_splits_the_validation_split_is_read_unless_another_is_named(finished, command, tmp_path):
    from datasets import Dataset, DatasetDict

    rows = {"train": 5, "validation": 2, "test": 3}
    DatasetDict(
        {name: Dataset.from_dict({"text": ["it was good"] * n, "label": ["pos"] * n}) for name, n in rows.items()}
    ).save_to_disk(str(tmp_path / "saved"))
    assert "2 rows from" in command("evaluate", finished.out, "--data", tmp_path / "saved").out
    assert "3 rows from" in command("evaluate", finished.out, "--data", tmp_path / "saved", "--split", "test").out


def test_what_only_a_fine_tuning_or_another_task_decides_is_refused(finished, files, refused):
    given = ("evaluate", finished.out, "--data", files.dev)
    assert "tags is scheme='IOB1', and classification has no use for it" in refused(*given, "--tags.scheme", "IOB1")
    assert "tags.learn and tags.label_all_pieces are of a fine-tuning" in refused(*given, "--tags.learn", "IOB2")
    assert "dev.csv: there is no split 'test'; splits found: none" in refused(*given, "--split", "test")


def test_a_model_of_several_numbers_is_refused(make_model, files, refused, tmp_path):
    several = make_model(tmp_path / "m", "BertForSequenceClassification", num_labels=3, problem_type="regression")
    assert "gives 3 numbers a text; regression is of one" in refused("evaluate", several, "--data", files.dev)
