"""Fine-tuning on label sets, from the command line's recipe to what transformers makes of the model."""

import json

import numpy as np
import pytest
import torch
import transformers
from sklearn.metrics import accuracy_score, f1_score

from jaxptft import data
from jaxptft.recipes.tasks import multi_label
from jaxptft.recipes.tasks.settings import MultiLabel

FILLER = ["the", "film", "was", "very"]
SIGNS = {"praise": "good", "blame": "bad", "prose": "book"}


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Words, and the labels whose sign is among them, between bars."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        names = [name for name in SIGNS if rng.random() < 0.4]
        words = rng.permutation([*rng.choice(FILLER, 3), *(SIGNS[name] for name in names)]).tolist()
        found.append((" ".join(words), "|".join(names)))
    return found


@pytest.fixture(scope="module")
def sets(tmp_path_factory, csv_file):
    folder = tmp_path_factory.mktemp("sets")
    return {
        name: csv_file(folder / f"{name}.csv", rows(n, n)) for name, n in (("train", 192), ("eval", 30), ("test", 24))
    }


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, fine_tune, sets):
    out = tmp_path_factory.mktemp("runs") / "multi_label"
    values = {name: str(path) for name, path in sets.items()}
    options = {"task": "multi_label", "labels": {"delimiter": "|", "threshold": "each"}}
    more = {"sampling": "balanced", "augment": {"swap": 0.2}, "steps": 96, "evaluate_every": 24}
    return fine_tune(out, **values, **options, **more)


def torchs(folder, path):
    """transformers' probabilities for each row of a file, its loss, and the truth."""
    lines = [line.split(",") for line in path.read_text().splitlines()[1:]]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    names = list(model.config.id2label.values())
    truth = np.array([[name in labels.split("|") for name in names] for _, labels in lines])
    with torch.no_grad():
        inputs = tokenizer([text for text, _ in lines], padding=True, return_tensors="pt")
        out = model(**inputs, labels=torch.tensor(truth).float())
    return model.config, out.logits.double().sigmoid().numpy(), float(out.loss), truth


def settled_of(folder) -> dict:
    return json.loads((folder / "report.json").read_text())["settled"]


def test_it_learns_and_transformers_gives_the_same_probabilities(learnt, sets):
    config, probabilities, _, truth = torchs(learnt.out / "model", sets["test"])
    assert config.problem_type == "multi_label_classification"
    assert list(config.id2label.values()) == ["blame", "praise", "prose"]
    thresholds = [settled_of(learnt.out)["thresholds"][name] for name in config.id2label.values()]
    said = probabilities > thresholds
    assert learnt.reports["test"].metrics == {
        "multi_label/micro_f1": pytest.approx(f1_score(truth, said, average="micro")),
        "multi_label/macro_f1": pytest.approx(f1_score(truth, said, average="macro")),
        "multi_label/subset_accuracy": pytest.approx(accuracy_score(truth, said)),
    }
    assert learnt.reports["test"].metrics["multi_label/micro_f1"] > 0.75
    assert "labels: blame, praise, prose" in learnt.said


def test_the_best_evaluation_is_what_the_kept_model_comes_to(learnt, sets, lines_of):
    """While it learns, thresholds are settled anew at every evaluation; the loss is transformers'."""
    best = max(lines_of(learnt.out, "evaluation"), key=lambda line: line["multi_label/micro_f1"])
    assert learnt.reports["eval"].metrics["multi_label/micro_f1"] == pytest.approx(best["multi_label/micro_f1"])
    _, _, loss, _ = torchs(learnt.out / "model", sets["eval"])
    assert best["multi_label/loss"] == pytest.approx(loss, rel=1e-4)


def test_what_the_options_come_to(learnt, sets):
    """Balanced weights by hand: rows without the label over rows with it."""

    def made(**changes):
        config = learnt.config.model_copy(update=changes)
        parts = {"tokenizer": data.load_tokenizer(learnt.out / "model"), "architecture": None, "devices": 1}
        return multi_label.read(config, checkpoint_names=None, say=lambda line: None, **parts)

    having = np.array(
        [[name in labels.split("|") for name in ("blame", "praise", "prose")] for _, labels in rows(192, 192)]
    )
    balanced = made(class_weights="balanced", sampling="plain")
    np.testing.assert_allclose(balanced._weights, (~having).sum(0) / having.sum(0))
    assert balanced.batches["train"].weights is None
    balanced.truth["train"] = np.array([[True, True, False], *[[True, False, False]] * 3])
    config = learnt.config.model_copy(update={"class_weights": "balanced"})
    assert balanced._positive_weights(config) == [1.0, 3.0, 1.0]  # all rows have the first, and none the last
    given = made(weights_by_class={"prose": 3.0}, labels=MultiLabel(delimiter="|"))
    assert given._weights == [1.0, 1.0, 3.0]
    np.testing.assert_allclose(given.batches["train"].weights, data.balanced_weights(having))
    np.testing.assert_array_equal(given.truth["train"], having)
    logits = np.random.default_rng(0).normal(size=(30, 3))
    assert list(given.settle({"logits": logits})) == ["threshold"]
    assert list(made().settle({"logits": logits})) == ["thresholds"]


