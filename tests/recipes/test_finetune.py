import json

import jax
import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.numpy import load_file, save_file

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


def test_dotted_flags_and_flat_ones_override_the_file(finished, command, tmp_path):
    line = ["finetune", "--config", finished.out / "config.yaml", "--out", tmp_path / "run", "--steps", "2"]
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


def test_epochs_count_passes_over_the_training_rows(fine_tune, tmp_path, lines_of):
    fine_tune(tmp_path / "run", steps=None, epochs=0.5, evaluate_every=None)
    # 64 rows in batches of 16: half an epoch is 2 steps, and the evaluation comes after the last.
    assert [line["step"] for line in lines_of(tmp_path / "run", "evaluation")] == [2]


FROZEN = {
    "backbone": ("bert.",),
    "all-but-top-1": ("bert.embeddings.", "bert.encoder.layer.0."),
    "backbone/embeddings/word/**,**/layer_1/mlp/{up,down}/bias": (
        *("bert.embeddings.word_embeddings.", "bert.encoder.layer.1.intermediate.dense.bias"),
        *("bert.encoder.layer.1.output.dense.bias",),
    ),
}


@pytest.mark.parametrize("freeze", FROZEN)
def test_frozen_tensors_are_byte_for_byte_those_of_the_source(freeze, fine_tune, tmp_path, make_model, tensors_of):
    source = make_model(tmp_path / "source", num_hidden_layers=2)
    changes = {"model": str(source), "optimizer": {"weight_decay": 0.5}, "dropout": 0.1}
    result = fine_tune(tmp_path / "run", freeze=freeze, steps=3, **changes)
    # An encoder's tensors carry no "bert." prefix.
    before, after = tensors_of(source), tensors_of(tmp_path / "run/model")
    assert {name for name in after if not name.startswith("bert.")} == {"classifier.weight", "classifier.bias"}
    trained = 0
    for name, array in after.items():
        source = before.get(name.removeprefix("bert."))
        if name.startswith(FROZEN[freeze]):
            assert array.tobytes() == source.tobytes(), name
        else:
            trained += array.size
            assert source is None or array.tobytes() != source.tobytes(), name
    assert (result.trainable, result.parameters) == (trained, sum(array.size for array in after.values()))


def test_l2_to_pretrained_is_a_term_in_the_log_over_the_trainable_backbone(fine_tune, tmp_path, lines_of):
    fine_tune(tmp_path / "run", l2_to_pretrained=0.1, freeze="all-but-top-0", log_every=1)
    terms = [line["l2_to_pretrained/loss"] for line in lines_of(tmp_path / "run", "train")]
    # The first step is taken at the pre-trained values, where the penalty is 0; then it grows.
    assert terms[0] == 0.0
    assert terms[-1] > 0.0
    for line in lines_of(tmp_path / "run", "train"):
        assert line["loss"] == pytest.approx(line["classification/loss"] + line["l2_to_pretrained/loss"], rel=1e-5)


def test_l2_to_pretrained_keeps_the_weights_nearer(fine_tune, one_way, tmp_path, encoder, tensors_of):
    def moved(out):
        before, after = tensors_of(encoder), tensors_of(out / "model")
        return sum(float(np.square(after[f"bert.{name}"] - array).sum()) for name, array in before.items())

    fine_tune(tmp_path / "near", **ONE_WAY, l2_to_pretrained=10.0)
    assert moved(tmp_path / "near") < 0.5 * moved(one_way)


def test_from_scratch_starts_afresh(fine_tune, tmp_path, classifier, encoder, tensors_of):
    result = fine_tune(tmp_path / "run", from_scratch=True, steps=1, learning_rate=1e-9)
    assert "fresh (from scratch)" in result.said
    before, after = tensors_of(encoder), tensors_of(tmp_path / "run/model")
    kernel = "encoder.layer.0.attention.self.query.weight"
    # Initial values have a spread of initializer_range = 0.02; the source's were drawn with 0.2.
    assert before[kernel].std() == pytest.approx(0.2, rel=0.2)
    assert after[f"bert.{kernel}"].std() == pytest.approx(0.02, rel=0.3)


