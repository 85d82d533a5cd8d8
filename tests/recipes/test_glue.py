"""GLUE's tasks from tiny made-up folders; each score is scikit-learn's or scipy's on transformers' own predictions."""

import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import transformers
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from jaxptft.recipes import finetune, glue, settings
from jaxptft.recipes.glue_tasks import TASKS, score_of

WORDS = ["the", "film", "book", "was", "good", "bad"]


def rows(task: str, count: int, seed: int) -> dict[str, list]:
    """Rows with the hub's columns: the label is whether good is in the text, or the first text."""
    rng = np.random.default_rng(seed)
    wanted = TASKS[task]
    texts = [" ".join(rng.choice(WORDS, 4)) for _ in range(count)]
    found: dict[str, list] = {wanted.text: texts}
    if wanted.pair:
        found[wanted.pair] = [" ".join(rng.choice(WORDS, 3)) for _ in range(count)]
    good = [("good" in text) + ("bad" in text) * (task == "mnli") for text in texts]
    found["label"] = [5.0 * value for value in good] if wanted.kind == "regression" else good
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """mrpc and mnli saved by datasets, cola and stsb as files in folders spelt as the benchmark's own."""
    made = tmp_path_factory.mktemp("glue")
    names = {"mrpc": ["not_equivalent", "equivalent"], "mnli": ["entailment", "neutral", "contradiction"]}
    for task, classes in names.items():
        features = {column: datasets.Value("string") for column in (TASKS[task].text, TASKS[task].pair)}
        features["label"] = datasets.ClassLabel(names=classes)
        parts = {
            split: datasets.Dataset.from_dict(rows(task, 24, number), features=datasets.Features(features))
            for number, split in enumerate(("train", *TASKS[task].splits))
        }
        datasets.DatasetDict(parts).save_to_disk(str(made / task))
    for spelling, task, stem in (("CoLA", "cola", "dev"), ("STS-B", "stsb", "validation")):
        (made / spelling).mkdir()
        for split, number in (("train", 10), (stem, 11)):
            values = rows(task, 24, number)
            if task == "stsb":
                values["score"] = values.pop("label")
            datasets.Dataset.from_dict(values).to_csv(made / spelling / f"{split}.csv")
    return made


@pytest.fixture(scope="module")
def run_glue(encoder, folder, quickly):
    def run(out, **changes):
        said: list[str] = []
        values = {"model": str(encoder), "data": str(folder), "out": str(out), "max_length": 16, "length_buckets": 1}
        values |= {
            "steps": 8,
            "batch_size": 8,
            "learning_rate": 0.02,
            "dropout": 0.0,
            "devices": 1,
            "evaluate_every": 4,
        }
        with quickly():
            found = glue.run(settings.build(glue.Config, values | changes), say=said.append)
        return SimpleNamespace(found=found, said="\n".join(said))

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_glue):
    out = tmp_path_factory.mktemp("runs") / "glue"
    return SimpleNamespace(out=out, **vars(run_glue(out, tasks="mrpc,mnli")))


def torchs(folder, model, task, split):
    """transformers' classes for the rows of a split, and the truth."""
    part = datasets.load_from_disk(str(folder / task))[split]
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    names = part.features["label"].names
    texts = (list(part[TASKS[task].text]), list(part[TASKS[task].pair]))
    with torch.no_grad():
        logits = network(**tokenizer(*texts, padding=True, return_tensors="pt")).logits
    assert list(network.config.id2label.values()) == names
    return logits.argmax(-1).numpy(), np.array(part["label"])


def test_scores_are_those_of_the_kept_models(finished, folder):
    tasks = finished.found["tasks"]
    said, truth = torchs(folder, finished.out / "mrpc" / "model", "mrpc", "validation")
    assert tasks["mrpc"]["metrics"] == {
        "accuracy": pytest.approx(accuracy_score(truth, said)),
        "f1": pytest.approx(f1_score(truth, said)),
    }
    found = tasks["mnli"]["metrics"]
    assert list(found) == ["accuracy (matched)", "accuracy (mismatched)"]
    for kind in ("matched", "mismatched"):
        said, truth = torchs(folder, finished.out / "mnli" / "model", "mnli", f"validation_{kind}")
        assert found[f"accuracy ({kind})"] == pytest.approx(accuracy_score(truth, said))
    assert finished.found["score"] == pytest.approx(
        np.mean([np.mean(list(t["metrics"].values())) for t in tasks.values()])
    )
    assert json.loads((finished.out / "results.json").read_text()) == finished.found
    assert "accuracy (matched)" in finished.said
    assert "GLUE, validation rows" in finished.said


