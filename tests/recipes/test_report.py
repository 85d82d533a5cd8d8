import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score

from jaxptft.recipes import report as reports
from jaxptft.recipes.metrics import classification as metrics_of

NAMES = ("neg", "so-so", "pos")


@pytest.fixture
def scored():
    """Logits and labels of 40 rows; no row is of class so-so, and some are said to be."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 2], 40)
    return rng.normal(size=(40, 3)) + 1.5 * np.eye(3)[labels], labels


def test_the_numbers_are_those_of_scikit_learn(scored):
    logits, labels = scored
    predicted = logits.argmax(-1)
    report = metrics_of.classification_report(logits, labels, NAMES)
    assert report.metrics["classification/accuracy"] == accuracy_score(labels, predicted)
    expected = f1_score(labels, predicted, labels=[0, 1, 2], average="macro", zero_division=0)
    assert report.metrics["classification/macro_f1"] == expected
    np.testing.assert_array_equal(report.details["confusion"], confusion_matrix(labels, predicted, labels=[0, 1, 2]))
    options = {"labels": [0, 1, 2], "target_names": NAMES, "digits": 4, "zero_division": 0}
    assert report.text.startswith(classification_report(labels, predicted, **options))


def test_numbers_by_hand():
    # Truth 0 0 1 1, told 0 1 1 1: accuracy 3/4; F1 of class 0 is 2/3, of class 1 is 4/5.
    logits = np.eye(2)[[0, 1, 1, 1]]
    metrics = metrics_of.classification_metrics(logits, np.array([0, 0, 1, 1]))
    assert metrics["classification/accuracy"] == 0.75
    assert metrics["classification/macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_the_confusion_matrix_as_text_has_truth_in_rows(scored):
    report = metrics_of.classification_report(*scored, NAMES)
    confusion = np.array(report.details["confusion"])
    text = metrics_of.confusion_text(confusion, NAMES)
    assert report.text.endswith(text)
    header, *rows = text.splitlines()
    assert header.split() == ["truth", "\\", "predicted", *NAMES]
    assert [row.split()[0] for row in rows] == list(NAMES)
    assert [[int(count) for count in row.split()[1:]] for row in rows] == confusion.tolist()
    assert len({len(line) for line in (header, *rows)}) == 1  # aligned


def test_what_is_saved_reads_back(scored, tmp_path):
    report = metrics_of.classification_report(*scored, NAMES)
    reports.save_report(tmp_path, {"eval": report}, {"best_step": 3})
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == {"best_step": 3, "eval": report.to_dict()}
    assert saved["eval"]["labels"] == list(NAMES)
    assert report.text in (tmp_path / "report.txt").read_text()
    assert (tmp_path / "confusion_eval.png").read_bytes().startswith(b"\x89PNG")


def test_a_baseline_may_lack_a_number(tmp_path):
    run = reports.Report({"regression/pearson": 0.5, "regression/mse": 1.0}, "")
    constant = reports.Report({"regression/mse": 2.0}, "")  # which has no correlation
    reports.save_report(tmp_path, {"eval": run}, {})
    lines = reports.add_baseline(tmp_path, {"eval": run}, {"eval": constant}, name="from scratch")
    assert [line.split()[2:] for line in lines[1:]] == [["0.5000", "-"], ["1.0000", "2.0000"]]


def test_a_class_may_be_called_anything(tmp_path):
    names = ("$\\frac{$", "a_b^c", "two\nlines", "")
    report = metrics_of.classification_report(np.eye(4), np.arange(4), names)
    reports.save_report(tmp_path, {"test": report}, {})
    assert (tmp_path / "confusion_test.png").is_file()


def test_hundreds_of_classes_still_make_a_picture(tmp_path):
    report = metrics_of.classification_report(np.eye(700), np.arange(700), [f"class {index}" for index in range(700)])
    report.pictures["confusion"](tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size < 2_000_000


def test_the_history_plots_with_and_without_points(tmp_path):
    lines = [
        {"kind": "train", "step": 1, "loss": 0.5},
        {"kind": "train", "step": 2},  # every step of its window was skipped
        {"kind": "evaluation", "step": 2, "classification/accuracy": 0.5},
    ]
    for name, chosen in (("some", lines), ("none", [])):
        reports.plot_history(tmp_path / f"{name}.png", chosen, "classification/accuracy")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
