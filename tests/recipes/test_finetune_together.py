"""What is minimised beside a task."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents of several sentences in the words that the tiny tokenizer knows."""
    rng = np.random.default_rng(0)
    words = ["the", "a", "film", "book", "was", "is", "very", "good", "bad"]
    lines = [" ".join(rng.choice(words, 40)) for _ in range(30)]
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def beside(corpus, fine_tune, tmp_path_factory):
    auxiliary = {"weight": 0.25, "corpus": [str(corpus)], "documents": "line", "batch_size": 4}
    out = tmp_path_factory.mktemp("runs") / "beside"
    return fine_tune(out, steps=4, log_every=1, evaluate_every=2, auxiliary=auxiliary, l2_to_pretrained=0.1)


def test_the_loss_is_the_weighted_sum_of_its_parts(beside, lines_of):
    for line in lines_of(beside.out, "train"):
        parts = line["task/classification/loss"] + line["mlm/masked_lm/loss"] + line["l2_to_pretrained/loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)  # each term as it enters the sum, its weight included
        assert line["mlm/masked_lm/loss"] > 0


def test_the_evaluation_is_of_the_task_alone_under_its_own_names(beside, lines_of):
    (line, *_) = lines_of(beside.out, "evaluation")
    assert {"classification/accuracy", "classification/loss", "classification/macro_f1"} <= set(line)
    assert not any(name.startswith(("mlm/", "task/")) for name in line)


def test_the_head_of_the_auxiliary_objective_starts_afresh_where_the_checkpoint_has_none_and_is_not_saved(beside):
    assert "lacks the head mlm: fresh" in beside.said
    assert "auxiliary: " in beside.said
    tensors = load_file(beside.out / "model/model.safetensors")
    assert not any("predictions" in name for name in tensors)
    config = json.loads((beside.out / "model/config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_a_head_in_the_checkpoint_is_used(corpus, fine_tune, make_model, tmp_path):
    model = make_model(tmp_path / "model", "BertForMaskedLM")
    auxiliary = {"weight": 0.25, "corpus": [str(corpus)], "documents": "line"}
    allowed = {"model": str(model), "allow_missing": ["pooler.*"]}
    result = fine_tune(tmp_path / "run", steps=1, auxiliary=auxiliary, **allowed)
    assert "lacks the head mlm" not in result.said
    assert "lacks backbone/pooler" in result.said


def test_an_auxiliary_objective_needs_weight_and_corpus(refused, flags, corpus, tmp_path):
    needs = "auxiliary needs a weight and a corpus: give both, or neither"
    assert needs in refused("finetune", *flags, "--auxiliary.weight", "1")
    assert needs in refused("finetune", *flags, "--auxiliary.corpus", corpus)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    complaint = refused("finetune", *flags, "--auxiliary.weight", "1", "--auxiliary.corpus", empty)
    assert "empty.txt" in complaint


@pytest.mark.slow
def test_a_baseline_from_scratch_stands_beside_the_run(fine_tune, tmp_path, files):
    values = {"steps": 2, "test": str(files.test), "freeze": "backbone/embeddings/**", "l2_to_pretrained": 0.1}
    result = fine_tune(tmp_path / "run", baseline="scratch", **values)
    alone = fine_tune(tmp_path / "alone", from_scratch=True, steps=2, test=str(files.test))
    report = json.loads((tmp_path / "run/report.json").read_text())
    for split in ("eval", "test"):
        assert report["baseline"][split] == alone.reports[split].metrics == result.baseline[split].metrics
    assert "what pre-training is worth" in (tmp_path / "run/report.txt").read_text()
    accuracy = result.reports["test"].metrics["classification/accuracy"]
    other = alone.reports["test"].metrics["classification/accuracy"]
    (line,) = [line for line in result.said.splitlines() if line.startswith("test classification/accuracy")]
    assert line.split()[2:] == [f"{accuracy:.4f}", f"{other:.4f}"]
    again = fine_tune(tmp_path / "run", baseline="scratch", overwrite=True, **values)
    assert again.baseline["test"].metrics == alone.reports["test"].metrics


def test_rows_are_balanced_and_their_words_change(fine_tune, tmp_path, csv_file, lines_of):
    train = csv_file(
        tmp_path / "skewed.csv", [("the film was so good", "pos")] * 28 + [("the film was bad", "neg")] * 4
    )
    options = {"train": str(train), "eval": str(train), "steps": 2, "log_every": 1, "learning_rate": 1e-9}
    plain, balanced, changed = (
        lines_of(fine_tune(tmp_path / name, **options, **changes).out, "train")
        for name, changes in (
            ("plain", {}),
            ("balanced", {"sampling": "balanced"}),
            ("changed", {"augment": {"deletion": 0.5}}),
        )
    )
    losses = [lines[0]["classification/loss"] for lines in (plain, balanced, changed)]
    assert len({round(loss, 4) for loss in losses}) == 3
