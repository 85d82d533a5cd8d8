import json

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import data, models, objectives
from jaxptft.recipes import finetune, settings
from jaxptft.recipes.tasks import multiple_choice

FILLER = ["the", "a", "film", "book", "was", "is", "very", "so", "it", "and", "one"]


def choices(rows: int, seed: int) -> list[dict]:
    """Two or three choices of three words, of which one has a word that the others do not have."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(rows):
        count = 2 + number % 2
        texts = [[str(word) for word in rng.choice(FILLER, 2)] + ["bad"] for _ in range(count)]
        right = int(rng.integers(count))
        texts[right][-1] = "good"
        context = " ".join(str(word) for word in rng.choice(FILLER, 3))
        found.append({"key": f"k{number}", "context": context, "choices": [" ".join(t) for t in texts], "label": right})
    return found


@pytest.fixture(scope="module")
def choice_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choices")
    paths = {}
    for seed, (name, rows) in enumerate({"train": 64, "dev": 20, "test": 24}.items()):
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in choices(rows, seed)))
    return paths


@pytest.fixture(scope="module")
def choosing(tmp_path_factory, fine_tune, choice_files):
    """A run that has learnt the rule."""
    return fine_tune(
        tmp_path_factory.mktemp("runs") / "choosing",
        task="multiple_choice",
        train=str(choice_files["train"]),
        eval=str(choice_files["dev"]),
        test=str(choice_files["test"]),
        steps=40,
        evaluate_every=20,
        learning_rate=0.02,
        length_buckets=1,
    )


def test_it_learns_and_reports_by_number_of_choices(choosing):
    report = choosing.reports["test"]
    assert report.metrics["multiple_choice/accuracy"] > 0.9
    assert "a guess has 0.4167" in report.text  # half of the rows have two choices, half three
    assert set(report.details["by_choices"]) == {"2", "3"}
    assert "test: 24 rows" in choosing.said
    assert "of 3 choices at most" in choosing.said
    assert json.loads((choosing.out / "report.json").read_text())["rows"] == {"train": 64, "eval": 20, "test": 24}


def test_predictions_are_transformers(choosing, choice_files, command, tmp_path):
    flags = ("--data", choice_files["test"], "--out", tmp_path / "p.jsonl", "--id", "key", "--batch-size", "7")
    told = command("predict", choosing.out, *flags)
    assert told.status == 0, told.err
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    model = transformers.AutoModelForMultipleChoice.from_pretrained(choosing.out / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(choosing.out / "model")
    rows = [json.loads(line) for line in choice_files["test"].read_text().splitlines()]
    for number, (line, row) in enumerate(zip(lines, rows, strict=True)):
        texts = [row["context"]] * len(row["choices"])
        inputs = tokenizer(texts, row["choices"], return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = model(**{name: value[None] for name, value in inputs.items()}).logits[0]
        expected = logits.double().softmax(-1).numpy()
        np.testing.assert_allclose(line["probabilities"], expected, atol=1e-5)
        assert (line["row"], line["id"]) == (number + 1, row["key"])
        assert line["choice"] == expected.argmax()
        assert line["answer"] == row["choices"][line["choice"]]


def test_evaluation_is_the_runs_own(choosing, choice_files, command, tmp_path):
    told = command("evaluate", choosing.out, "--data", choice_files["test"], "--out", tmp_path / "e.json")
    assert told.status == 0, told.err
    assert json.loads((tmp_path / "e.json").read_text())["metrics"] == pytest.approx(choosing.reports["test"].metrics)


@pytest.fixture
def read(base, encoder, choice_files, tmp_path):
    """A function: changed values -> the task of a fine-tuning."""
    tokenizer = data.load_tokenizer(encoder)

    def make(**changes):
        values = {"out": str(tmp_path / "run"), "task": "multiple_choice", "eval": None}
        values["train"] = str(choice_files["train"])
        config = settings.build(finetune.Config, base | values | changes)
        names = {"architecture": None, "devices": 4, "checkpoint_names": None}
        return multiple_choice.read(config, tokenizer=tokenizer, say=lambda line: None, **names)

    return make


def test_rows_are_held_out_by_context_and_batches_fit_the_devices(read):
    task = read(batch_size=6, accumulate=2)
    assert not {*task.rows["train"].contexts} & {*task.rows["eval"].contexts}
    batches = [task.batches["train"].batch_at(step) for step in range(2)]
    assert [batch["input_ids"].shape[:2] for batch in batches] == [(8, 3)] * 2
    assert max(batch["valid"].sum() for batch in batches) == 6
    logits = np.zeros((len(task.rows["eval"]), 3))
    logits[np.arange(len(logits)), task.rows["eval"].labels] = 1.0
    assert task.metrics({"logits": logits}, "eval") == {"multiple_choice/accuracy": 1.0}
    assert task.settle({"logits": logits}) == {}


def test_values_without_use_are_refused(read):
    with pytest.raises(ValueError, match="sampling is 'balanced', and multiple_choice has no use for it"):
        read(sampling="balanced")


SIZES = {"vocab_size": 20, "width": 8, "layers": 1, "heads": 2, "mlp_width": 12, "positions": 20, "pad_id": 0}
BACKBONES = {"bert": models.BertConfig, "modernbert": models.ModernBertConfig, "gpt2": models.Gpt2Config}


@pytest.mark.parametrize("family", BACKBONES)
def test_every_kind_of_backbone_reads_its_batches(family, read):
    task = read()
    model = models.build(BACKBONES[family](**SIZES), task.model_task)
    objective, batch = task.objective(model), task.batches["train"].batch_at(0)
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)
    context = objectives.Context({}, None, jax.random.key(0), False, None)
    terms, _ = jax.eval_shape(lambda params: objective.loss(params, batch, context), params)
    assert terms["multiple_choice"].total.shape == ()
    assert jax.eval_shape(lambda params: objective.predict(params, batch, context), params)["logits"].shape == (16, 3)
    assert task.head in params
