"""Guessing masked words, from the command line; the expected probabilities are torch's."""

import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file


@pytest.fixture(scope="module")
def masked(tmp_path_factory, make_model):
    """A BERT with a head that predicts masked words."""
    return make_model(tmp_path_factory.mktemp("models") / "masked", "BertForMaskedLM")


def expected(folder, text: str) -> np.ndarray:
    """Probabilities of every token at each mask."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    return logits[inputs["input_ids"][0] == tokenizer.mask_token_id].double().softmax(-1).numpy()


def test_guesses_and_probabilities_are_torchs(command, masked):
    told = command("fill-mask", masked, "the [MASK] was [MASK] good", "--top-k", "3")
    tokenizer = transformers.AutoTokenizer.from_pretrained(masked)
    lines = []
    for number, values in enumerate(expected(masked, "the [MASK] was [MASK] good"), start=1):
        likeliest = np.argsort(-values)[:3]
        lines += [f"[MASK] {number}"]
        lines += [f"{values[token]:.4f}  {tokenizer.convert_ids_to_tokens(int(token))}" for token in likeliest]
    assert (told.status, told.out.splitlines()) == (0, lines)


def test_the_mask_is_spelt_as_the_tokenizer_spells_it(command, refused, tmp_path):
    """A RoBERTa, whose mask is <mask> and whose positions begin behind the padding id."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "the", "cat", "sat"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.RobertaConfig(vocab_size=8, max_position_embeddings=12, type_vocab_size=1, **sizes)
    model = transformers.RobertaForMaskedLM(config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.5)
    model.save_pretrained(tmp_path)

    values = expected(tmp_path, "the <mask> sat")[0]
    told = command("fill-mask", tmp_path, "the <mask> sat", "--top-k", "20")
    lines = [f"{values[token]:.4f}  {words[token]}" for token in np.argsort(-values)]
    assert told.out.splitlines() == lines  # all eight
    assert "there is no <mask> in the text; write <mask> in place" in refused("fill-mask", tmp_path, "the [MASK] sat")
    ten = " ".join(["<mask>"] * 9)
    assert "the text is 11 tokens long and the model takes 10; shorten it" in refused("fill-mask", tmp_path, ten)


def test_what_does_not_fit_is_refused(refused, masked, encoder, tmp_path):
    assert "there is no [MASK] in the text" in refused("fill-mask", masked, "the film was good")
    assert "has no head that predicts masked words" in refused("fill-mask", encoder, "the [MASK]")
    shutil.copytree(encoder, tmp_path / "run/model")  # as a run of replaced-token detection leaves it
    (tmp_path / "run/generator").mkdir()
    assert f"masked words; ask {tmp_path}/run/generator" in refused("fill-mask", tmp_path / "run", "the [MASK]")
    assert "TEXT must be given" in refused("fill-mask", masked)
    assert "--top-k is 0" in refused("fill-mask", masked, "a [MASK]", "--top-k", "0")

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in masked.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    save_file(
        tensors | {"cls.predictions.bias": tensors["cls.predictions.bias"] * np.nan}, broken / "model.safetensors"
    )
    assert "gives NaN or infinity" in refused("fill-mask", broken, "a [MASK]")

    (broken / "vocab.txt").unlink()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(broken / "tokenizer.json"), pad_token="[PAD]", unk_token="[UNK]"
    )
    (broken / "tokenizer_config.json").unlink()
    tokenizer.save_pretrained(broken)
    assert "has no mask token; choose a model trained with one" in refused("fill-mask", broken, "a [MASK]")
