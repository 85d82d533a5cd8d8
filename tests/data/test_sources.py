import json
import os

import datasets
import numpy as np
import pytest
from datasets.exceptions import DatasetNotFoundError

from jaxptft import data

FEATURES = datasets.Features(
    {
        "sentence": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["positive", "negative", "mixed"]),
        "idx": datasets.Value("int32"),
    }
)


def dataset(labels, texts=None):
    texts = texts or [f"text {number}" for number in range(len(labels))]
    return datasets.Dataset.from_dict(
        {"sentence": texts, "label": labels, "idx": list(range(len(labels)))}, features=FEATURES
    )


@pytest.fixture
def glue_like():
    return datasets.DatasetDict(
        train=dataset([0, 1, 1, 0]), validation=dataset([1, 0]), test=dataset([-1, -1], ["x", "y"])
    )


def test_class_names_and_their_order_come_from_the_features(tmp_path):
    dataset([1, 0, 1]).save_to_disk(tmp_path / "saved")
    table = data.read_table(tmp_path / "saved")
    assert table.names == ("positive", "negative", "mixed")  # as declared, the one that does not occur included
    np.testing.assert_array_equal(table.labels, [1, 0, 1])
    np.testing.assert_array_equal(table.rows, [1, 2, 3])


def test_class_names_survive_parquet(tmp_path):
    dataset([1, 0, 1]).to_parquet(tmp_path / "t.parquet")
    table = data.read_table(tmp_path / "t.parquet")
    assert table.names == ("positive", "negative", "mixed")
    np.testing.assert_array_equal(table.labels, [1, 0, 1])


def test_another_order_of_classes_is_read_by_name():
    table = data.read_table(dataset([0, 1]), names=("mixed", "negative", "positive"))
    np.testing.assert_array_equal(table.labels, [2, 1])


def test_selected_and_shuffled_datasets_keep_their_order():
    rows = dataset([0, 1, 2, 0]).select([3, 1, 0])
    table = data.read_table(rows)
    assert table.texts == ["text 3", "text 1", "text 0"]


def test_splits(tmp_path, glue_like):
    glue_like.save_to_disk(tmp_path / "glue")
    assert data.split_names(tmp_path / "glue") == ("train", "validation", "test")
    assert len(data.read_table(tmp_path / "glue", split="train")) == 4
    with pytest.raises(ValueError, match="glue: has several splits; choose one of 'train', 'validation', 'test'"):
        data.read_table(tmp_path / "glue")
    with pytest.raises(ValueError, match="glue: there is no split 'dev'; splits found: 'train', 'validation', 'test'"):
        data.read_table(tmp_path / "glue", split="dev")
    with pytest.raises(ValueError, match=r"glue\[test\], row 1, column 'label': is -1, which marks an unlabelled row"):
        data.read_table(tmp_path / "glue", split="test")
    unlabelled = data.read_table(tmp_path / "glue", split="test", labelled=False)
    assert unlabelled.texts == ["x", "y"]


def test_bad_row_of_a_dataset(glue_like):
    broken = datasets.DatasetDict(train=dataset([0, 1], ["fine", " "]))
    with pytest.raises(ValueError, match=r"the data set given\[train\], row 2, column 'sentence': is empty"):
        data.read_table(broken)
    assert data.read_table(broken, names=("positive",), on_bad_row="skip").report.skipped == 1


def test_hub_name_is_a_data_set_and_its_configuration(monkeypatch, glue_like):
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return glue_like

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table = data.read_table("glue/sst2", split="validation")
    assert asked == [("glue", "sst2")]
    assert table.source == "glue/sst2[validation]"
    assert len(table) == 2


@pytest.mark.parametrize(
    ("name", "tried"),
    [
        ("imdb", [("imdb", None)]),
        ("owner/name", [("owner", "name"), ("owner/name", None)]),
        ("owner/name/part", [("owner/name", "part")]),
    ],
)
def test_hub_has_no_such_data_set(monkeypatch, name, tried):
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        raise DatasetNotFoundError("Dataset doesn't exist on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match=f"{name}: neither a file or folder here nor .* exist on the Hub\\)$"):
        data.read_table(name)
    assert asked == tried


def test_unknown_configuration(monkeypatch):
    def load_dataset(*arguments):
        raise ValueError("BuilderConfig 'sst9' not found. Available: ['sst2']\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"glue/sst9: the hub's data set cannot be read \(Builder.*\['sst2'\]\)$"):
        data.read_table("glue/sst9")


def test_hub_cannot_be_reached(monkeypatch):
    def load_dataset(*arguments):
        raise OSError("Name or service not known\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConnectionError, match=r"imdb: no file here has this name, and the hub gives none \(Name or"):
        data.read_table("imdb")


def test_missing_files_are_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("the hub was asked"))
    for name in ("train.csv", "data/train.jsonl", "./glue", tmp_path / "glue", "a b"):
        with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
            data.read_table(name)


def test_a_pipe_is_refused_since_rows_are_read_again(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(FileNotFoundError, match=r"rows\.jsonl: is no ordinary file; .* save what a pipe gives"):
        data.read_table(tmp_path / "rows.jsonl")


def test_folder_of_something_else(tmp_path):
    with pytest.raises(ValueError, match="is not a folder saved by datasets' save_to_disk"):
        data.read_table(tmp_path)


@pytest.mark.parametrize("damage", ["info", "state", "arrow"])
def test_damaged_folder(tmp_path, damage):
    dataset([0, 1]).save_to_disk(tmp_path / "saved")
    if damage == "info":
        (tmp_path / "saved/dataset_info.json").write_text('{"features"')
    elif damage == "state":
        (tmp_path / "saved/state.json").write_text(json.dumps({"_data_files": [{"filename": "gone.arrow"}]}))
    else:
        path = next((tmp_path / "saved").glob("*.arrow"))
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="saved: the data set saved here cannot be read") as caught:
        data.read_table(tmp_path / "saved")
    assert "\n" not in str(caught.value)


def test_files_have_no_splits(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,label\na,x\nb,y\n")
    assert data.split_names(path) == ()
    with pytest.raises(ValueError, match=r"t\.csv: has no splits, and split 'train' was asked of it"):
        data.read_table(path, split="train")


def test_other_objects_are_not_sources():
    with pytest.raises(TypeError, match="data source is int, expected a path, a hub name or a datasets"):
        data.read_table(7)


def test_dataset_without_rows():
    with pytest.raises(ValueError, match="the data set given: has no rows"):
        data.read_table(dataset([]))