@pytest.fixture
def asked(monkeypatch):
    """Fine-tunings that are not done; a report is left as they would leave it."""
    found = []

    def pretend(config, *, name, say):
        found.append(config)
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "config.yaml").write_text(config.to_yaml())
        metrics = {"regression/pearson": 0.5, "regression/spearman": 0.7, "regression/mse": 1.0}
        (config.out / "report.json").write_text(json.dumps({"rows": {"eval": 24}, "eval": {"metrics": metrics}}))
        return SimpleNamespace(seconds=2.0)

    monkeypatch.setattr("jaxptft.recipes.finetune.run", pretend)
    return found


def test_finished_tasks_are_read_and_new_ones_run(finished, run_glue, asked, folder):
    again = run_glue(finished.out, tasks="stsb,mrpc", resume=True)
    assert list(again.found["tasks"]) == ["stsb", "mrpc"]
    assert again.found["tasks"]["mrpc"] == finished.found["tasks"]["mrpc"]
    assert "mrpc: done before" in again.said
    assert again.found["tasks"]["stsb"] == {
        "metrics": {"pearson": 0.5, "spearman": 0.7},
        "score": pytest.approx(0.6),
        "rows": 24,
        "seconds": 2.0,
    }
    (config,) = asked
    assert (config.train, config.eval) == (str(folder / "STS-B/train.csv"), str(folder / "STS-B/validation.csv"))
    assert (config.task, config.resume, config.steps) == ("regression", False, 8)
    assert config.columns == finetune.Columns(text="sentence1", pair="sentence2", label="score")


def test_a_task_that_was_stopped_or_is_to_be_longer_goes_on(run_glue, asked, tmp_path, folder):
    run_glue(tmp_path / "out", tasks="stsb,cola", steps=8)
    assert asked[1].eval == str(folder / "CoLA/dev.csv")
    (tmp_path / "out/cola/report.json").unlink()
    run_glue(tmp_path / "out", tasks="stsb,cola", steps=8, resume=True)
    assert [(config.out.name, config.resume) for config in asked[2:]] == [("cola", True)]
    run_glue(tmp_path / "out", tasks="stsb", steps=12, resume=True)
    assert [(config.out.name, config.resume, config.steps) for config in asked[3:]] == [("stsb", True, 12)]


def test_scores_from_a_confusion_matrix_are_scikit_learns():
    truth = np.array([0, 0, 1, 1, 1, 0, 1])
    said = np.array([0, 1, 1, 1, 0, 0, 1])
    confusion = [[2, 1], [1, 3]]  # rows: truth, by hand
    for labels in (["0", "1"], ["no", "yes"], ["not_equivalent", "equivalent"]):
        report = {"metrics": {"classification/accuracy": 5 / 7}, "confusion": confusion, "labels": labels}
        assert score_of("f1", report) == pytest.approx(f1_score(truth, said))
        assert score_of("matthews", report) == pytest.approx(matthews_corrcoef(truth, said))
        assert score_of("accuracy", report) == 5 / 7
    turned = {"metrics": {}, "confusion": confusion, "labels": ["equivalent", "not_equivalent"]}
    assert score_of("f1", turned) == pytest.approx(f1_score(1 - truth, 1 - said, pos_label=1))
    assert score_of("pearson", {"metrics": {"regression/mse": 1.0}}) == 0.0


def test_what_does_not_fit_is_refused(refused, run_glue, finished, folder, encoder, tmp_path):
    def complaint(*more, out=tmp_path / "out"):
        return refused("glue", "--model", encoder, "--data", folder, "--out", out, "--max-length", "16", *more)

    assert "there is no task 'sst'; did you mean 'sst2'?" in complaint("--tasks", "cola,sst")
    assert "names a task twice" in complaint("--tasks", "cola,cola")
    assert "holds no folder for the task rte; expected" in complaint("--tasks", "rte")
    assert not (tmp_path / "out").exists()
    assert "already holds a benchmark; continue it with --resume" in complaint(out=finished.out)
    assert "holds no run to resume" in complaint("--resume")
    with pytest.raises(FileNotFoundError, match="holds no benchmark to resume"):
        run_glue(tmp_path / "other", resume=True)
    said = complaint("--resume", "--seed", "3", out=finished.out)
    assert "seed is 3, but the benchmark in" in said
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("")
    assert "is not empty and holds no benchmark" in complaint(out=tmp_path / "mine")
    (tmp_path / "data" / "rte").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no file train"):
        run_glue(tmp_path / "other", data=str(tmp_path / "data"), tasks="rte")
    with pytest.raises(FileNotFoundError, match="is no folder; give one that holds a folder for each task, or hub"):
        run_glue(tmp_path / "other", data=str(tmp_path / "nowhere"), tasks="rte")
