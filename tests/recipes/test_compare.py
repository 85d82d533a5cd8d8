"""Models beside each other: what the table says of each is what its folder holds and `evaluate` says."""

import json

import numpy as np
import pytest

from jaxptft.recipes import compare, compared, evaluate, export, export_formats, quantize
from jaxptft.recipes.export_rows import rows_of
from jaxptft.recipes.exported import open_any
from jaxptft.recipes.tasks.settings import Columns


@pytest.fixture(scope="module")
def models(tmp_path_factory, finished, quickly):
    """A finished run, the same as int8 and as a program."""
    folder = tmp_path_factory.mktemp("models")
    with quickly():
        run = str(finished.out)
        quantize.run(quantize.Config(model=run, mode="weights", out=folder / "int8", calls=1), say=str)
        export.run(export.Config(model=str(folder / "int8"), format="stablehlo", out=folder / "program"), say=str)
    return (run, str(folder / "int8"), str(folder / "program"))


@pytest.fixture(scope="module")
def result(tmp_path_factory, models, files, quickly):
    out, said = tmp_path_factory.mktemp("compared") / "out", []
    names = ("float", "int8", "program")
    config = compare.Config(
        models=models, names=names, data=str(files.test), out=out, rows=20, calls=4, rounds=2, metric=None
    )
    with quickly():
        record = compare.run(config, say=said.append)
    return record, out, "\n".join(said)


def test_each_line_is_of_the_folder_and_of_its_evaluation(result, models, files):
    record, out, said = result
    assert json.loads((out / "comparison.json").read_text()) == record
    assert (record["metric"], record["rows"]) == ("classification/accuracy", 20)
    assert [line["name"] for line in record["models"]] == ["float", "int8", "program"]
    plain, int8, program = record["models"]
    for model, line in zip(models, record["models"], strict=True):
        report = evaluate.run(evaluate.Config(model=model, data=str(files.test)), say=str)
        assert line["metrics"] == pytest.approx(report.metrics, abs=1e-6)
        assert f"{line['bytes'] / 1e6:.2f}" in said
        assert 0 < line["milliseconds_p50"] <= line["milliseconds_p99"]
        assert line["rows_a_second"] > 0
    assert plain["parameters"] == int8["parameters"] == program["parameters"]
    assert plain["bytes"] == sum(file.stat().st_size for file in (open_model(models[0])).rglob("*") if file.is_file())
    assert int8["nonzero"] <= plain["nonzero"] == plain["parameters"]
    assert int8["times_smaller"] == pytest.approx(plain["bytes"] / int8["bytes"])
    assert int8["times_faster_at_1"] == pytest.approx(plain["milliseconds_p50"] / int8["milliseconds_p50"])
    assert plain["metric_gained"] == 0


def open_model(run):
    from jaxptft.recipes.model_source import locate

    return locate(run)


def test_the_picture_is_drawn(result):
    _, out, _ = result
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "p50 ms" in (out / "comparison.txt").read_text()


def test_a_row_alone_scores_as_in_its_batch(models, files):
    """Rows are cut to the width that they would be padded to alone; the scores must not know."""
    opened = open_any(models[0])
    live = export_formats.live(opened)
    batches, _ = rows_of(opened, str(files.test), run=None, columns=Columns(), split=None, count=30, say=str)
    run = live.runs()
    single = list(compared._single(live, batches, 5))
    assert len(single) == 5
    assert {array.shape[0] for inputs in single for array in inputs.values()} == {1}
    every = np.concatenate([np.asarray(run(batch)["logits"])[batch["valid"]] for batch in batches])
    rows = np.linspace(0, len(every) - 1, 5).astype(int)
    for inputs, row in zip(single, rows, strict=True):
        assert inputs["input_ids"].shape[1] < 16
        np.testing.assert_allclose(np.asarray(run(inputs)["logits"])[0], every[row], atol=1e-5)


def test_zeros_are_counted(models, files, tmp_path, quickly):
    from jaxptft import convert

    checkpoint = convert.load(open_model(models[0]))
    kernel = np.array(checkpoint.params["backbone"]["layer_0"]["mlp"]["up"]["kernel"])
    kernel[:, ::2] = 0
    checkpoint.params["backbone"]["layer_0"]["mlp"]["up"]["kernel"] = kernel
    convert.save(tmp_path / "pruned", checkpoint, tokenizer_from=open_model(models[0]))
    config = compare.Config(
        models=(models[0], str(tmp_path / "pruned")), data=str(files.test), out=tmp_path / "out", calls=1, rounds=1
    )
    with quickly():
        plain, pruned = compare.run(config, say=str)["models"]
    assert plain["nonzero"] - pruned["nonzero"] == kernel.size // 2


def test_numbers_of_any_name_are_compared(make_model, tmp_path, quickly):
    """A regression's one output has a name in a checkpoint, which is of no task."""
    named = {"problem_type": "regression", "num_labels": 1}
    first, second = (
        str(
            make_model(
                tmp_path / name, "BertForSequenceClassification", id2label={0: name}, label2id={name: 0}, **named
            )
        )
        for name in ("score", "stars")
    )
    (tmp_path / "rows.csv").write_text("text,label\nso good,1.5\nbad film,0.25\nvery bad,0\n")
    config = compare.Config(
        models=(first, second), data=str(tmp_path / "rows.csv"), out=tmp_path / "out", rows=3, calls=1, rounds=1
    )
    with quickly():
        found = compare.run(config, say=str)
    assert found["task"] == "regression"
    assert [line["name"] for line in found["models"]] == ["score", "stars"]


def test_what_cannot_be_compared_is_refused_in_a_line(models, files, make_model, refused, command, tmp_path):
    asked = ("--data", files.test, "--out", tmp_path / "out")
    assert "models has 1; expected two or more" in refused("compare", models[0], *asked)
    assert "is there twice; give names" in refused("compare", models[0], models[0], *asked)
    assert "names has 1 for 2 models" in refused("compare", models[0], models[1], "--names", "one", *asked)
    told = command("compare", *models[:2], "--metric", "bleu", *asked)
    assert (told.status, "metric is 'bleu'; expected one of classification/accuracy" in told.err) == (2, True)
    tagger = make_model(tmp_path / "tagger", "BertForTokenClassification", id2label={0: "O", 1: "B-X", 2: "I-X"})
    assert "for token_classification; compare alike" in refused("compare", models[0], tagger, *asked)
    others = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    other = make_model(tmp_path / "other", "BertForSequenceClassification", **others)
    assert "answers bad, good" in refused("compare", models[0], other, *asked)
    assert "is in" in refused("compare", *models[:2], "--data", files.test, "--out", models[0], "--overwrite")
    assert not (tmp_path / "out").exists()