def test_balanced_class_weights_make_each_class_weigh_the_same(fine_tune, tmp_path, csv_file, lines_of, encoder):
    rows = [("the film was good", "pos")] * 28 + [("the film was bad", "neg")] * 4
    train = csv_file(tmp_path / "skewed.csv", rows)
    options = {"train": str(train), "eval": str(train), "steps": 1, "log_every": 1, "batch_size": 32}
    for weights in ("none", "balanced"):
        fine_tune(tmp_path / weights, class_weights=weights, learning_rate=1e-9, **options)
    plain, balanced = (lines_of(tmp_path / weights, "train")[0]["loss"] for weights in ("none", "balanced"))
    # By hand: with losses p and n of the two texts, (28 p + 4 n) / 32 and (p + n) / 2 differ unless p = n.
    from jaxptft import data
    from jaxptft.recipes.inference import Opened
    from jaxptft.recipes.tasks.classification import logits

    table = data.make_table(["the film was good", "the film was bad"])
    scores = logits(Opened(tmp_path / "none"), table, say=lambda _: None)
    p, n = (-jax.nn.log_softmax(scores)[[0, 1], [1, 0]]).tolist()
    assert plain == pytest.approx((28 * p + 4 * n) / 32, abs=1e-4)
    assert balanced == pytest.approx((p + n) / 2, abs=1e-4)
    assert abs(plain - balanced) > 1e-3


def test_without_evaluation_rows_a_tenth_of_the_training_rows_is_held_out(fine_tune, tmp_path):
    result = fine_tune(tmp_path / "run", eval=None, steps=1)
    # By hand: a tenth of 64 rows, whole texts kept together, is 6 at most.
    facts = json.loads((tmp_path / "run/report.json").read_text())
    assert facts["rows"]["train"] + facts["rows"]["eval"] == 64
    assert 1 <= facts["rows"]["eval"] <= 6
    assert "rows cut from" in result.said


def test_a_head_for_the_same_labels_is_imported_and_another_is_dropped_and_said(
    fine_tune, tmp_path, classifier, make_model, tensors_of
):
    kept = fine_tune(tmp_path / "kept", model=str(classifier), steps=1, learning_rate=1e-9)
    assert "head imported" in kept.said
    before, after = tensors_of(classifier), tensors_of(tmp_path / "kept/model")
    np.testing.assert_allclose(after["classifier.weight"], before["classifier.weight"], atol=1e-6)

    labels = {"id2label": {0: "sad", 1: "so-so", 2: "glad"}, "label2id": {"sad": 0, "so-so": 1, "glad": 2}}
    other = make_model(tmp_path / "other", "BertForSequenceClassification", **labels)
    dropped = fine_tune(tmp_path / "dropped", model=str(other), steps=1)
    assert "head is dropped: it tells sad, so-so, glad apart" in dropped.said
    assert "head fresh" in dropped.said
    assert tensors_of(tmp_path / "dropped/model")["classifier.weight"].shape == (2, 16)


# Softmax takes no notice of the keys' bias, whose gradient is rounding alone: with a small eps Adam blows it up.
# Batches of 12 rows do not split over 8 devices or 3 micro-steps on them, so padding rows come in too.
ONE_WAY = {"optimizer": {"eps": 1e-3}, "batch_size": 12}
WAYS = [{"parallel": "pmap"}, {"devices": 8}, {"devices": 8, "parallel": "pmap", "accumulate": 3}, {"accumulate": 2}]


@pytest.fixture(scope="module")
def one_way(fine_tune, tmp_path_factory):
    """A run under jit, on one device, in one piece."""
    return fine_tune(tmp_path_factory.mktemp("runs") / "one", **ONE_WAY).out


@pytest.mark.parametrize("variant", WAYS, ids=str)
def test_devices_pmap_and_micro_steps_train_the_same_model(variant, fine_tune, tmp_path, one_way, tensors_of, lines_of):
    fine_tune(tmp_path / "run", **ONE_WAY, **variant)
    one, other = (tensors_of(out / "model") for out in (one_way, tmp_path / "run"))
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, atol=1e-5, err_msg=name)
    losses = [[line["loss"] for line in lines_of(out, "train")] for out in (one_way, tmp_path / "run")]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)


