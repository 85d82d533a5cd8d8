"""Fine-tuning from every kind of encoder, and what transformers makes of the result."""

import json

import numpy as np
import pytest
import torch
import transformers

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
FAMILIES = {
    "roberta": ("RobertaForMaskedLM", SIZES | {"max_position_embeddings": 22, "pad_token_id": 0}),
    "albert": ("AlbertModel", SIZES | {"max_position_embeddings": 20, "embedding_size": 8}),
    "modernbert": (
        "ModernBertForMaskedLM",
        SIZES
        | {
            "max_position_embeddings": 20,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "pad_token_id": 0,
            "local_attention": 8,
        },
    ),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20}),
}


@pytest.fixture
def pretrained(tmp_path, make_tokenizer):
    """A function: family -> a tiny folder written by torch, with a tokenizer of the test's words."""

    def make(family):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "film", "book", "was", "is", "very", "so"]
        words += ["it", "and", "one", "##s", "good", "bad"]
        architecture, fields = FAMILIES[family]
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, vocab_size=len(words), **fields)
        folder = tmp_path / family
        getattr(transformers, architecture)(config).save_pretrained(folder)
        make_tokenizer(folder, words)
        return folder

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_any_family_becomes_a_classifier_that_torch_agrees_with(
    family, pretrained, fine_tune, files, command, tmp_path
):
    freeze = "backbone/layer_0/**" if family == "albert" else "backbone/embeddings/**"
    result = fine_tune(tmp_path / "run", model=str(pretrained(family)), freeze=freeze, steps=2)
    assert f"model: {family} from" in result.said
    told = command("predict", tmp_path / "run", "--data", files.dev, "--out", tmp_path / "predictions.jsonl")
    assert told.status == 0, told.err
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    ours = np.array([[row["probabilities"][name] for name in ("neg", "pos")] for row in rows])

    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "run/model", output_loading_info=True
    )
    assert not info["missing_keys"], info
    assert model.config.id2label == {0: "neg", 1: "pos"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/model")
    texts = [line.rpartition(",")[0] for line in files.dev.read_text().splitlines()[1:]]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    if family in ("roberta", "gpt2", "modernbert"):
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        theirs = model.eval()(**inputs).logits.softmax(-1).numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
