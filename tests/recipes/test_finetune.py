import json

import jax
import numpy as np
import pytest
import torch
import transformers
import yaml

from jaxptft import optim
from jaxptft.recipes import finetune, settings
from jaxptft.recipes.training_settings import total_steps


def test_a_run_folder_holds_what_is_promised(finished):
    found = {path.name for path in finished.out.iterdir()} - {".lock"}
    assert found == {
        *("config.yaml", "metrics.jsonl", "speed.jsonl", "checkpoints", "model", "report.json", "report.txt"),
        *("history.png", "confusion_eval.png", "confusion_test.png"),
    }
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert {path.name for path in (finished.out / "model").iterdir()} == model
    assert {path.name for path in (finished.out / "checkpoints").iterdir()} == {"best", "step_00000060"}
    assert all((finished.out / name).stat().st_size > 1000 for name in ("history.png", "confusion_eval.png"))


def test_it_learns_the_rule_and_reports_on_rows_it_never_saw(finished):
    # One word decides the class: above 0.9 is far from the 0.5 of chance.
    report = json.loads((finished.out / "report.json").read_text())
    assert report["test"]["metrics"]["classification/accuracy"] > 0.9
    assert np.sum(report["test"]["confusion"]) == 30  # the rows of test.csv
    assert report["rows"] == {"train": 64, "eval": 24, "test": 30}
    assert report["steps"] == 60
    assert report["best_step"] == finished.best_step
    assert report["test"]["labels"] == ["neg", "pos"]
    assert "pos" in (finished.out / "report.txt").read_text()


def test_the_best_step_is_the_first_of_the_highest_accuracies(finished, lines_of):
    evaluations = lines_of(finished.out, "evaluation")
    accuracies = [line["classification/accuracy"] for line in evaluations]
    assert [line["step"] for line in evaluations] == [20, 40, 60]
    assert finished.best_step == evaluations[int(np.argmax(accuracies))]["step"]


def test_the_model_folder_loads_in_torch_with_the_same_logits_and_labels(finished, files):
    from jaxptft import data
    from jaxptft.recipes.inference import Opened
    from jaxptft.recipes.tasks.classification import logits

    folder = finished.out / "model"
    table = data.read_table(str(files.test))
    ours = logits(Opened(finished.out), table, say=lambda _: None)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        theirs = model(**tokenizer(table.texts, padding=True, return_tensors="pt")).logits.numpy()
    assert model.config.id2label == {0: "neg", 1: "pos"}
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)  # the origin of the expected values is torch


def test_the_recorded_config_runs_again_to_the_same_log(finished, command, tmp_path):
    # dotted overrides included: the value given is the one recorded, so nothing may change
    line = ("finetune", "--config", finished.out / "config.yaml", "--out", tmp_path / "again")
    assert command(*line, "--optimizer.weight-decay", "0.01").status == 0
    assert (tmp_path / "again/metrics.jsonl").read_bytes() == (finished.out / "metrics.jsonl").read_bytes()
    one, two = (yaml.safe_load((out / "config.yaml").read_text()) for out in (finished.out, tmp_path / "again"))
    assert one.pop("out") != two.pop("out")
    assert one == two


def test_dotted_flags_and_flat_ones_override_the_file(finished, command, refused, tmp_path):
    line = ["finetune", "--config", finished.out / "config.yaml", "--out", tmp_path / "run", "--steps", "2"]
    refused(*line, "--optimizer.multipliers", "nothing/**", "0.5")  # after which the corrected line runs
    line += ["--optimizer.weight-decay", "0.5", "--optimizer.multipliers", "backbone/**", "0.1", "--seed=3"]
    assert command(*line).status == 0
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (recorded["steps"], recorded["seed"], recorded["optimizer"]["weight_decay"]) == (2, 3, 0.5)
    assert recorded["optimizer"]["multipliers"] == {"backbone/**": 0.1}
    assert recorded["learning_rate"] == 0.01


@pytest.mark.parametrize(
    "changes, expected",
    [({"steps": 7}, 7), ({"epochs": 2}, 8), ({"epochs": 0.3}, 2), ({"epochs": 0.001}, 1), ({}, 12)],
    ids=str,
)
def test_steps_and_epochs_say_how_long(changes, expected):
    # By hand: 4 steps an epoch, three epochs where nothing is said, at least one step.
    config = settings.build(finetune.Config, {"model": "m", "train": "t", "out": "o", **changes})
    assert total_steps(config, 4) == expected


@pytest.fixture(scope="module")
def half(fine_tune, tmp_path_factory):
    """Half an epoch, without evaluation rows."""
    out = tmp_path_factory.mktemp("runs") / "half"
    return fine_tune(out, eval=None, steps=None, epochs=0.5, evaluate_every=None)


def test_epochs_count_passes_over_the_training_rows(half, lines_of):
    # Some 60 rows in batches of 16: half an epoch is 2 steps, and the evaluation comes after the last.
    assert [line["step"] for line in lines_of(half.out, "evaluation")] == [2]


def test_without_evaluation_rows_a_tenth_of_the_training_rows_is_held_out(half):
    # By hand: a tenth of 64 rows, whole texts kept together, is 6 at most.
    facts = json.loads((half.out / "report.json").read_text())
    assert facts["rows"]["train"] + facts["rows"]["eval"] == 64
    assert 1 <= facts["rows"]["eval"] <= 6
    assert "rows cut from" in half.said