def test_texts_that_are_too_long_are_cut_said_and_counted(fine_tune, tmp_path, csv_file):
    rows = [("the film was good", "pos"), ("a book is bad", "neg")] * 8 + [("the " * 30 + "bad", "neg")] * 3
    train = csv_file(tmp_path / "long.csv", rows)
    # 20 positions, no multiple of the 8 that widths of batches are otherwise.
    result = fine_tune(tmp_path / "run", train=str(train), max_length=20, steps=3)
    assert "19 rows from" in result.said
    assert "3 cut to 20 tokens" in result.said
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["truncated"] == {"train": 3, "eval": 0}


def test_bad_rows_are_skipped_and_counted_when_asked(fine_tune, tmp_path, csv_file):
    rows = [("the film was good", "pos"), ("a book is bad", "neg")] * 8 + [("", "neg"), ("it is good", "")]
    train = csv_file(tmp_path / "gaps.csv", rows)
    result = fine_tune(tmp_path / "run", train=str(train), on_bad_row="skip", steps=1)
    assert "2 bad rows skipped" in result.said
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["skipped_rows"] == {"train": 2, "eval": 0}
    assert report["rows"]["train"] == 16


def test_a_checkpoint_in_half_precision_is_saved_as_it_was_evaluated(fine_tune, tmp_path, make_model, tensors_of):
    source = make_model(tmp_path / "half", dtype=torch.float16)
    fine_tune(tmp_path / "run", model=str(source))
    # In float16 the saved weights would not be the ones that were chosen and reported on.
    assert {array.dtype.name for array in tensors_of(tmp_path / "run/model").values()} == {"float32"}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model")
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


# What is refused, each in one line with status 2, and without taking the output folder.


def bad_files(folder, csv_file):
    good = [("the film was good", "pos"), ("a book is bad", "neg")]
    (folder / "empty.csv").write_text("")
    csv_file(folder / "header.csv", [])
    csv_file(folder / "one_class.csv", [("the film was good", "pos")] * 4)
    csv_file(folder / "columns.csv", good, header="words,label")
    (folder / "latin.csv").write_bytes("text,label\nthe caf\xe9,pos\na book is bad,neg\n".encode("latin-1"))
    csv_file(folder / "stranger.csv", [*good, ("so so", "meh")])
    csv_file(folder / "gap.csv", [*good, ("", "pos")])


