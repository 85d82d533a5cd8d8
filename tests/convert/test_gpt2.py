"""GPT-2's table: round trips byte for byte, old files, fresh exports in torch, and the audit of its config."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert, models
from jaxptft.models import Gpt2Config

VALUES = {"vocab_size": 30, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 10}
VALUES |= {"bos_token_id": 1, "eos_token_id": 2}
IDS = np.random.default_rng(0).integers(1, 30, (3, 6)).astype(np.int32)


@pytest.fixture
def make(folders):
    def make(architecture: str, dtype=torch.float32, **changes):
        torch.manual_seed(0)
        model = getattr(transformers, architecture)(transformers.GPT2Config(**(VALUES | changes))).eval()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.normal_(std=0.5)
        model.to(dtype).save_pretrained(folders.root / "source")
        return folders.root / "source"

    return make


def as_published(tensors):
    """As the first checkpoints were: no prefix, and the causal mask of each layer as a buffer."""
    masks = {f"h.{layer}.attn.bias": np.tril(np.ones((1, 1, 10, 10), np.float32)) for layer in range(2)}
    masks |= {f"h.{layer}.attn.masked_bias": np.float32(-10000.0) for layer in range(2)}
    return {**{name.removeprefix("transformer."): array for name, array in tensors.items()}, **masks}


def with_output(tensors):
    return {**tensors, "lm_head.weight": tensors["transformer.wte.weight"]}


@pytest.mark.parametrize(
    "architecture, dtype, change, heads",
    [
        ("GPT2LMHeadModel", torch.float32, None, ()),
        ("GPT2LMHeadModel", torch.float16, with_output, ()),
        ("GPT2LMHeadModel", torch.float32, as_published, ()),
        ("GPT2Model", torch.bfloat16, None, ()),
        ("GPT2ForSequenceClassification", torch.float32, None, ("classifier",)),
        ("GPT2ForTokenClassification", torch.bfloat16, None, ("token_classifier",)),
        ("GPT2ForQuestionAnswering", torch.float32, None, ("question_answering",)),
        ("GPT2DoubleHeadsModel", torch.float32, None, ("multiple_choice",)),
    ],
)
def test_unmodified_is_byte_identical(make, folders, assert_same_tensors, architecture, dtype, change, heads):
    source = make(architecture, dtype)
    if change:
        folders.rewrite(source, change)
    manifest = convert.import_folder(source, folders.root / "native")
    assert (manifest.heads, manifest.unused, manifest.missing) == (heads, (), ())
    convert.export_folder(folders.root / "native", folders.root / "back")
    assert_same_tensors(folders.tensors(source), folders.tensors(folders.root / "back"))
    read = [json.loads((folder / "config.json").read_text()) for folder in (source, folders.root / "back")]
    assert read[0].items() <= read[1].items()


def test_a_copy_of_the_word_table_follows_it(make, folders):
    source = make("GPT2LMHeadModel")
    folders.rewrite(source, with_output)
    checkpoint = convert.load(source)
    params = jax.tree.map(lambda leaf: leaf + 1, checkpoint.params)
    convert.save(folders.root / "trained", checkpoint, params=params)
    tensors = folders.tensors(folders.root / "trained")
    np.testing.assert_array_equal(tensors["lm_head.weight"], tensors["transformer.wte.weight"])


def test_an_output_of_its_own_is_refused(make, folders):
    source = make("GPT2LMHeadModel")
    folders.rewrite(source, lambda tensors: {**tensors, "lm_head.weight": tensors["transformer.wte.weight"] + 1})
    with pytest.raises(ValueError, match=r"lm_head.weight differs from transformer.wte.weight"):
        convert.load(source)


def torch_logits(folder, loader) -> tuple[np.ndarray, torch.nn.Module]:
    model, told = loader.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS).long()).logits.numpy(), model


def test_a_model_made_from_nothing_loads_as_a_language_model(folders):
    config = Gpt2Config(vocab_size=30, width=8, layers=2, heads=2, positions=10, mlp_width=12, scale_by_layer=True)
    model = models.build(config, "causal_lm")
    params = jax.jit(model.init)(jax.random.key(0), {"input_ids": IDS})
    checkpoint = convert.new_checkpoint(config, family="gpt2", fields={"eos_token_id": 2, "bos_token_id": 1})
    convert.save(folders.root / "new", checkpoint, params=jax.device_get(params))
    theirs, loaded = torch_logits(folders.root / "new", transformers.AutoModelForCausalLM)
    assert type(loaded) is transformers.GPT2LMHeadModel
    assert loaded.config.n_inner == 12
    assert loaded.config.eos_token_id == 2
    np.testing.assert_allclose(model.apply(params, {"input_ids": IDS}), theirs, atol=1e-5 * np.abs(theirs).max())
    assert convert.load(folders.root / "new").config == config


def test_a_language_model_with_a_new_head_loads_as_a_classifier(make, folders):
    checkpoint = convert.load(make("GPT2LMHeadModel", pad_token_id=0))
    model = models.build(checkpoint.config, "classification", classes=3)
    params = convert.complete(checkpoint.params, jax.jit(model.init)(jax.random.key(0), {"input_ids": IDS}))
    convert.save(folders.root / "tuned", checkpoint, params=jax.device_get(params), labels=["a", "b", "c"])
    theirs, loaded = torch_logits(folders.root / "tuned", transformers.AutoModelForSequenceClassification)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    np.testing.assert_allclose(model.apply(params, {"input_ids": IDS}), theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"add_cross_attention": True}, "add_cross_attention is True, which changes what the model computes"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, which changes"),
        ({"summary_type": "mean"}, r"summary_type is 'mean', which changes .*\(supported: 'cls_index'\)"),
        ({"summary_activation": "tanh"}, "summary_activation is 'tanh'"),
        ({"hidden_dropout": 0.2}, "unknown field hidden_dropout may change"),
        ({"n_head": 3}, "n_embd must be a multiple of heads, got width 8 and 3 heads"),
        ({"activation_function": "mish"}, "activation_function must be one of"),
        ({"attn_pdrop": 2}, r"attn_pdrop must be a probability in \[0, 1\), got 2"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(make, folders, fields, message):
    source = make("GPT2LMHeadModel")
    folders.configure(source, **fields)
    with pytest.raises(ValueError, match=message):
        convert.load(source)


def test_published_fields_are_read(make, folders):
    """Expected: the config.json of the first release, and transformers' defaults for what it leaves out."""
    source = make("GPT2LMHeadModel")
    fields = {
        "activation_function": "gelu_new",
        "n_ctx": 10,
        "resid_pdrop": 0.3,
        "summary_first_dropout": 0.2,
        "classifier_dropout": None,
    }
    fields |= {"reorder_and_upcast_attn": True, "task_specific_params": {"text-generation": {"max_length": 50}}}
    (source / "config.json").write_text(json.dumps({"model_type": "gpt2"} | VALUES | fields))
    config = convert.load(source).config
    assert config == Gpt2Config(
        vocab_size=30, width=8, layers=2, heads=2, positions=10, residual_dropout=0.3, choice_dropout=0.2
    )
