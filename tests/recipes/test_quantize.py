"""A quantized folder is asked and exported like the model it was made from, and tells what it costs and gains."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxptft import convert
from jaxptft import export as room
from jaxptft.recipes import quantize
from jaxptft.recipes.exported import open_any


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, finished, files, quickly):
    """A function: mode -> the folder that the finished run was quantized to, and what was said."""
    kept: dict[str, SimpleNamespace] = {}

    def make(mode: str) -> SimpleNamespace:
        if mode not in kept:
            out, said = tmp_path_factory.mktemp("quantized") / mode, []
            calibrate = str(files.train) if mode == "static" else None
            config = quantize.Config(model=str(finished.out), mode=mode, out=out, calls=1, calibrate=calibrate)
            with quickly():
                quantize.run(config, say=said.append)
            kept[mode] = SimpleNamespace(folder=out, said="\n".join(said))
        return kept[mode]

    return make


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def logits_of(model, rows):
    from jaxptft import data
    from jaxptft.recipes.tasks import classification

    table = data.read_table(str(rows), labelled=False)
    return classification.logits(model, table, say=lambda line: None)


@pytest.mark.parametrize("mode", ["weights", "dynamic", "static"])
def test_it_answers_nearly_as_the_run_and_is_evaluated(quantized, mode, finished, files, command, tmp_path):
    made = quantized(mode)
    room.verify(made.folder, ("quantization.json", "params.msgpack", "model.json"))
    record = json.loads((made.folder / "quantization.json").read_text())
    assert (record["mode"], record["rows"]) == (mode, 24)
    found, expected = (logits_of(open_any(model), files.test) for model in (made.folder, finished.out))
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    told = command("evaluate", made.folder, "--data", files.dev, "--out", tmp_path / "report.json")
    assert told.status == 0, told.err
    metrics = json.loads((tmp_path / "report.json").read_text())["metrics"]
    assert metrics == pytest.approx(record["after"]["metrics"], abs=1e-6)
    for word in ("folder, MB", "classification/accuracy", "equal answers", "rows a second at batch 32"):
        assert word in made.said


def test_weights_are_stored_as_int8_and_stand_for_the_models(quantized, finished):
    folder = quantized("weights").folder
    stored = open_any(folder).params
    record = json.loads((folder / "quantization.json").read_text())
    original = convert.load(finished.out / "model").params
    restored = room.dequantize(stored)
    for path in record["matrices"]:
        node, was, now = stored, original, restored
        for name in path.split("/"):
            node, was, now = node[name], was[name], now[name]
        assert node["int8"].dtype == np.int8
        assert (np.abs(was - now) <= 0.5001 * node["scale"]).all()
    assert "backbone/layer_0/mlp/up/kernel" in record["matrices"]
    assert "backbone/embeddings/word/embedding" in record["matrices"]
    np.testing.assert_array_equal(stored["classifier"]["kernel"], original["classifier"]["kernel"])
    assert jax.tree.structure(restored) == jax.tree.structure(original)
    count = sum(leaf.size for leaf in jax.tree.leaves(original))
    assert record["before"]["parameters"] == record["after"]["parameters"] == count
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(stored)) < 0.6 * 4 * count


@pytest.mark.parametrize("mode", ["weights", "dynamic"])
def test_an_exported_program_keeps_int8_and_the_numbers(quantized, mode, files, command, tmp_path):
    made, out = quantized(mode), tmp_path / "program"
    told = command("export", made.folder, "--format", "stablehlo", "--out", out, "--data", files.dev)
    assert told.status == 0, told.err
    with np.load(out / "weights.npz") as weights:
        assert weights["backbone/layer_0/mlp/up/kernel/int8"].dtype == np.int8
    found, expected = (logits_of(open_any(folder), files.test) for folder in (out, made.folder))
    np.testing.assert_allclose(found, expected, atol=1e-5 if mode == "weights" else 0.05)


def test_auto_measures_and_says_why(quantized):
    made = quantized("auto")
    record = json.loads((made.folder / "quantization.json").read_text())
    assert record["mode"] in ("weights", "dynamic")
    assert record["why"] in made.said
    assert "a batch of 32 takes" in record["why"]
    assert open_any(made.folder).mode == record["mode"]


def test_what_cannot_be_is_refused_in_a_line(quantized, finished, classifier, files, refused, tmp_path):
    folder, out = quantized("weights").folder, ("--out", tmp_path / "out")
    assert "is quantized already" in refused("quantize", folder, *out)
    assert "takes none of the model's projections, such as backbone/" in refused(
        "quantize", finished.out, "--patterns", "backbone/layer_9/**", *out
    )
    assert "no evaluation rows of" in refused("quantize", classifier, *out)
    assert "mode static and calibrate belong together" in refused("quantize", finished.out, "--mode", "static", *out)
    assert "exists and is not empty" in refused("quantize", finished.out, "--out", folder)
    assert "is quantized, and hf does not hold int8" in refused("export", folder, "--format", "hf", *out)
    line = ("finetune", "--model", folder, "--train", files.train, *out)
    assert "is quantized, to be asked alone" in refused(*line)
    assert not (tmp_path / "out").exists()


TASKS = {
    "token_classification": (
        "BertForTokenClassification",
        {"id2label": {0: "O", 1: "B-A", 2: "I-A"}},
        [
            {"tokens": ["the", "film", "was", "bad"], "tags": ["O", "B-A", "O", "O"]},
            {"tokens": ["good"], "tags": ["O"]},
        ],
    ),
    "question_answering": (
        "BertForQuestionAnswering",
        {},
        [
            {
                "id": "q",
                "question": "was it good",
                "context": "the film was very bad and so was the book",
                "answers": {"text": ["very bad"], "answer_start": [13]},
            }
        ],
    ),
    "multiple_choice": (
        "BertForMultipleChoice",
        {},
        [
            {"question": "was it good", "choices": ["good", "bad", "the book was good"], "label": 1},
            {"question": "was it", "choices": ["so", "and", "a film"], "label": 0},
        ],
    ),
    "multi_label": (
        "BertForSequenceClassification",
        {"id2label": {0: "a", 1: "b", 2: "c"}, "problem_type": "multi_label_classification"},
        [{"text": "the film", "label": "a"}, {"text": "a book and a film", "label": "b,c"}],
    ),
    "regression": (
        "BertForSequenceClassification",
        {"id2label": {0: "score"}, "problem_type": "regression"},
        [{"text": "the film", "label": 0.5}, {"text": "a book and a film", "label": -1.0}, {"text": "bad", "label": 2}],
    ),
}


def near(value):
    """Numbers to four digits."""
    if isinstance(value, dict):
        return {name: near(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [near(entry) for entry in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def predicted(command, model, rows, out):
    told = command("predict", model, "--data", rows, "--out", out)
    assert told.status == 0, told.err
    return lines(out)


EVERY_DAY = ("token_classification", "multiple_choice")


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=() if task in EVERY_DAY else pytest.mark.slow) for task in TASKS]
)
def test_every_task_of_texts_answers_as_the_floats_that_int8_stands_for(task, make_model, command, tmp_path):
    architecture, fields, labelled = TASKS[task]
    if "id2label" in fields:
        fields = fields | {"label2id": {name: number for number, name in fields["id2label"].items()}}
    model, rows = make_model(tmp_path / "model", architecture, **fields), tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    told = command("quantize", model, "--mode", "weights", "--data", rows, "--calls", 1, "--out", tmp_path / "int8")
    assert told.status == 0, told.err
    record = json.loads((tmp_path / "int8" / "quantization.json").read_text())
    assert record["before"]["metrics"].keys() == record["after"]["metrics"].keys() != set()
    assert (record["equal_answers"] is None) == (task in ("regression", "question_answering"))
    source = convert.load(model)
    floats = room.dequantize(open_any(tmp_path / "int8").params)
    convert.save(tmp_path / "floats", dataclasses.replace(source, params=floats), tokenizer_from=model)
    expected = predicted(command, tmp_path / "floats", rows, tmp_path / "a.jsonl")
    assert near(expected) == predicted(command, tmp_path / "int8", rows, tmp_path / "b.jsonl")


def test_damage_is_told(quantized, refused, files, tmp_path):
    folder = shutil.copytree(quantized("weights").folder, tmp_path / "copy")
    content = bytearray((folder / "params.msgpack").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "params.msgpack").write_bytes(content)
    line = ("predict", folder, "--data", files.test, "--out", tmp_path / "p.jsonl")
    assert "params.msgpack has another SHA-256" in refused(*line)
    shutil.copyfile(quantized("weights").folder / "params.msgpack", folder / "params.msgpack")
    description = json.loads((folder / "model.json").read_text()) | {"quantization": {"mode": "int4"}}
    (folder / "model.json").write_text(json.dumps(description))
    room.write_sums(folder)
    assert "does not tell how it was quantized" in refused(*line)