def test_from_scratch_starts_afresh(built, tmp_path, encoder, tensors_of):
    run = built(tmp_path / "run", from_scratch=True)
    assert "fresh (from scratch)" in run.said[-1]
    # Initial values have a spread of initializer_range = 0.02; the source's were drawn with 0.2.
    assert tensors_of(encoder)["encoder.layer.0.attention.self.query.weight"].std() == pytest.approx(0.2, rel=0.2)
    kernel = run.training.state.params["backbone"]["layer_0"]["attention"]["query"]["kernel"]
    assert kernel.std() == pytest.approx(0.02, rel=0.3)


def test_balanced_class_weights_make_each_class_weigh_the_same(built, first_loss, tmp_path, csv_file):
    rows = [("the film was good", "pos")] * 28 + [("the film was bad", "neg")] * 4
    train = str(csv_file(tmp_path / "skewed.csv", rows))
    for weights in ("none", "balanced"):
        run = built(tmp_path / "run", train=train, eval=train, batch_size=32, class_weights=weights)
        terms, predictions, batch = first_loss(run)
        each = -np.asarray(jax.nn.log_softmax(predictions["logits"]))[np.arange(32), batch["label"]]
        n, p = (float(each[batch["label"] == label].mean()) for label in (0, 1))
        assert abs((28 * p + 4 * n) / 32 - (p + n) / 2) > 1e-3
        # By hand, with p and n the losses of the two texts.
        expected = (28 * p + 4 * n) / 32 if weights == "none" else (p + n) / 2
        assert terms["classification"] == pytest.approx(expected, abs=1e-5)


def test_a_head_for_the_same_labels_is_imported(fine_tune, tmp_path, classifier, tensors_of):
    kept = fine_tune(tmp_path / "kept", model=str(classifier), steps=1, learning_rate=1e-9)
    assert "head imported" in kept.said
    before, after = tensors_of(classifier), tensors_of(tmp_path / "kept/model")
    np.testing.assert_allclose(after["classifier.weight"], before["classifier.weight"], atol=1e-6)


@pytest.fixture(scope="module")
def odd(fine_tune, tmp_path_factory, make_model, csv_file):
    """A model in half precision, for other labels of which a text has several, on rows some too long and some bad."""
    folder = tmp_path_factory.mktemp("odd")
    labels = {"id2label": {0: "sad", 1: "so-so", 2: "glad"}, "label2id": {"sad": 0, "so-so": 1, "glad": 2}}
    labels |= {"problem_type": "multi_label_classification"}
    model = make_model(folder / "model", "BertForSequenceClassification", dtype=torch.float16, **labels)
    rows = [("the film was good", "pos"), ("a book is bad", "neg")] * 8 + [("the " * 30 + "bad", "neg")] * 3
    train = csv_file(folder / "train.csv", [*rows, ("", "neg"), ("it is good", "")])
    # 20 positions, no multiple of the 8 that widths of batches are otherwise.
    return fine_tune(
        folder / "run", model=str(model), train=str(train), max_length=20, on_bad_row="skip", steps=1, evaluate_every=1
    )


def test_a_head_for_other_labels_is_dropped_and_said(odd, tensors_of):
    assert "head is dropped: it tells sad, so-so, glad apart" in odd.said
    assert "head fresh" in odd.said
    assert tensors_of(odd.out / "model")["classifier.weight"].shape == (2, 16)


def test_the_model_that_leaves_is_a_single_label_classifier(odd):
    fields = json.loads((odd.out / "model/config.json").read_text())
    assert fields["problem_type"] == "single_label_classification"


def test_texts_that_are_too_long_are_cut_said_and_counted(odd):
    assert "19 rows from" in odd.said
    assert "3 cut to 20 tokens" in odd.said
    assert json.loads((odd.out / "report.json").read_text())["truncated"] == {"train": 3, "eval": 0}


def test_bad_rows_are_skipped_and_counted_when_asked(odd):
    assert "2 bad rows skipped" in odd.said
    report = json.loads((odd.out / "report.json").read_text())
    assert report["skipped_rows"] == {"train": 2, "eval": 0}
    assert report["rows"]["train"] == 19


def test_a_checkpoint_in_half_precision_is_saved_as_it_was_evaluated(odd, tensors_of):
    # In float16 the saved weights would not be the ones that were chosen and reported on.
    assert {array.dtype.name for array in tensors_of(odd.out / "model").values()} == {"float32"}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(odd.out / "model")
    assert model.dtype == torch.float32


def test_patience_ends_a_run_early(fine_tune, tmp_path, lines_of):
    # Nothing moves at this rate, so the first evaluation is the best: two more without a gain end the run.
    fine_tune(tmp_path / "run", steps=20, evaluate_every=1, patience=2, learning_rate=1e-12)
    assert [line["step"] for line in lines_of(tmp_path / "run", "evaluation")] == [1, 2, 3]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "cyclical", "inverse_sqrt"])
@pytest.mark.parametrize("warmup, steps", [(0.0, 1), (0.9, 1), (0.5, 6)])
def test_every_schedule_builds_for_any_length(schedule, warmup, steps, base, tmp_path):
    rate = optim.schedule(schedule, peak=1.0, steps=steps, warmup=warmup)
    assert all(0.0 <= float(rate(step)) <= 1.0 for step in range(steps))


def test_what_is_trained_does_not_depend_on_what_is_tested(fine_tune, tmp_path, files, csv_file):
    """Dropout on: its draws depend on the padded width, which longer test rows must not change."""
    longer = csv_file(tmp_path / "long.csv", [("it was a good film " * 3, "pos"), ("it was bad", "neg")])
    values = {"dropout": 0.3, "steps": 2, "evaluate_every": 2}
    fine_tune(tmp_path / "one", **values)
    fine_tune(tmp_path / "two", **values, test=str(longer))
    one, two = (tmp_path / name / "model/model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
