import json

import numpy as np
import pytest
import torch
import transformers

from jaxptft import data


def predictions(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def predict(command, finished, tmp_path):
    """A function: predict into `tmp_path / "p.jsonl"` with the finished run."""

    def run(*flags, model=finished.out):
        told = command("predict", model, "--out", tmp_path / "p.jsonl", *flags)
        assert told.status == 0, told.err
        return predictions(tmp_path / "p.jsonl")

    return run


def test_rows_come_in_order_with_their_line_and_probabilities_that_sum_to_one(predict, files):
    lines = predict("--data", files.test)
    # The header is line 1 of the file, as editors count.
    assert [line["row"] for line in lines] == list(range(2, 32))
    for line in lines:
        assert list(line["probabilities"]) == ["neg", "pos"]
        assert sum(line["probabilities"].values()) == pytest.approx(1.0, abs=2e-6)  # six digits each
        assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)


def test_the_probabilities_are_torchs(predict, files, finished):
    lines = predict("--data", files.test, "--batch-size", "7")
    table = data.read_table(str(files.test))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(finished.out / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished.out / "model")
    with torch.no_grad():
        logits = model(**tokenizer(table.texts, padding=True, return_tensors="pt")).logits
    found = [list(line["probabilities"].values()) for line in lines]
    np.testing.assert_allclose(found, logits.double().softmax(-1).numpy(), atol=1e-5)


def test_a_run_folder_its_model_and_a_converted_one_are_the_same(predict, files, finished, tmp_path, command):
    assert command("convert", "import", finished.out / "model", tmp_path / "converted").status == 0
    expected = predict("--data", files.dev)
    for model in (finished.out / "model", tmp_path / "converted"):
        assert predict("--data", files.dev, "--overwrite", model=model) == expected


def test_labels_are_not_read_and_skipped_rows_leave_a_gap(predict, csv_file, tmp_path):
    rows = csv_file(tmp_path / "rows.csv", [("it was good", "no class"), ("", "x"), ("it was bad", "")])
    lines = predict("--data", rows, "--on-bad-row", "skip")
    assert [(line["row"], line["label"]) for line in lines] == [(2, "pos"), (4, "neg")]


def test_an_existing_file_is_kept_unless_told_otherwise(refused, predict, finished, files, tmp_path):
    out = tmp_path / "p.jsonl"
    out.write_text("mine")
    line = ("predict", finished.out, "--data", files.dev, "--out", out)
    assert "p.jsonl exists; choose another --out, or pass --overwrite" in refused(*line)
    assert out.read_text() == "mine"
    assert len(predict("--data", files.dev, "--overwrite")) == 24


def test_a_folder_or_the_data_itself_is_no_place_for_predictions(refused, finished, csv_file, tmp_path):
    rows = csv_file(tmp_path / "rows.csv", [("it was good", "pos")])
    before = rows.read_text()
    line = ("predict", finished.out, "--data", rows, "--overwrite", "--out")
    assert "is a folder; choose a file for --out" in refused(*line, tmp_path)
    assert "--out and --data are both" in refused(*line, rows)
    assert rows.read_text() == before


def test_nothing_is_left_when_it_fails_half_way(command, finished, files, tmp_path, monkeypatch):
    count = 0
    real = json.dumps

    def fail_late(*arguments, **options):
        nonlocal count
        count += 1
        if count == 5:
            raise OSError("No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr("jaxptft.recipes.predict.json.dumps", fail_late)
    line = ("predict", finished.out, "--data", files.dev, "--out", tmp_path / "out" / "p.jsonl")
    told = command(*line)
    assert (told.status, told.err.splitlines()[-1]) == (2, "jaxptft: error: No space left on device")
    assert [*(tmp_path / "out").iterdir()] == []


def test_what_does_not_fit_is_refused(refused, finished, files, encoder, tmp_path):
    out = ("--out", tmp_path / "p.jsonl")
    assert "has no head of a task" in refused("predict", encoder, "--data", files.dev, *out)
    assert "nowhere.csv" in refused("predict", finished.out, "--data", "nowhere.csv", *out)
    threshold = refused("predict", finished.out, "--data", files.dev, *out, "--settled.threshold", "0.3")
    assert "settled.threshold is 0.3, and classification has no use for it; leave it out" in threshold
    assert "--max-length is 2: " in refused("predict", finished.out, "--data", files.dev, *out, "--max-length", "2")
    (tmp_path / "empty.csv").write_text("")
    assert "is empty" in refused("predict", finished.out, "--data", tmp_path / "empty.csv", *out)
    assert not (tmp_path / "p.jsonl").exists()


def test_the_id_column_is_carried_into_the_predictions(predict, tmp_path):
    (tmp_path / "rows.csv").write_text("key,text\nb-7,it was good\na-3,it was bad\n", encoding="utf-8")
    assert [line["id"] for line in predict("--data", tmp_path / "rows.csv", "--id", "key")] == ["b-7", "a-3"]
