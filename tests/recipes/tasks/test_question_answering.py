"""Fine-tuning for answers from files to exact characters, and the same answers from transformers."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import data, models, objectives, train
from jaxptft.recipes import distill, finetune, settings
from jaxptft.recipes.distill_run import DistillRun
from jaxptft.recipes.tasks import answering as asking
from jaxptft.recipes.tasks import question_answering

# No articles: an answer that is one alone counts as none.
FILLER = ["film", "book", "was", "is", "very", "so", "it", "and", "one"]
QUESTION = "was it"


def questions(rows: int, seed: int) -> dict:
    """Contexts of 12 to 20 words, some with a word that is the answer, in SQuAD's form."""
    rng = np.random.default_rng(seed)
    paragraphs = []
    for number in range(rows):
        words = [str(word) for word in rng.choice(FILLER, rng.integers(12, 21))]
        answers = []
        if number % 4:
            word, place = str(rng.choice(["good", "BAD"])), int(rng.integers(len(words)))
            words[place] = word
            start = sum(len(other) + 2 for other in words[:place])
            answers = [{"text": word, "answer_start": start}, {"text": word, "answer_start": start}]
        asked = {"id": f"q{number}", "question": QUESTION, "answers": answers, "is_impossible": not answers}
        paragraphs.append({"context": "  ".join(words), "qas": [asked]})
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}


@pytest.fixture(scope="module")
def squad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squad")
    sizes = {"train": 64, "dev": 24, "test": 20}
    paths = {}
    for seed, (name, rows) in enumerate(sizes.items()):
        paths[name] = folder / f"{name}.json"
        paths[name].write_text(json.dumps(questions(rows, seed)))
    return paths


@pytest.fixture(scope="module")
def answering(tmp_path_factory, fine_tune, squad):
    """A run that has learnt which words are answers."""
    return fine_tune(
        tmp_path_factory.mktemp("runs") / "answering",
        task="question_answering",
        train=str(squad["train"]),
        eval=str(squad["dev"]),
        test=str(squad["test"]),
        answers={"stride": 4, "max_answer": 3},
        steps=50,
        evaluate_every=25,
        learning_rate=0.03,
        length_buckets=1,
    )


def run_qa_answers(folder, rows, *, stride, max_length, max_answer, threshold, n_best=20):
    """transformers' own model, its windows, and `postprocess_qa_predictions` of its utils_qa.py."""
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for question, context in zip(rows.questions, rows.contexts, strict=True):
        encoded = tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        found, null = {}, np.inf
        for index, offsets in enumerate(encoded["offset_mapping"]):
            names = ("input_ids", "attention_mask", "token_type_ids")
            with torch.no_grad():
                out = model(**{name: torch.tensor(encoded[name][index])[None] for name in names})
            starts, ends = out.start_logits[0].double().numpy(), out.end_logits[0].double().numpy()
            null = min(null, starts[0] + ends[0])
            inside = [place for place, owner in enumerate(encoded.sequence_ids(index)) if owner == 1]
            for s in sorted(inside, key=lambda place: -starts[place])[:n_best]:
                for e in sorted(inside, key=lambda place: -ends[place])[:n_best]:
                    if s <= e < s + max_answer:
                        span = (offsets[s][0], offsets[e][1])
                        found[span] = max(found.get(span, -np.inf), starts[s] + ends[e])
        (start, end), score = max(found.items(), key=lambda item: item[1])
        yield "" if null - score > threshold else context[start:end]


def test_it_learns_to_answer_and_to_say_that_there_is_no_answer(answering, squad):
    metrics = answering.reports["test"].metrics
    assert metrics["question_answering/f1"] > 0.8
    assert metrics["question_answering/no_answer_exact_match"] > 0.5
    assert "test: 20 rows" in answering.said
    assert "windows, 5 without an answer" in answering.said
    report = json.loads((answering.out / "report.json").read_text())
    assert report["rows"] == {"train": 64, "eval": 24, "test": 20}
    assert report["windows"]["train"] > 100
    assert isinstance(report["test"]["null_threshold"], float)
    assert "exact_match" in (answering.out / "report.txt").read_text()


