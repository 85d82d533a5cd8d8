"""The demo on stand-ins for what it downloads, and what it does with the real sentences where they are at hand."""

import csv
import json

import numpy as np
import pytest

from jaxptft import data
from jaxptft.recipes import demo


@pytest.fixture
def sentences(monkeypatch):
    """A hundred short reviews whose sentiment is one word, some neutral-free repeats included."""
    rng = np.random.default_rng(0)
    words = ["film", "plot", "actor", "scene", "story"]
    rows = []
    for index in range(100):
        good = index % 2 == 0
        text = f"{' '.join(rng.choice(words, 4))} {index} {'good' if good else 'bad'}"
        rows.append((text, 2.0 if good else -2.0))
    rows += [(f" {rows[0][0]}  ", 2.0), (rows[1][0], -2.0)]
    monkeypatch.setattr(data, "hutto_sentences", lambda domain: rows)
    return rows


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_splits_are_disjoint_whole_and_repeatable(sentences, tmp_path):
    config = demo.Config(out=tmp_path / "a", test_rows=20, validation_rows=10)
    tables = demo.read_splits(config)
    parts = {name: part.texts for name, part in tables.items()}
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 70, "validation": 10, "test": 20}
    assert len({text for rows in parts.values() for text in rows}) == 100
    file = demo.write_csv(tmp_path / "data" / "test.csv", tables["test"])
    assert all((row["label"] == "positive") == row["text"].endswith("good") for row in read(file))
    assert [row["text"] for row in read(file)] == parts["test"]
    again = demo.read_splits(demo.Config(out=tmp_path / "b", test_rows=20, validation_rows=10))
    assert all(tables[name].fingerprint == again[name].fingerprint for name in tables)


def test_fewer_training_rows_leave_the_test_rows_alone(sentences, tmp_path):
    whole = demo.read_splits(demo.Config(out=tmp_path / "a", test_rows=20, validation_rows=10))
    few = demo.read_splits(demo.Config(out=tmp_path / "b", test_rows=20, validation_rows=10, train_rows=30))
    assert len(few["train"]) == 30
    assert whole["test"].fingerprint == few["test"].fingerprint


@pytest.mark.slow
def test_every_row_ends_in_the_table_the_picture_and_a_model(sentences, tmp_path, make_model, monkeypatch):
    model = make_model(tmp_path / "model", max_position_embeddings=128)
    monkeypatch.setattr(data, "minilm_folder", lambda: model)
    config = demo.Config(out=tmp_path / "demo", test_rows=20, validation_rows=10)
    said = []
    rows = {"head only": demo.ROWS["head only"], "all layers": demo.ROWS["all layers"]}
    table = demo.run(config, rows=rows, say=said.append)
    assert [row.name for row in table] == ["head only", "all layers"]
    assert table[0].trainable < table[1].trainable
    assert [row["name"] for row in json.loads((config.out / "table.json").read_text())] == ["head only", "all layers"]
    assert (config.out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((config.out / "all-layers" / "report.json").read_text())
    assert report["test"]["metrics"]["classification/accuracy"] == table[1].accuracy
    assert sum(map(sum, report["test"]["confusion"])) == 20
    assert (config.out / "all-layers" / "model" / "model.safetensors").is_file()
    assert any("negative" in line and "precision" in line for line in said)

    with pytest.raises(FileExistsError, match="holds a demo already; pass --overwrite"):
        demo.run(config, rows=rows, say=said.append)
    (config.out / "notes.txt").write_text("mine")
    one = {"head only": demo.ROWS["head only"]}
    again = demo.run(config.model_copy(update={"overwrite": True}), rows=one, say=said.append)
    assert again[0].accuracy == table[0].accuracy
    assert (config.out / "notes.txt").read_text() == "mine"


def test_a_demo_that_cannot_start_costs_nothing_that_is_there(tmp_path, monkeypatch):
    def nothing():
        raise data.AssetUnavailable("no index answers")

    monkeypatch.setattr(data, "minilm_folder", nothing)
    (tmp_path / "demo.yaml").write_text("")
    (tmp_path / "table.json").write_text("[]")
    with pytest.raises(data.AssetUnavailable, match="no index answers"):
        demo.run(demo.Config(out=tmp_path, overwrite=True))
    assert (tmp_path / "table.json").read_text() == "[]"


def test_a_foreign_folder_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not empty and holds no demo"):
        demo.run(demo.Config(out=tmp_path, overwrite=True))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
