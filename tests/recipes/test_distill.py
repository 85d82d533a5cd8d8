"""A two-layer toy that has learnt which word tells the class, distilled into one layer, with labels and without."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from jaxptft import data, train
from jaxptft.recipes import distill, evaluate, settings
from jaxptft.recipes.distill_run import DistillRun
from jaxptft.recipes.teacher_logits import TaughtBatches


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, make_model, fine_tune):
    """A two-layer model that knows the rule."""
    folder = tmp_path_factory.mktemp("teacher")
    start = make_model(folder / "start", num_hidden_layers=2)
    return fine_tune(folder / "run", model=str(start), steps=60, evaluate_every=20)


@pytest.fixture(scope="module")
def lines(tmp_path_factory, files):
    """The training texts, one a line, without their labels."""
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("".join(f"{row.rsplit(',', 1)[0]}\n\n" for row in files.train.read_text().splitlines()[1:]))
    return path


@pytest.fixture(scope="module")
def config(base, teacher):
    """A function: (out, **changed values) -> the Config of a short distillation."""
    values = {key: value for key, value in base.items() if key != "model"}
    values |= {"teacher": str(teacher.out), "student": "layers:1"}

    def make(out, **changes) -> distill.Config:
        return settings.build(distill.Config, values | {"out": str(out)} | changes)

    return make


@pytest.fixture(scope="module")
def distilled(config, quickly):
    """A function: as `config` -> the result, and what was said."""

    def run(out, **changes) -> SimpleNamespace:
        said: list[str] = []
        with quickly():
            result = distill.run(config(out, **changes), say=said.append)
        return SimpleNamespace(**result._asdict(), said="\n".join(said))

    return run


@pytest.fixture
def built(config, quickly):
    """A function: as `config` -> a distillation, built and not begun, what its student's evaluation gives, and what
    that comes to for student and teacher."""

    def build(out, **changes) -> SimpleNamespace:
        with quickly(), train.StopFlag() as stop:
            work = DistillRun(config(out, **changes), name="distill", say=lambda line: None, stop=stop)
            found = work.training.evaluate(work.training.state, "eval")
            student, teacher = work.task.metrics(found.predictions, "eval"), work._judge_teacher()["eval"]
        return SimpleNamespace(work=work, evaluation=found.metrics, student=student, teacher=teacher)

    return build


@pytest.fixture(scope="module")
def unlabelled(distilled, tmp_path_factory, lines, files):
    """One layer, from lines of text alone, tested on rows that it never sees."""
    out = tmp_path_factory.mktemp("runs") / "unlabelled"
    changes = {"unlabelled": True, "train": str(lines), "test": str(files.test)}
    return distilled(out, steps=12, **changes)


def test_without_any_label_the_student_comes_near_its_teacher(unlabelled, lines_of, teacher, files, tmp_path):
    evaluations = lines_of(unlabelled.out, "evaluation")
    divergence = [line["distill/distillation/soft"] for line in evaluations]
    assert divergence[-1] < 0.2 * divergence[0]
    assert not any("classification/accuracy" in line for line in lines_of(unlabelled.out, "train"))
    report = json.loads((unlabelled.out / "report.json").read_text())
    assert report["teacher"]["test"] == unlabelled.teacher["test"]
    assert report["teacher"]["cached"] is True
    assert unlabelled.reports["test"].metrics["classification/accuracy"] > 0.9
    assert "64 rows from" in unlabelled.said
    assert unlabelled.said.splitlines()[-1].startswith("student")
    assert unlabelled.said.splitlines()[-1] in (unlabelled.out / "report.txt").read_text()
    # The teacher's numbers are those that `evaluate` gives it.
    request = evaluate.Config(model=str(teacher.out), data=str(files.test))
    found = evaluate.run(request, say=lambda _: None)
    assert found.metrics == pytest.approx(unlabelled.teacher["test"])


def test_transformers_loads_what_is_left(unlabelled, teacher):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(unlabelled.out / "model").eval()
    assert model.config.num_hidden_layers == 1
    assert model.config.id2label == {0: "neg", 1: "pos"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(unlabelled.out / "model")
    with torch.no_grad():
        logits = model(**tokenizer(["the film was good", "a bad book"], return_tensors="pt", padding=True)).logits
    assert logits.argmax(-1).tolist() == [1, 0]
    # Counted by torch.
    assert unlabelled.parameters == sum(tensor.numel() for tensor in model.parameters())
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(teacher.out / "model")
    assert unlabelled.teacher_parameters == sum(tensor.numel() for tensor in whole.parameters())


@pytest.fixture(scope="module")
def cached(distilled, tmp_path_factory):
    return distilled(tmp_path_factory.mktemp("runs") / "cached", temperature=4.0, keep_checkpoints=2)


def test_answers_that_were_kept_teach_as_those_given_anew(cached, distilled, tmp_path, tensors_of, lines_of):
    live = distilled(tmp_path / "live", temperature=4.0, teacher_logits="live")
    kept, anew = (tensors_of(run.out / "model") for run in (cached, live))
    for name, tensor in kept.items():
        if not name.endswith("key.bias"):  # which no softmax sees: its gradient, and what Adam makes of it, is rounding
            np.testing.assert_allclose(anew[name], tensor, rtol=0, atol=1e-4, err_msg=name)
    trained = [line for line in lines_of(cached.out, "train") if "distill/soft/loss" in line]
    assert len(trained) == 3
    for line in trained:  # of labels and teacher together
        parts = line["distill/soft/loss"] + line["task/classification/loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)


def test_a_run_goes_on_where_it_was_and_does_not_ask_its_teacher_again(
    cached, distilled, tmp_path, tensors_of, own_cache
):
    """The same run with its second half lost, and resumed."""
    kept = sorted((own_cache / "teacher_logits").iterdir())
    shutil.copytree(cached.out, tmp_path / "half")
    shutil.rmtree(next((tmp_path / "half" / "checkpoints").glob("step_*6")))
    again = distilled(tmp_path / "half", temperature=4.0, keep_checkpoints=2, resume=True)
    assert "at step 3" in again.said
    assert "rows answered" not in again.said
    assert "rows answered" in cached.said
    assert sorted((own_cache / "teacher_logits").iterdir()) == kept
    expected, found = (tensors_of(run.out / "model") for run in (cached, again))
    for name, tensor in expected.items():
        assert found[name].tobytes() == tensor.tobytes(), name


def test_another_teacher_on_resume_is_refused_by_its_name(config, quickly, teacher, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(teacher.out / "model", tmp_path / "teacher")
    values = {"teacher": str(folder), "steps": 1, "evaluate_every": 1}
    with quickly():
        distill.run(config(tmp_path / "run", **values), say=lambda line: None)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: array * 1.5 for name, array in tensors.items()}, folder / "model.safetensors")
    with quickly(), pytest.raises(ValueError, match="was trained with another teacher \\("):
        distill.run(config(tmp_path / "run", **values, resume=True), say=lambda line: None)


def test_texts_whose_words_change_are_answered_anew(config, tmp_path):
    with train.StopFlag() as stop:
        asked = config(tmp_path / "run", augment={"deletion": 0.5})
        work = DistillRun(asked, name="distill", say=lambda line: None, stop=stop)
    assert work.training.objective.constants["objectives"]["distill"]["teacher"] is not None
    assert "teacher_logits" not in work.batches["train"].batch_at(0)["task"]
    with pytest.raises(ValueError, match="teacher_logits cannot be cached where the training texts change; leave it"):
        distill.run(config(tmp_path / "kept", augment={"deletion": 0.5}, teacher_logits="cached"))


@pytest.mark.slow
def test_inner_layers_of_another_model_with_masked_tokens_beside(
    distilled, tmp_path, lines, lines_of, tensors_of, make_model
):
    run = distilled(
        tmp_path / "run",
        student=str(make_model(tmp_path / "narrow", hidden_size=8)),
        steps=1,
        evaluate_every=1,
        log_every=1,
        hidden=0.5,
        relation=1.0,
        matching={"relation_heads": 4},
        auxiliary={"weight": 0.1, "corpus": [str(lines)], "documents": "line"},
    )
    line = lines_of(run.out, "train")[-1]
    terms = ("hidden", "relation", "soft")
    parts = [line[f"distill/{term}/loss"] for term in terms]
    assert all(part > 0 for part in parts)
    # The auxiliary objective's weight is in its term.
    whole = sum(parts) + line["task/classification/loss"] + line["mlm/masked_lm/loss"]
    assert line["loss"] == pytest.approx(whole, rel=1e-5)
    tensors = tensors_of(run.out / "model")
    assert sum(tensor.size for tensor in tensors.values()) == run.parameters  # neither projection nor mask head
    assert tensors["bert.encoder.layer.0.output.dense.weight"].shape == (8, 24)


def test_numbers_are_distilled_by_squared_differences(tmp_path, built, make_model, csv_file):
    rows = [(f"the film was {word} {word}", str(number)) for word, number in (("good", 1.5), ("bad", -2.0))] * 8
    train = str(csv_file(tmp_path / "numbers.csv", rows))
    values = {"task": "regression", "train": train, "eval": train, "monitor": "mse"}
    known = make_model(tmp_path / "known", "BertForSequenceClassification", num_labels=1, problem_type="regression")
    run = built(tmp_path / "run", teacher=str(known), student="layers:0", **values)
    # A student that is its teacher still.
    assert run.student == pytest.approx(run.teacher)
    assert run.student["regression/mse"] > 0
    assert run.evaluation["distill/distillation/soft"] == pytest.approx(0, abs=1e-6)


def test_tags_of_texts_of_several_widths_are_distilled(tmp_path, built, make_model):
    """More evaluation rows than a batch has, so that logits a token come in several widths."""
    rows = [("the film", "B-X O"), ("a very good book was so very bad", "O O O B-X O O O O")]
    path = tmp_path / "tags.txt"
    blocks = ["".join(f"{word} {tag}\n" for word, tag in zip(*map(str.split, row), strict=True)) for row in rows]
    path.write_text("\n".join(blocks[number > 33] for number in range(68)))
    names = {0: "O", 1: "B-X", 2: "I-X"}
    known = make_model(tmp_path / "known", "BertForTokenClassification", id2label=names)
    values = {"task": "token_classification", "train": str(path), "eval": str(path)}
    run = built(tmp_path / "run", teacher=str(known), student="layers:0", **values)
    assert run.evaluation["distill/distillation/soft"] == pytest.approx(0, abs=1e-6)  # its teacher still
    assert run.student == pytest.approx(run.teacher)
    assert run.work.cached


def test_logits_are_put_beside_the_rows_they_belong_to():
    table = data.make_table(["a b", "c", "d e f"])
    tokens = data.Tokenized(np.arange(6, dtype=np.int32), np.array([0, 2, 3, 6]), np.array([2, 1, 3]), 8, 0, 0, "x")
    assert len(table) == len(tokens)
    batches = data.Batches(tokens, batch_size=2, shuffle=False, multiple_of=2)
    logits = np.arange(6, dtype=np.float32).reshape(3, 2) + 1
    one, two = (TaughtBatches(batches, logits, key=key) for key in "ab")
    assert one.fingerprint != two.fingerprint
    for step in range(2):
        batch = one.batch_at(step)
        expected = [logits[number] if number >= 0 else [0, 0] for number in batch["ids"]]
        np.testing.assert_array_equal(batch["teacher_logits"], np.float32(expected))
    a_token = np.arange(48, dtype=np.float32).reshape(3, 8, 2) + 1  # rows of 8 tokens at most
    batch = TaughtBatches(batches, a_token, key="c").batch_at(1)
    assert batch["ids"].tolist() == [1, -1]
    width = batch["input_ids"].shape[1]
    np.testing.assert_array_equal(batch["teacher_logits"], [a_token[1, :width], np.zeros((width, 2))])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "x"}, "a distillation has no model, but a student"),
        ({"soft": 0.0}, "soft, hidden, attention and relation are all 0"),
        ({"student": "layers:x"}, "student is 'layers:x'; expected layers counted from 0"),
        ({"matching": {"layers": "up"}}, "matching.layers: a layer map is 'up'"),
        ({"unlabelled": True, "eval": None}, "training rows without labels cannot choose the best model; give eval"),
        ({"unlabelled": True, "task": "regression"}, "unlabelled rows are for classification, and task is regression"),
        ({"unlabelled": True, "label_smoothing": 0.1}, "label_smoothing does not go with unlabelled"),
        (
            {"unlabelled": True, "adaptation": {"target": "x.csv", "importance": True}},
            "adaptation.importance weighs labelled rows, and they are unlabelled",
        ),
        ({"unlabelled": True, "columns": {"tags": "x"}}, "columns.tags is 'x', and classification has no use for it"),
        ({"baseline": "scratch"}, "baseline is of a fine-tuning, and the teacher stands beside a student"),
        ({"lora": {"rank": 1}}, "adapters are for a model in a folder, and student layers:1 is in none; make one"),
        ({"student": "tiny", "freeze": "backbone"}, "every parameter starts afresh, and freeze='backbone' would keep"),
        ({"task": "question_answering"}, "has no head for question_answering; fine-tune it first"),
        ({"task": "regression", "temperature": 2.0}, "temperature softens a choice between classes"),
        ({"task": "token_classification"}, "has no head for token_classification; fine-tune it first"),
        ({"task": "regression"}, "is for single_label_classification, and task is regression; choose its --task"),
        ({"hidden": 1.0, "teacher_logits": "cached"}, "cannot be cached where the inner layers are matched"),
        ({"hidden": 1.0, "matching": {"layers": "1:3"}}, r"pairs \(1, 3\); expected a student layer from 0 to 1"),
        ({"student": "layers:2"}, "numbers of layers from 0 to 1, got 2"),
    ],
)
def test_mistakes_come_before_the_first_step(changes, message, config, tmp_path):
    with pytest.raises(ValueError, match=message):
        distill.run(config(tmp_path / "run", **changes), say=lambda _: None)
    assert not (tmp_path / "run").exists()


def test_a_student_of_other_tokens_or_a_teacher_of_other_classes_is_refused(config, tmp_path, make_model, csv_file):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    other = make_model(tmp_path / "other", words=words)
    with pytest.raises(ValueError, match="have different tokenizers, and so no tokens in common"):
        distill.run(config(tmp_path / "run", student=str(other)), say=lambda _: None)
    rows = csv_file(tmp_path / "rows.csv", [("a good film", "yes"), ("a bad film", "no")] * 4)
    with pytest.raises(ValueError, match="the training rows tell no, yes apart, and the teacher neg, pos"):
        distill.run(config(tmp_path / "run", train=str(rows), eval=str(rows)), say=lambda _: None)


def test_frozen_layers_of_a_student_are_run_again_since_the_teacher_reads_whole_rows(distilled, tmp_path):
    run = distilled(tmp_path / "run", freeze="backbone", steps=8, cache_features="on")
    assert "cache_features keeps nothing: no whole layer is frozen, or another objective reads" in run.said
    assert run.best_step > 0