def test_predictions_are_transformers_and_stand_in_the_context(answering, squad, command, tmp_path):
    told = command("predict", answering.out, "--data", squad["test"], "--out", tmp_path / "p.jsonl")
    assert told.status == 0, told.err
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    rows = data.read_questions(squad["test"])
    assert [line["id"] for line in lines] == rows.ids
    assert [line["row"] for line in lines] == list(range(1, 21))
    for line, context in zip(lines, rows.contexts, strict=True):
        for found in [line, *line["n_best"]]:
            assert context[found["start"] : found["end"]] == found["answer"]
        assert 0 <= line["score"] <= 1
        assert [found["score"] for found in line["n_best"]] == sorted(
            (f["score"] for f in line["n_best"]), reverse=True
        )
    threshold = answering.reports["test"].details["null_threshold"]
    options = {"stride": 4, "max_length": 16, "max_answer": 3, "threshold": threshold}
    theirs = list(run_qa_answers(answering.out / "model", rows, **options))
    assert [line["answer"] for line in lines] == theirs
    assert {"", "good", "BAD"} <= set(theirs)


def test_rows_read_in_pieces_are_answered_alike_and_share_no_id(
    answering, squad, command, refused, tmp_path, monkeypatch
):
    rows = data.read_questions(squad["test"])
    flat = tmp_path / "rows.jsonl"

    def written(ids):
        asked = zip(ids, rows.questions, rows.contexts, strict=True)
        lines = [json.dumps({"id": key, "question": question, "context": context}) for key, question, context in asked]
        flat.write_text("\n".join(lines) + "\n", encoding="utf-8")

    written(rows.ids)
    nested = command("predict", answering.out, "--data", squad["test"], "--out", tmp_path / "nested.jsonl")
    monkeypatch.setattr(asking, "PIECE", 6)
    pieces = command("predict", answering.out, "--data", flat, "--out", tmp_path / "pieces.jsonl")
    assert (nested.status, pieces.status) == (0, 0), pieces.err
    expected, found = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("nested.jsonl", "pieces.jsonl")
    )
    assert [(line["row"], line["id"], line["answer"]) for line in found] == [
        (line["row"], line["id"], line["answer"]) for line in expected
    ]
    np.testing.assert_allclose([line["score"] for line in found], [line["score"] for line in expected], atol=3e-6)

    written([*rows.ids[:-1], rows.ids[0]])  # in the last piece, as in the first
    told = refused("predict", answering.out, "--data", flat, "--out", tmp_path / "none.jsonl")
    assert "row 20, column 'id': is" in told
    assert "as in row 1; every question needs its own" in told
    assert not (tmp_path / "none.jsonl").exists()


def test_evaluation_is_the_runs_own(answering, squad, command, tmp_path):
    told = command("evaluate", answering.out, "--data", squad["test"], "--out", tmp_path / "e.json")
    assert told.status == 0, told.err
    found = json.loads((tmp_path / "e.json").read_text())["metrics"]
    assert found == pytest.approx(answering.reports["test"].metrics)


def test_another_threshold_may_be_asked_for(answering, squad, command, tmp_path):
    """So high that there is always an answer: of a fifth of the questions, none is right."""
    told = command("predict", answering.out, "--data", squad["test"], "--out", tmp_path / "p.jsonl", *HIGH)
    assert told.status == 0, told.err
    assert all(json.loads(line)["answer"] for line in (tmp_path / "p.jsonl").read_text().splitlines())
    assert command("evaluate", answering.out, "--data", squad["test"], "--out", tmp_path / "e.json", *HIGH).status == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert (found["null_threshold"], found["metrics"]["question_answering/no_answer_f1"]) == (99.0, 0.0)


HIGH = ("--settled.threshold", "99")


def test_a_student_that_is_its_teacher_still_answers_as_it_does(answering, base, squad, quickly, tmp_path):
    """Windows of several widths; what the teacher says of every token was kept."""
    values = {key: base[key] for key in ("max_length", "batch_size", "dropout", "devices")}
    values |= {"teacher": str(answering.out), "student": "layers:0", "out": str(tmp_path / "run"), "steps": 1}
    values |= {"task": "question_answering", "train": str(squad["train"]), "eval": str(squad["dev"])}
    values |= {"answers": {"stride": 4, "max_answer": 3}, "soft": 2.0}
    with quickly(), train.StopFlag() as stop:
        config = settings.build(distill.Config, values)
        work = DistillRun(config, name="distill", say=lambda line: None, stop=stop)
        found = work.training.evaluate(work.training.state, "eval")
        teacher = work._judge_teacher()["eval"]
    assert work.cached
    assert found.metrics["distill/distillation/soft"] == pytest.approx(0, abs=1e-5)
    assert found.metrics["distill/distillation/agreement"] == 1.0
    assert work.task.metrics(found.predictions, "eval") == pytest.approx(teacher)
    assert teacher == pytest.approx(answering.reports["eval"].metrics)


