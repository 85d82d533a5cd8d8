"""Every format holds the model: read back by whoever reads it without this package, it gives the model's numbers."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import transformers
from flax.serialization import msgpack_restore
from huggingface_hub import ModelCard

from jaxptft import cli, convert, data
from jaxptft import export as room
from jaxptft.recipes import export, export_formats, finetune, model_card


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, finished, quickly):
    """A function: format -> the folder that the finished run was exported to, and what was said."""
    kept: dict[str, SimpleNamespace] = {}

    def make(format: str) -> SimpleNamespace:
        if format not in kept:
            out, said = tmp_path_factory.mktemp("exports") / format, []
            config = export.Config(model=str(finished.out), format=format, out=out)
            with quickly():
                export.run(config, say=said.append)
            kept[format] = SimpleNamespace(folder=out, said="\n".join(said))
        return kept[format]

    return make


def predicted(command, model, rows, out) -> list[dict]:
    told = command("predict", model, "--data", rows, "--out", out, "--overwrite")
    assert told.status == 0, told.err
    return lines(out)


@pytest.mark.parametrize("format", ["stablehlo", "hf", "flax"])
def test_a_run_is_compared_on_its_own_evaluation_rows_and_predicts_the_same(
    exported, format, finished, files, command, tmp_path
):
    made = exported(format)
    record = json.loads((made.folder / "export.json").read_text())
    assert record["compared"]["rows"] == 24
    assert record["compared"]["source"] == str(files.dev)
    assert max(record["compared"]["max_difference"].values()) <= record["tolerance"] == 1e-5
    assert f"on 24 rows of {files.dev}: logits " in made.said
    room.verify(made.folder, ("export.json",))
    expected = predicted(command, finished.out, files.test, tmp_path / "a.jsonl")
    for line, other in zip(expected, predicted(command, made.folder, files.test, tmp_path / "b.jsonl"), strict=True):
        assert line["row"] == other["row"]
        assert line["label"] == other["label"]
        assert other["probabilities"] == pytest.approx(line["probabilities"], abs=1e-5)


def isolated(folder, *arguments, allow="none") -> subprocess.CompletedProcess:
    """run.py in a process that finds jax and numpy alone."""
    script = Path(__file__).parents[2] / "experiments" / "benchmarks" / "alone.py"
    command = [sys.executable, "-I", script, f"--allow={allow}", folder / "run.py", *arguments]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)


def test_the_process_that_is_alone_finds_no_package_of_ours(tmp_path):
    for name in ("jaxptft", "flax", "transformers", "tokenizers"):
        (tmp_path / "run.py").write_text(f"import {name}")
        done = isolated(tmp_path)
        assert done.returncode == 1
        assert f"{name} is blocked" in done.stderr


def test_a_program_runs_where_only_jax_and_numpy_are(exported, finished, files, command, tmp_path):
    folder = exported("stablehlo").folder
    expected = predicted(command, finished.out, files.test, tmp_path / "p.jsonl")
    table = data.read_table(str(files.test))
    tokenized = data.tokenize(table, data.load_tokenizer(finished.out / "model"), 16)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"input_ids": tokenized.row(i).tolist()}) + "\n" for i in range(len(table))))
    done = isolated(folder, rows, "--out", tmp_path / "ids.jsonl")
    assert done.returncode == 0, done.stderr
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(table.texts) + "\n")
    done = isolated(folder, texts)
    assert done.returncode == 2
    assert "error: texts need the package `tokenizers` (pip install tokenizers); or give input_ids" in done.stderr
    done = isolated(folder, texts, allow="tokenizers,huggingface_hub")  # the one imports the other
    assert done.returncode == 0, done.stderr
    for found in (lines(tmp_path / "ids.jsonl"), [json.loads(line) for line in done.stdout.splitlines()]):
        assert len(found) == len(expected) == 30
        for line, other in zip(expected, found, strict=True):
            assert line["label"] == other["label"]
            assert other["probabilities"] == pytest.approx(line["probabilities"], abs=1e-5)


def test_arrays_go_in_and_out(exported, tmp_path):
    folder = exported("stablehlo").folder
    ids = np.array([[2, 5, 3, 0], [2, 6, 7, 3]])
    np.savez(tmp_path / "in.npz", input_ids=ids, attention_mask=(ids > 0).astype(np.int64))
    assert room.runner.main([str(tmp_path / "in.npz"), "--out", str(tmp_path / "out.npz"), "--model", str(folder)]) == 0
    with np.load(tmp_path / "out.npz") as outputs:
        assert outputs["logits"].shape == outputs["probabilities"].shape == (2, 2)
        np.testing.assert_allclose(outputs["probabilities"].sum(-1), 1, atol=1e-6)


def test_a_mistake_is_one_line(exported, tmp_path, capsys):
    folder = exported("stablehlo").folder
    for content, complaint in (
        ("[]", "holds no rows"),
        ('[{"a": 1}]', "expected input_ids"),
        ('[{"input_ids": [99999]}]', "outside 0 to"),
        ('[{"input_ids": [1.5]}]', "must be a list of whole numbers"),
        ('[{"input_ids": []}]', "must be a list of whole numbers"),
        ('[{"input_ids": "abc"}]', "must be a list of whole numbers"),
        ('[{"input_ids": [1, 2], "token_type_ids": [0]}]', "of one length"),
        ('[{"text": 1}]', "expected input_ids"),
        ('[{"text": "a", "text_pair": 1}]', "text_pair of a row is int; expected text"),
        ('[{"input_ids": ' + str([1] * 50) + "}]", "length is 50, and the model takes 20 at most"),
        ("{", "rows.json is not JSON: Expecting"),
    ):
        (tmp_path / "rows.json").write_text(content)
        assert room.runner.main([str(tmp_path / "rows.json"), "--model", str(folder)]) == 2
        told = capsys.readouterr().err
        assert complaint in told
        assert told.count("\n") == 1


def test_a_damaged_export_is_refused_by_predict(exported, refused, files, tmp_path):
    import shutil

    folder = shutil.copytree(exported("stablehlo").folder, tmp_path / "copy")
    content = bytearray((folder / "weights.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "weights.npz").write_bytes(content)
    line = ("predict", folder, "--data", files.test, "--out", tmp_path / "p.jsonl")
    assert "weights.npz has another SHA-256 than it was written with" in refused(*line)
    (folder / "model.json").unlink()
    assert "model.json is missing" in refused(*line)


def test_evaluate_reads_a_program(exported, files, command, finished):
    told = command("evaluate", exported("stablehlo").folder, "--data", files.test)
    assert told.status == 0, told.err
    assert told.out == command("evaluate", finished.out, "--data", files.test).out


def test_flax_alone_reads_the_parameters(exported, finished):
    folder = exported("flax").folder
    params = msgpack_restore((folder / "params.msgpack").read_bytes())
    expected = convert.load(finished.out / "model").params
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "neg", "1": "pos"}


def test_transformers_reads_the_hugging_face_folder(exported, files, finished, command, tmp_path):
    folder = exported("hf").folder
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    table = data.read_table(str(files.test))
    with torch.no_grad():
        logits = model(**tokenizer(table.texts, padding=True, return_tensors="pt")).logits
    found = [list(line["probabilities"].values()) for line in predicted(command, folder, files.test, tmp_path / "p")]
    np.testing.assert_allclose(found, logits.double().softmax(-1).numpy(), atol=1e-5)
    assert model.config.id2label == {0: "neg", 1: "pos"}


def test_the_card_tells_what_the_run_has_recorded(exported, finished, command, tmp_path):
    card = ModelCard.load(exported("hf").folder / "README.md")
    matter = card.data
    assert (matter.license, matter.pipeline_tag) == ("unknown", "text-classification")
    report = json.loads((finished.out / "report.json").read_text())
    told = {(one.dataset_split, one.metric_name): one.metric_value for one in matter.eval_results}
    for split, name in (("eval", "validation"), ("test", "test")):
        for metric, value in report[split]["metrics"].items():
            assert told[name, metric.removeprefix("classification/")] == pytest.approx(value, abs=1e-6)
    assert "| training | train.csv | 64 |" in card.text
    assert "| learning_rate | 0.01 |" in card.text
    out = tmp_path / "named"
    flags = ("--license", "apache-2.0", "--language", "en", "de")
    told = command("export", finished.out, "--format", "hf", "--out", out, *flags)
    assert told.status == 0, told.err
    matter = ModelCard.load(out / "README.md").data
    assert (matter.license, matter.language) == ("apache-2.0", ["en", "de"])


def test_the_command_in_the_card_makes_the_runs_config_again():
    config = finetune.Config.model_validate(
        {
            "model": "a b",
            "train": "t.csv",
            "out": "runs/x",
            "epochs": 2.0,
            "freeze": "backbone",
            "bitfit": False,
            "lora": {"rank": 4, "targets": ["query", "value"]},
            "class_weights": "balanced",
            "optimizer": {"weight_decay": 0.1},
            "resume": False,
        }
    )
    line = model_card.command_of(config.model_dump(mode="json"))
    words = shlex.split(line.replace("\\\n", " "))
    assert words[:2] == ["jaxptft", "finetune"]
    assert cli._parse(finetune.Config, "finetune", words[2:]) == config


def test_a_folder_without_a_run_has_a_card_of_what_is_known(classifier, command, tmp_path):
    told = command("export", classifier, "--format", "hf", "--out", tmp_path / "hf")
    assert told.status == 0, told.err
    assert "8 rows of fixed examples" in told.out
    card = ModelCard.load(tmp_path / "hf" / "README.md")
    assert "Outputs: neg, pos." in card.text
    assert "## Results" not in card.text
    assert card.data.eval_results is None


ARCHITECTURES = {
    "token_classification": ("BertForTokenClassification", {"id2label": {0: "O", 1: "B-A", 2: "I-A"}}),
    "question_answering": ("BertForQuestionAnswering", {}),
    "multiple_choice": ("BertForMultipleChoice", {}),
    "multi_label": (
        "BertForSequenceClassification",
        {"id2label": {0: "a", 1: "b", 2: "c"}, "problem_type": "multi_label_classification"},
    ),
    "regression": ("BertForSequenceClassification", {"id2label": {0: "score"}, "problem_type": "regression"}),
}
ROWS = {
    "token_classification": [{"tokens": ["the", "film", "was", "bad"]}, {"tokens": ["good"]}],
    "question_answering": [{"question": "was it good", "context": "the film was very bad and so was the book"}] * 2,
    "multiple_choice": [
        {"question": "was it good", "choices": ["good", "bad", "the book was good"]},
        {"question": "was it", "choices": ["so", "and"]},
    ],
    "multi_label": [{"text": "the film"}, {"text": "a book and a film"}],
    "regression": [{"text": "the film", "text_pair": "a book"}, {"text": "a book and a film", "text_pair": "was it"}],
}


@pytest.mark.parametrize("task", ARCHITECTURES)
def test_every_task_of_texts_is_exported_as_a_program(task, make_model, command, tmp_path):
    architecture, fields = ARCHITECTURES[task]
    if "id2label" in fields:
        fields = fields | {"label2id": {name: number for number, name in fields["id2label"].items()}}
    model = make_model(tmp_path / "model", architecture, **fields)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
    out = tmp_path / "out"
    told = command("export", model, "--format", "stablehlo", "--out", out, "--data", rows)
    assert told.status == 0, told.err
    assert f"2 rows of {rows}" in told.out
    expected = predicted(command, model, rows, tmp_path / "a.jsonl")
    found = predicted(command, out, rows, tmp_path / "b.jsonl")
    assert near(expected) == near(found)
    artifact = room.Artifact(out)
    ids = [2, 5, 7, 3]
    given = {"input_ids": [ids, ids[:3]] if task == "multiple_choice" else ids}
    (answer,) = room.runner.predict(artifact, [given])
    assert (
        answer.keys()
        == {
            "token_classification": {"tags", "scores"},
            "question_answering": {"start_logits", "end_logits"},
            "multiple_choice": {"choice", "probabilities"},
            "multi_label": {"labels", "probabilities"},
            "regression": {"score"},
        }[task]
    )


def test_texts_are_tokenized_by_run_py_as_by_predict(make_model, command, tmp_path):
    """Pairs, texts that are cut, and entities with their characters."""
    architecture, fields = ARCHITECTURES["regression"]
    pairs = make_model(tmp_path / "pairs", architecture, label2id={"score": 0}, **fields)
    rows = [*ROWS["regression"], {"text": "so very good " * 9, "text_pair": "a film and a book"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ("export", pairs, "--format", "stablehlo", "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "out")
    assert command(*line).status == 0
    expected = predicted(command, pairs, tmp_path / "rows.jsonl", tmp_path / "p.jsonl")
    found = list(room.runner.predict(room.Artifact(tmp_path / "out"), rows))
    assert [answer["score"] for answer in found] == pytest.approx([line["score"] for line in expected], abs=1e-5)

    architecture, fields = ARCHITECTURES["token_classification"]
    names = {name: number for number, name in fields["id2label"].items()}
    tagger = make_model(tmp_path / "tagger", architecture, label2id=names, **fields)
    line = ("export", tagger, "--format", "stablehlo", "--out", tmp_path / "tags")
    assert command(*line).status == 0
    text = "the film was bad"
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (expected,) = predicted(command, tagger, tmp_path / "text.jsonl", tmp_path / "t.jsonl")
    (found,) = room.runner.predict(room.Artifact(tmp_path / "tags"), [{"text": text}])
    assert [text[start:end] for start, end in found["offsets"]] == expected["words"]
    assert found["tags"] == expected["tags"]


def near(value):
    """Numbers to four digits, so that two runs of a program can be compared as a whole."""
    if isinstance(value, dict):
        return {name: near(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [near(entry) for entry in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


@pytest.mark.parametrize("format", ["stablehlo", "flax", "hf"])
def test_images_are_exported_with_how_they_are_prepared(format, fine_tune, resnet, digits, command, tmp_path, request):
    run = request.getfixturevalue("image_run")
    out = tmp_path / "out"
    told = command("export", run, "--format", format, "--out", out)
    assert told.status == 0, told.err
    assert "rows of fixed examples" in told.out or f"rows of {digits}" in told.out
    expected = predicted(command, run, digits / "test", tmp_path / "a.jsonl")
    assert near(expected) == near(predicted(command, out, digits / "test", tmp_path / "b.jsonl"))
    if format == "stablehlo":
        (spec,) = room.Artifact(out).description["inputs"].values()
        assert spec == {"axes": ["batch", 8, 8, 1], "dtype": "uint8"}


@pytest.fixture(scope="module")
def image_run(fine_tune, resnet, digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "images"
    values = {"task": "image_classification", "model": str(resnet), "train": str(digits / "train"), "eval": None}
    return fine_tune(
        out, **values, steps=2, evaluate_every=2, max_length=finetune.Config.model_fields["max_length"].default
    ).out


def test_what_differs_from_the_model_is_not_kept(finished, refused, tmp_path, monkeypatch):
    write = export_formats.export.write_program

    def damaged(folder, function, params, inputs, **options):
        return write(folder, function, jax.tree.map(lambda leaf: leaf * 1.01, params), inputs, **options)

    monkeypatch.setattr(export_formats.export, "write_program", damaged)
    told = refused("export", finished.out, "--format", "stablehlo", "--out", tmp_path / "out")
    assert "the stablehlo export differs from the model by logits" in told
    assert "more than the tolerance of 1e-05, so it was not kept" in told
    assert not list(tmp_path.iterdir())


def test_a_difference_that_is_no_number_is_not_kept():
    live = SimpleNamespace(
        task="regression", inputs={"input_ids": None}, runs=lambda: lambda rows: {"logits": np.ones(1)}
    )
    batch = {"input_ids": np.ones((1, 2)), "attention_mask": np.ones((1, 2)), "valid": np.ones(1, bool)}
    found = export_formats.compare(live, lambda rows: {"logits": np.full(1, np.nan)}, [batch])
    assert not found.scaled <= 1e9


def test_a_folder_that_is_there_is_kept_unless_told_otherwise(exported, finished, refused, command, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    line = ("export", finished.out, "--format", "flax", "--out", out)
    assert "exists and is not empty; choose another --out, or pass --overwrite" in refused(*line)
    assert "holds no model, so it is not overwritten" in refused(*line, "--overwrite")
    (out / "mine").unlink()
    assert command(*line).status == 0
    assert command(*line, "--overwrite").status == 0
    for inside in (finished.out, finished.out / "model", finished.out.parent):
        line = ("export", finished.out, "--format", "hf", "--out", inside, "--overwrite")
        assert "which --overwrite replaces" in refused(*line)


def test_values_without_a_use_are_refused(finished, refused, tmp_path):
    line = ("export", finished.out, "--out", tmp_path / "out", "--format")
    assert "license and language are for the model card" in refused(*line, "onnx", "--license", "mit")
    assert "columns and split are those of data; give data too" in refused(*line, "hf", "--columns.text", "a")


def test_a_model_that_writes_is_refused_by_formats_of_one_pass():
    opened = SimpleNamespace(task="response", source="runs/x")
    for format in ("stablehlo", "onnx"):
        with pytest.raises(ValueError, match=f"runs/x is for response, .* and {format} holds one run"):
            export_formats.refuse_task(opened, format)
    export_formats.refuse_task(opened, "hf")


def test_an_export_is_no_model_to_export_or_train(exported, refused, tmp_path):
    for format in ("stablehlo", "flax"):
        line = ("export", exported(format).folder, "--format", "hf", "--out", tmp_path / "out")
        assert "is an export, to be asked alone; give the model that it was made from" in refused(*line)


def test_a_model_without_a_head_is_refused(encoder, refused, tmp_path):
    line = ("export", encoder, "--format", "stablehlo", "--out", tmp_path / "out")
    assert "has no head of a task; fine-tune it first" in refused(*line)


def test_without_the_extra_onnx_is_refused_before_any_work(refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    line = ("export", tmp_path / "nowhere", "--format", "onnx", "--out", tmp_path / "out")
    assert "the format onnx needs the package jax2onnx; pip install 'jaxptft[onnx]'" in refused(*line)


def test_onnxruntime_gives_the_models_numbers(exported, finished, files, command, refused, tmp_path):
    pytest.importorskip("jax2onnx", reason="the extra `onnx` is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    folder = exported("onnx").folder
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    assert [one.name for one in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = predicted(command, finished.out, files.test, tmp_path / "p.jsonl")
    for line, text in zip(expected[:4], data.read_table(str(files.test)).texts, strict=False):
        rows = {name: value.astype(np.int32) for name, value in tokenizer([text], return_tensors="np").items()}
        logits, probabilities = session.run(["logits", "probabilities"], rows)
        assert probabilities[0] == pytest.approx(list(line["probabilities"].values()), abs=1e-4)
        assert logits.shape == (1, 2)
    line = ("predict", folder, "--data", files.test, "--out", tmp_path / "q.jsonl")
    assert "was exported as onnx, which is read by other programs" in refused(*line)
