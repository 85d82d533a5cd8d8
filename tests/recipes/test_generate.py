"""Continuing a prompt, from the command line; the expected text is transformers' own."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

WORDS = ["<|endoftext|>", "the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "so", "it"]
POSITIONS = 24


def write_tokenizer(folder, **special) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="it"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A GPT-2 over a dozen words, whose end-of-text token is never the likeliest."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=POSITIONS, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.randn_like(tensor) * (2.0 if "wpe" in name else 0.5))
            if name.endswith("bias"):
                tensor.zero_()
        model.transformer.wte.weight[0] = 0.0
    model.save_pretrained(folder)
    write_tokenizer(folder, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    return folder


def by_transformers(folder, prompt, **options) -> str:
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    return tokenizer.decode(model.generate(ids, pad_token_id=0, **options)[0], skip_special_tokens=True)


def test_the_likeliest_text_is_that_of_transformers(command, language_model):
    expected = by_transformers(language_model, "the cat sat", do_sample=False, max_new_tokens=12)
    assert len(set(expected.split()[3:])) > 3
    told = command("generate", language_model, "the cat sat", "--temperature", "0", "--max-new-tokens", "12")
    assert (told.status, told.out) == (0, expected + "\n")


def test_texts_are_drawn_by_seed_and_shown_apart(command, language_model):
    line = ("generate", language_model, "the cat", "--count", "3", "--max-new-tokens", "8", "--top-p", "0.9")
    texts = command(*line).out.splitlines()
    assert [text[: len("[1] the cat ")] for text in texts] == ["[1] the cat ", "[2] the cat ", "[3] the cat "]
    assert len({text[4:] for text in texts}) == 3
    assert command(*line).out.splitlines() == texts
    assert command(*line, "--seed", "1").out.splitlines() != texts


def test_one_of_the_top_one_is_the_likeliest(command, language_model):
    line = ("generate", language_model, "the cat sat", "--max-new-tokens", "12")
    assert command(*line, "--top-k", "1").out == command(*line, "--temperature", "0").out


def test_a_text_from_nothing_ends_at_the_positions_or_with_its_end(command, language_model, tmp_path):
    told = command("generate", language_model, "--temperature", "0", "--max-new-tokens", "100")
    text, note = told.out.splitlines()
    assert len(text.split()) == POSITIONS - 1  # all but the token that it began with
    assert note == f"(cut at {POSITIONS - 1} new tokens: the model has {POSITIONS} positions)"
    # Another end-of-text token, in the config alone: the third word of that text.
    ending = tmp_path / "ending"
    ending.mkdir()
    for file in language_model.iterdir():
        (ending / file.name).write_bytes(file.read_bytes())
    fields = json.loads((ending / "config.json").read_text())
    end = text.split()[2]
    (ending / "config.json").write_text(json.dumps(fields | {"eos_token_id": [WORDS.index(end)]}))
    told = command("generate", ending, "--temperature", "0", "--max-new-tokens", "100")
    assert told.out.split() == text.split()[: text.split().index(end) + 1]


def test_a_converted_folder_gives_the_same(command, language_model, tmp_path):
    assert command("convert", "import", language_model, tmp_path / "converted").status == 0
    line = ("a dog", "--temperature", "0", "--max-new-tokens", "12")
    assert command("generate", tmp_path / "converted", *line).out == command("generate", language_model, *line).out


def test_what_does_not_fit_is_refused(refused, language_model, encoder, tmp_path):
    assert "is a bert, which is no causal language model" in refused("generate", encoder, "the")
    long = " ".join(["cat"] * POSITIONS)
    assert "the prompt is 24 tokens long and the model has 24 positions" in refused("generate", language_model, long)
    same = ("generate", language_model, "the", "--count", "2", "--temperature", "0")
    assert "--count 2 with --temperature 0 is 2 times the same text" in refused(*same)
    assert "--top-p is 1.5" in refused("generate", language_model, "the", "--top-p", "1.5")
    assert "--temperature is -1" in refused("generate", language_model, "the", "--temperature", "-1")

    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((language_model / name).read_bytes())
    write_tokenizer(bare)
    assert "the prompt is empty, and the tokenizer has no bos_token or eos_token" in refused("generate", bare)

    tensors = load_file(bare / "model.safetensors")
    save_file(tensors | {"transformer.ln_f.bias": np.full(16, np.nan, np.float32)}, bare / "model.safetensors")
    assert "holds NaN or infinity; its weights are broken" in refused("generate", bare, "the")

    fields = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(fields | {"architectures": ["GPT2ForSequenceClassification"]}))
    save_file(tensors | {"score.weight": np.zeros((2, 16), np.float32)}, bare / "model.safetensors")
    assert "was trained for another task, its head is classifier" in refused("generate", bare, "the")