@pytest.fixture
def read(base, encoder, squad, tmp_path):
    """A function: changed values -> the task of a fine-tuning, and what was said."""
    tokenizer = data.load_tokenizer(encoder)

    def make(**changes):
        values = {
            "out": str(tmp_path / "run"),
            "task": "question_answering",
            "train": str(squad["train"]),
            "eval": None,
        }
        config = settings.build(finetune.Config, base | values | changes)
        said: list[str] = []
        names = {"architecture": None, "devices": 1, "checkpoint_names": None}
        return question_answering.read(config, tokenizer=tokenizer, say=said.append, **names), said

    return make


def oracle(windows, *, null=0.0):
    """Predictions that hold nothing but each window's answer; `null` is what "no answer" scores without one."""
    count = len(windows)
    whole = windows.end > 0
    places = {
        name: np.where(whole, values, windows.context_start)[:, None]
        for name, values in (("start", windows.start), ("end", windows.end))
    }
    scores = np.where(whole, 5.0, -5.0)[:, None]
    return {
        "start_places": places["start"],
        "end_places": places["end"],
        "start_logits": scores,
        "end_logits": scores,
        "null": np.where(whole, -9.0, null) if count else np.zeros(0),
    }


def test_true_answers_score_full_marks_and_settle_the_threshold(read):
    task, said = read()
    assert said[0].startswith("train: 58 rows from ")
    assert "eval: 6 rows from 6 rows cut from" in said[1]
    assert not {*task.questions["train"].contexts} & {*task.questions["eval"].contexts}
    predictions = oracle(task.windows["eval"])
    metrics = task.metrics(predictions, "eval")
    assert metrics["question_answering/f1"] == metrics["question_answering/exact_match"] == 1.0
    settled = task.settle(predictions)
    # "No answer" scores 10 more than the best span where there is none, 19 less where there is one.
    assert settled["answers"]["null_threshold"] == pytest.approx(-19.0)
    report = task.report(predictions, "eval", settled)
    assert report.metrics == metrics
    assert '"no answer" is given where it scores above the best answer by more than -19' in report.text
    always = task.report(predictions, "eval", {})
    answerable = 1 - task.questions["eval"].unanswerable / len(task.questions["eval"])
    assert always.metrics["question_answering/f1"] == pytest.approx(answerable)
    assert always.metrics["question_answering/no_answer_f1"] == 0.0


def test_a_threshold_that_is_given_is_kept_and_none_is_needed_where_all_have_answers(read, tmp_path):
    task, _ = read(answers={"null_threshold": 2.5})
    assert task.settle(oracle(task.windows["eval"]))["answers"]["null_threshold"] == 2.5
    content = questions(40, 5)
    paragraphs = content["data"][0]["paragraphs"]
    content["data"][0]["paragraphs"] = [part for part in paragraphs if part["qas"][0]["answers"]]
    (tmp_path / "all.json").write_text(json.dumps(content))
    task, _ = read(train=str(tmp_path / "all.json"))
    assert task.settle(oracle(task.windows["eval"]))["answers"]["null_threshold"] is None
    assert set(task.metrics(oracle(task.windows["eval"]), "eval")) == {
        "question_answering/f1",
        "question_answering/exact_match",
    }


def test_values_without_use_are_refused(read):
    with pytest.raises(ValueError, match="class_weights is 'balanced', and question_answering has no use for it"):
        read(class_weights="balanced")
    with pytest.raises(ValueError, match="no room for"):
        read(answers={"stride": 12})


SIZES = {"vocab_size": 20, "width": 8, "layers": 1, "heads": 2, "mlp_width": 12, "positions": 20, "pad_id": 0}
BACKBONES = {"bert": models.BertConfig, "modernbert": models.ModernBertConfig, "gpt2": models.Gpt2Config}


@pytest.mark.parametrize("family", BACKBONES)
def test_every_kind_of_backbone_reads_its_batches(family, read):
    task, _ = read()
    model = models.build(BACKBONES[family](**SIZES), task.model_task)
    objective, batch = task.objective(model), task.batches["train"].batch_at(0)
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)
    context = objectives.Context({}, None, jax.random.key(0), False, None)
    terms, _ = jax.eval_shape(lambda params: objective.loss(params, batch, context), params)
    assert terms["question_answering"].total.shape == ()
    predictions = jax.eval_shape(lambda params: objective.predict(params, batch, context), params)
    assert predictions["start_logits"].shape == (16, 20)
    assert task.head in params
