import json

import numpy as np
import pytest
import torch
import transformers

from jaxptft import train
from jaxptft.recipes import distill, settings
from jaxptft.recipes.distill_run import DistillRun
from jaxptft.recipes.tasks import answering

WORDS = ["<|endoftext|>", "what", "says", "the", "cat", "dog", "cow", "meow", "woof", "moo", "it", "so"]
SAYS = {"cat": "meow", "dog": "woof", "cow": "moo"}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A GPT-2 over a dozen words, written by torch, without a padding token as OpenAI's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("models") / "gpt2"
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=24,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.2,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="it"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": WORDS[0], "bos_token": WORDS[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder


@pytest.fixture(scope="module")
def dialogue(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "says.csv"
    lines = [f"what says the {animal},the {animal} says {sound}" for animal, sound in SAYS.items()]
    path.write_text("\n".join(["prompt,response", *lines * 8]) + "\n")
    return path


@pytest.fixture(scope="module")
def taught(tmp_path_factory, fine_tune, language_model, dialogue):
    values = {"model": str(language_model), "train": str(dialogue), "eval": str(dialogue), "task": "response"}
    options = {"steps": 120, "evaluate_every": 60, "learning_rate": 0.01, "batch_size": 12, "max_length": 24}
    return fine_tune(tmp_path_factory.mktemp("runs") / "taught", **values, **options)


def test_a_taught_model_answers(taught, dialogue, command, tmp_path):
    told = command("predict", taught.out, "--data", dialogue, "--out", tmp_path / "out.jsonl", "--batch-size", "7")
    assert told.status == 0, told.err
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    assert lines[1] == {"row": 3, "prompt": "what says the dog", "response": "the dog says woof"}


def test_rows_read_in_pieces_are_answered_alike(taught, command, tmp_path, monkeypatch):
    """How long responses may be follows from the longest prompt of all pieces."""
    prompts = [f"what says the {animal}" for animal in SAYS] * 2 + ["what says " * 4 + "the dog"]
    (tmp_path / "rows.csv").write_text("\n".join(["prompt", *prompts]) + "\n")
    found = []
    for piece in (100, 2):
        monkeypatch.setattr(answering, "PIECE", piece)
        told = command("predict", taught.out, "--data", tmp_path / "rows.csv", "--out", tmp_path / f"{piece}.jsonl")
        assert told.status == 0, told.err
        found.append([json.loads(line) for line in (tmp_path / f"{piece}.jsonl").read_text().splitlines()])
    assert found[0] == found[1]
    assert [line["row"] for line in found[0]] == list(range(2, len(prompts) + 2))


def test_prompts_and_responses_fit_the_length_that_is_asked_for(taught, dialogue, command, tmp_path):
    told = command("predict", taught.out, "--data", dialogue, "--out", tmp_path / "out.jsonl", "--max-length", "6")
    assert told.status == 0, told.err
    assert "24 of 24 prompts are longer than 3 tokens and were cut" in told.out  # half of 6 are the response's
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert max(len(line["response"].split()) for line in lines) <= 3


def test_its_loss_is_that_of_torch_on_the_responses_alone(taught, command, dialogue, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(taught.out / "model").eval()
    losses, count = 0.0, 0
    for animal, sound in SAYS.items():
        words = ["what", "says", "the", animal, "the", animal, "says", sound, WORDS[0]]
        ids = torch.tensor([[WORDS.index(word) for word in words]])
        labels = ids.clone()
        labels[:, :4] = -100  # the prompt
        with torch.no_grad():
            losses += 8 * 5 * model(ids, labels=labels).loss.item()
        count += 8 * 5
    assert command("evaluate", taught.out, "--data", dialogue, "--out", tmp_path / "e.json").status == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["tokens"] == count
    assert found["metrics"]["response/loss"] == pytest.approx(losses / count, rel=1e-3)
    assert found["metrics"]["response/perplexity"] == pytest.approx(np.exp(losses / count), rel=1e-3)
    assert taught.reports["eval"].metrics["response/loss"] == pytest.approx(losses / count, rel=1e-3)


def test_the_model_generates_and_says_what_was_settled(taught):
    config = json.loads((taught.out / "model/config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    kept = config["task_specific_params"]["jaxptft"]
    assert kept == {"task": "response", "max_length": 24, "settled": {"separator": "\n"}}


def test_a_student_takes_what_its_teacher_says_in_the_responses_alone(taught, base, dialogue, quickly, tmp_path):
    """Against torch's divergence of the teacher and of its first layer, at the tokens of the responses."""

    def config(**changes):
        values = {"teacher": str(taught.out), "student": "layers:0", "out": str(tmp_path / "run"), "task": "response"}
        values |= {"train": str(dialogue), "eval": str(dialogue), "steps": 1, "batch_size": 12, "max_length": 24}
        return settings.build(distill.Config, values | {"devices": base["devices"]} | changes)

    with quickly(), train.StopFlag() as stop:
        work = DistillRun(config(), name="distill", say=lambda line: None, stop=stop)
        found = work.training.evaluate(work.training.state, "eval")
        of_teacher = work._judge_teacher()["eval"]
    teacher, student = (
        transformers.AutoModelForCausalLM.from_pretrained(taught.out / "model").eval() for _ in range(2)
    )
    student.transformer.h = student.transformer.h[:1]
    apart = []
    for animal, sound in SAYS.items():
        words = ["what", "says", "the", animal, "the", animal, "says", sound, WORDS[0]]
        ids = torch.tensor([[WORDS.index(word) for word in words]])
        with torch.no_grad():
            logs = [torch.log_softmax(model(ids).logits[0, 3:8] / 2.0, -1) for model in (student, teacher)]
        divergence = torch.nn.functional.kl_div(*logs, log_target=True, reduction="batchmean")  # a mean over tokens
        apart.append(4.0 * divergence.item())
    assert found.metrics["distill/distillation/soft"] == pytest.approx(np.mean(apart), rel=1e-3)
    assert of_teacher == pytest.approx(
        {"response/perplexity": taught.reports["eval"].metrics["response/perplexity"]}, rel=1e-4
    )
    assert not work.cached
    with pytest.raises(ValueError, match="teacher_logits cannot be cached where an answer is a number for each"):
        distill.run(config(teacher_logits="cached"), say=lambda line: None)
    with pytest.raises(ValueError, match=r"was taught with the separator '\\n', and response.separator is ' => '"):
        distill.run(config(response={"separator": " => "}), say=lambda line: None)


def test_an_encoder_is_refused(refused, flags, dialogue):
    changes = ["--task", "response", "--train", dialogue, "--eval", dialogue]
    assert "is no causal language model, which response needs; choose a GPT-2" in refused("finetune", *flags, *changes)


def test_it_is_exported_where_the_format_holds_a_model_that_writes(taught, command, refused, tmp_path):
    for format in ("hf", "flax"):
        told = command("export", taught.out, "--format", format, "--out", tmp_path / format)
        assert told.status == 0, told.err
        assert "24 rows of" in told.out
    line = ("export", taught.out, "--format", "stablehlo", "--out", tmp_path / "program")
    assert "is for response, which runs the model once for each token" in refused(*line)