@pytest.mark.parametrize(
    "changes, expected",
    [
        (["--train", "empty.csv"], "empty.csv: is empty"),
        (["--train", "header.csv"], "header.csv: has a header and no rows"),
        (["--train", "one_class.csv"], "every row has label 'pos'; a classifier needs two classes"),
        (["--train", "columns.csv"], "no column could be the text; choose one; columns found: 'words', 'label'"),
        (["--columns.text", "txet"], "there is no column 'txet'"),
        (["--train", "latin.csv"], "row 2, column 'text': is not UTF-8 text (byte 0xe9"),
        (["--train", "gap.csv"], "row 4, column 'text': is empty"),
        (["--eval", "stranger.csv"], "row 4, column 'label': label 'meh' is not known; known are: neg, pos"),
        (["--test", "stranger.csv"], "row 4, column 'label': label 'meh' is not known"),
        (["--train", "nowhere.csv"], "nowhere.csv: there is no such file or folder"),
        (["--model", "./nowhere"], "nowhere does not exist"),
        (["--model", "."], "holds no model"),
        (["--max-length", "21"], "max_length is 21, but "),
        (["--learning-rate", "0"], "--learning-rate is 0.0: Input should be greater than 0"),
        (["--learning-rate", "-1e-3"], "--learning-rate is -0.001: Input should be greater than 0"),
        (["--learning-rate", "fast"], "--learning-rate: could not convert string to float: 'fast'"),
        (["--steps", "1.5"], "--steps"),
        (["--steps", "0"], "--steps is 0: Input should be greater than or equal to 1"),
        (["--epochs", "2"], "both steps and epochs are given; give one"),
        (["--optimizer.warmup", "1.0"], "--optimizer.warmup is 1.0: Input should be less than 1"),
        (["--optimizer.multipliers", "backbone/leyer_0/**", "0.5"], "pattern 'backbone/leyer_0/**' matches nothing"),
        (["--devices", "99"], "devices is 99, but this machine shows 8"),
        (["--freeze", "backbone/layer_9/**"], "pattern 'backbone/layer_9/**' matches nothing; nearest paths: "),
        (["--freeze", "**"], "freeze '**' leaves nothing to train"),
        (["--freeze", "bakbone"], "freeze 'bakbone' is neither 'none', 'backbone'"),
        (["--freeze", "all-but-top-2"], "cannot train the top 2 layers of a backbone with 1"),
        (["--freeze", "backbone", "--l2-to-pretrained", "0.1"], "l2_to_pretrained needs trainable parameters"),
        (["--from-scratch", "--l2-to-pretrained", "0.1"], "l2_to_pretrained needs trainable parameters"),
        (["--lerning-rate", "1"], "unknown flag --lerning-rate; did you mean 'learning-rate'?"),
        (["--optimizer.warmpu", "1"], "unknown flag --optimizer.warmpu; did you mean 'optimizer.warmup'?"),
        (
            ["--monitor", "accuracies"],
            "monitor is 'accuracies'; classification has accuracy, macro_f1, loss",
        ),
        (["--resume"], "holds no run to resume"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused_in_one_line(changes, expected, refused, flags, tmp_path, csv_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad_files(tmp_path, csv_file)
    replaced = {flag: value for flag, value in zip(changes[::2], changes[1::2], strict=False)}
    pairs = [(flag, value) for flag, value in zip(flags[::2], flags[1::2], strict=True) if flag not in replaced]
    complaint = refused("finetune", *(part for pair in pairs for part in pair), *changes)
    assert expected in complaint
    assert not (tmp_path / "run" / "config.yaml").exists()  # so that the corrected line is not told of a run there


def test_a_corrected_command_line_runs_after_a_mistake(refused, command, flags, tmp_path):
    refused("finetune", *flags, "--optimizer.multipliers", "nothing/**", "0.5")
    assert command("finetune", *flags).status == 0


def test_a_vocabulary_larger_than_the_embedding_table_is_refused(refused, flags, tmp_path, make_model):
    make_model(tmp_path / "model", vocab_size=18)  # its tokenizer knows 19 words
    complaint = refused("finetune", *flags, "--model", tmp_path / "model")
    assert "the tokenizer has 19 ids, and the model's embedding table 18 rows" in complaint


def test_a_checkpoint_of_another_family_is_refused(refused, flags, tmp_path, make_model):
    folder = make_model(tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text()) | {"model_type": "t5"}
    (folder / "config.json").write_text(json.dumps(fields))
    assert "t5" in refused("finetune", *flags, "--model", folder)


@pytest.mark.parametrize(
    "content, expected",
    [
        ("lerning_rate: 0.1", "config.yaml: unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ("optimizer: {warmpu: 0.1}", "unknown key 'optimizer.warmpu'; did you mean 'optimizer.warmup'?"),
        ("steps: yes", "'steps' is True: Input should be a number"),
        ("steps: many", "'steps' is 'many': Input should be a valid integer"),
        ("learning_rate: .inf", "'learning_rate' is inf: Input should be a finite number"),
        ("epochs: .inf", "'epochs' is inf: Input should be a finite number"),
        ("freeze: [1, 2]", "'freeze' is [1, 2]: Input should be a valid string"),
        ("optimizer: fast", "'optimizer' is 'fast': "),
        ("{steps: 3, epochs: 2}", "both steps and epochs are given; give one"),
        ("- 1", "holds a list; expected a mapping"),
        ("on: 1", "the key True is a bool; expected a name"),
        ("steps: [", "is not YAML: "),
        ("steps: 2020-13-45", "is not YAML: month must be in 1..12"),
        ("steps: !!int ''", "is not YAML: "),
        ("steps: !!python/object:os.system 1", "is not YAML: "),
        ("[" * 5000, "is not YAML: "),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(content, expected, refused, tmp_path, files, encoder):
    (tmp_path / "config.yaml").write_text(content)
    line = ["--model", encoder, "--train", files.train, "--out", tmp_path / "run"]
    complaint = refused("finetune", "--config", tmp_path / "config.yaml", *line)
    assert expected in complaint
    assert not (tmp_path / "run").exists()


def test_l2_factors_choose_what_is_held(fine_tune, tmp_path, encoder, tensors_of):
    """Adam's steps do not shrink with the gradient, so a strong pull shows as a small distance: by pattern, and only
    where the pattern says."""
    values = {"steps": 30, "freeze": "all-but-top-0", "l2_to_pretrained": 100.0, "log_every": 30}
    factors = {"backbone/pooler/bias": 0.0}
    fine_tune(tmp_path / "run", **values, l2={"factors": factors})
    start, end = tensors_of(encoder), tensors_of(tmp_path / "run" / "model")
    start = {name.removeprefix("bert."): value for name, value in start.items()}
    moved = {
        name: float(np.abs(end[f"bert.pooler.dense.{name}"] - start[f"pooler.dense.{name}"]).mean())
        for name in ("weight", "bias")
    }
    assert moved["bias"] > 4 * moved["weight"]


def test_l2_new_pulls_the_new_head_to_zero(fine_tune, tmp_path, lines_of):
    values = {"freeze": "all-but-top-0", "l2_to_pretrained": 1.0, "log_every": 1}
    fine_tune(tmp_path / "without", **values)
    fine_tune(tmp_path / "with", **values, l2={"new": 5.0})
    without, heavy = (lines_of(tmp_path / name, "train")[0]["l2_to_pretrained/loss"] for name in ("without", "with"))
    assert without == 0.0  # before the first step nothing imported has moved, and the new head is left alone
    assert heavy > 0.0


def test_l2_shapes_without_a_weight_and_unknown_patterns_are_refused(fine_tune, tmp_path):
    with pytest.raises(ValueError, match=r"l2.factors and l2.new shape l2_to_pretrained, which is 0"):
        fine_tune(tmp_path / "run", l2={"new": 1.0})
    with pytest.raises(ValueError, match="nothing/\\*\\*"):
        fine_tune(tmp_path / "run", l2_to_pretrained=1.0, l2={"factors": {"nothing/**": 1.0}})


def test_parameters_that_start_afresh_must_not_be_frozen(fine_tune, tmp_path, make_model):
    model = make_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if "pooler" not in name}, model / "model.safetensors")
    values = {"model": str(model), "allow_missing": ["pooler.*"]}
    with pytest.raises(
        ValueError, match=r"backbone/pooler/\w+ is not in .*, so it starts afresh, and freeze='backbone'"
    ):
        fine_tune(tmp_path / "run", **values, freeze="backbone")
    assert fine_tune(tmp_path / "run", **values, freeze="backbone/embeddings/**").best_step > 0


def test_what_is_trained_does_not_depend_on_what_is_tested(fine_tune, tmp_path, files, csv_file):
    """Dropout on: its draws depend on the padded width, which longer test rows must not change."""
    longer = csv_file(tmp_path / "long.csv", [("it was a good film " * 3, "pos"), ("it was bad", "neg")])
    fine_tune(tmp_path / "one", dropout=0.3)
    fine_tune(tmp_path / "two", dropout=0.3, test=str(longer))
    one, two = (tmp_path / name / "model/model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_the_model_that_leaves_is_a_single_label_classifier(fine_tune, tmp_path, make_model):
    many = make_model(tmp_path / "many", "BertForSequenceClassification", problem_type="multi_label_classification")
    fine_tune(tmp_path / "run", model=str(many))
    fields = json.loads((tmp_path / "run/model/config.json").read_text())
    assert fields["problem_type"] == "single_label_classification"
