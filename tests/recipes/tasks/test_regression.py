"""Fine-tuning on numbers, from the command line's recipe to what transformers makes of the model."""

import json

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import pearsonr, spearmanr

from jaxptft import data
from jaxptft.recipes.tasks import regression

FILLER = ["the", "film", "was", "very"]
SCORES = {"good": 2.5, "bad": -1.0, "book": 0.25}


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Four words, and the number that one of them stands for."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        sign = str(rng.choice(list(SCORES)))
        found.append((" ".join(rng.permutation([*rng.choice(FILLER, 3), sign])), str(SCORES[sign])))
    return found


@pytest.fixture(scope="module")
def numbers(tmp_path_factory, csv_file):
    folder = tmp_path_factory.mktemp("numbers")
    return {
        name: csv_file(folder / f"{name}.csv", rows(n, n), "text,score_of_film")
        for name, n in (("train", 80), ("eval", 24), ("test", 20))
    }


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, fine_tune, numbers):
    out = tmp_path_factory.mktemp("runs") / "regression"
    values = {name: str(path) for name, path in numbers.items()}
    options = {"task": "regression", "columns": {"label": "score_of_film"}, "steps": 60, "evaluate_every": 20}
    return fine_tune(out, **values, **options)


def torchs(folder, path):
    """transformers' numbers for each row of a file, its loss, and the targets."""
    lines = [line.split(",") for line in path.read_text().splitlines()[1:]]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    targets = torch.tensor([float(score) for _, score in lines])
    with torch.no_grad():
        out = model(**tokenizer([text for text, _ in lines], padding=True, return_tensors="pt"), labels=targets)
    return model.config, out.logits[:, 0].numpy(), float(out.loss), targets.numpy()


def test_it_learns_and_transformers_gives_the_same_numbers(learnt, numbers):
    config, logits, loss, targets = torchs(learnt.out / "model", numbers["test"])
    assert (config.problem_type, config.num_labels, config.id2label) == ("regression", 1, {0: "score"})
    metrics = learnt.reports["test"].metrics
    assert metrics["regression/mse"] == pytest.approx(loss, rel=1e-4)
    assert metrics["regression/pearson"] == pytest.approx(pearsonr(logits, targets)[0], abs=1e-5)
    assert metrics["regression/spearman"] == pytest.approx(spearmanr(logits, targets)[0], abs=1e-5)
    assert metrics["regression/pearson"] > 0.8
    recorded = json.loads((learnt.out / "report.json").read_text())
    assert recorded["test"]["metrics"] == metrics
    assert (learnt.out / "predictions_test.png").is_file()
    assert "targets: " in learnt.said


def test_predict_and_evaluate_repeat_the_run(learnt, numbers, command, tmp_path):
    told = command("predict", learnt.out, "--data", numbers["test"], "--out", tmp_path / "p.jsonl")
    assert told.status == 0, told.err
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    _, logits, _, _ = torchs(learnt.out / "model", numbers["test"])
    assert [line["row"] for line in lines] == list(range(2, 22))
    np.testing.assert_allclose([line["score"] for line in lines], logits, atol=1e-4)
    flags = ("--columns.label", "score_of_film", "--out", tmp_path / "e.json")
    told = command("evaluate", learnt.out, "--data", numbers["test"], *flags)
    assert told.status == 0, told.err
    found = json.loads((tmp_path / "e.json").read_text())["metrics"]
    assert found == pytest.approx(learnt.reports["test"].metrics, rel=1e-4)
    assert "20 rows from" in told.out


def test_a_head_with_one_output_keeps_its_name(learnt):
    def names(known):
        parts = {"tokenizer": data.load_tokenizer(learnt.out / "model"), "architecture": None, "devices": 1}
        return regression.read(learnt.config, checkpoint_names=known, say=lambda line: None, **parts).names

    assert names(["stars"]) == ("stars",)
    assert names(["neg", "pos"]) == names(None) == ("score",)


def test_what_does_not_fit_is_refused(flags, refused, numbers, csv_file, tmp_path):
    def complaint(*more):
        return refused("finetune", *flags, "--task", "regression", *more)

    label = ("--train", numbers["train"], "--eval", numbers["eval"], "--columns.label", "score_of_film")
    assert "row 2, column 'label': is 'p" in complaint() or "row 2, column 'label': is 'n" in complaint()
    for flag, value in (("--class-weights", "balanced"), ("--label-smoothing", "0.1"), ("--sampling", "balanced")):
        assert "and regression has no use for it; leave it out" in complaint(*label, flag, value)
    assert "monitor is 'accuracy'; regression has pearson, spearman, mse, loss" in complaint(
        *label, "--monitor", "accuracy"
    )
    flat = csv_file(tmp_path / "flat.csv", [("a film", "2"), ("the film", "2.0")], "text,score_of_film")
    said = complaint(*label[:2], "--eval", flat, *label[4:])
    assert "has target 2, and correlations are undefined: give other rows, or choose --monitor mse" in said