def test_predict_and_evaluate_use_the_settled_thresholds(learnt, sets, command, tmp_path):
    told = command("predict", learnt.out, "--data", sets["test"], "--out", tmp_path / "p.jsonl")
    assert told.status == 0, told.err
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    config, probabilities, _, _ = torchs(learnt.out / "model", sets["test"])
    names = list(config.id2label.values())
    np.testing.assert_allclose(
        [[line["probabilities"][name] for name in names] for line in lines], probabilities, atol=1e-5
    )
    thresholds = settled_of(learnt.out)["thresholds"]
    for line in lines:
        assert line["labels"] == [name for name in names if line["probabilities"][name] > thresholds[name]]
    options = ("--labels.delimiter", "|", "--out", tmp_path / "e.json")
    told = command("evaluate", learnt.out, "--data", sets["test"], *options)
    assert told.status == 0, told.err
    assert json.loads((tmp_path / "e.json").read_text())["metrics"] == pytest.approx(learnt.reports["test"].metrics)


def test_another_threshold_may_be_asked_for(learnt, sets, command, refused, tmp_path):
    """Below every probability, so that every label applies."""
    low = ("--settled.threshold", "0")
    assert command("predict", learnt.out, "--data", sets["test"], "--out", tmp_path / "p.jsonl", *low).status == 0
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert all(line["labels"] == ["blame", "praise", "prose"] for line in lines)
    options = ("--data", sets["test"], "--labels.delimiter", "|", "--out", tmp_path / "e.json")
    assert command("evaluate", learnt.out, *options, *low).status == 0
    assert set(json.loads((tmp_path / "e.json").read_text())["thresholds"].values()) == {0.0}
    complaint = refused("evaluate", learnt.out, "--data", sets["test"], "--settled.threshold", "2")
    assert "settled.threshold is 2.0; multi_label has probabilities above it: give one from 0 to 1" in complaint


def test_columns_of_flags_are_labels_in_the_models_order(learnt, sets, command, tmp_path):
    lines = [line.split(",") for line in sets["test"].read_text().splitlines()[1:]]
    flags = [
        f"{text},{int('prose' in names)},{int('blame' in names)},{int('praise' in names)}" for text, names in lines
    ]
    (tmp_path / "flags.csv").write_text("\n".join(["text,prose,blame,praise", *flags]) + "\n")
    columns = ("--labels.columns", "prose", "blame", "praise")
    told = command("evaluate", learnt.out, "--data", tmp_path / "flags.csv", *columns, "--out", tmp_path / "e.json")
    assert told.status == 0, told.err
    assert json.loads((tmp_path / "e.json").read_text())["metrics"] == pytest.approx(learnt.reports["test"].metrics)


def test_what_does_not_fit_is_refused(flags, refused, sets, learnt, csv_file, tmp_path):
    def complaint(*more):
        own = ("--task", "multi_label", "--labels.delimiter", "|", "--train", sets["train"], "--eval", sets["eval"])
        return refused("finetune", *flags, *own, *more)

    assert "label_smoothing is 0.1, and multi_label has no use for it" in complaint("--label-smoothing", "0.1")
    weights = ("--weights-by-class", "fame", "2.0")
    assert "weights_by_class names 'fame'; expected labels: blame, praise, prose" in complaint(*weights)
    both = ("--weights-by-class", "blame", "2.0", "--class-weights", "balanced")
    assert "both class_weights and weights_by_class are given" in complaint(*both)
    odd = csv_file(tmp_path / "odd.csv", [("a film", "fame")])
    assert "row 2, column 'label': label 'fame' is not known; known are: blame, praise, prose" in complaint(
        "--eval", odd
    )
    assert "label 'fame' is not known" in refused("evaluate", learnt.out, "--data", odd)
