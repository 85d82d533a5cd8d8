"""ModernBERT's folders: byte-identical round trips, fresh models that torch loads, and the audit of config.json."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from jaxptft import convert
from jaxptft.convert.modernbert import read_modernbert, write_modernbert
from jaxptft.models import ModernBertConfig
from jaxptft.models.modernbert import TASKS, build

VALUES = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "max_position_embeddings": 16,
    "local_attention": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
# The fields that ModernBERT-base was published with, and nothing of what came later.
PUBLISHED = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "reference_compile": None,
    "repad_logits_with_grad": False,
    "sep_token_id": 50282,
    "sparse_pred_ignore_index": -100,
    "sparse_prediction": False,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "vocab_size": 50368,
}
ARCHITECTURES = {
    "encoder": ("ModernBertModel", "AutoModel"),
    "classification": ("ModernBertForSequenceClassification", "AutoModelForSequenceClassification"),
    "token_classification": ("ModernBertForTokenClassification", "AutoModelForTokenClassification"),
    "question_answering": ("ModernBertForQuestionAnswering", "AutoModelForQuestionAnswering"),
    "multiple_choice": ("ModernBertForMultipleChoice", "AutoModelForMultipleChoice"),
    "masked_lm": ("ModernBertForMaskedLM", "AutoModelForMaskedLM"),
}


def make(folder, architecture, dtype=torch.float32, **changes):
    """A folder written by torch itself, with every tensor drawn from normal(0, 0.5)."""
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(transformers.ModernBertConfig(**(VALUES | changes)))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.5)
    model.to(dtype).save_pretrained(folder)
    return folder


def read(folder):
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "dtype, changes",
    [
        (torch.float32, {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}),
        (torch.bfloat16, {"decoder_bias": False, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}),
    ],
)
def test_unmodified_is_byte_identical(tmp_path, assert_same_tensors, task, dtype, changes):
    source = make(tmp_path / "source", ARCHITECTURES[task][0], dtype, **changes)
    convert.import_folder(source, tmp_path / "native")
    convert.export_folder(tmp_path / "native", tmp_path / "back")
    (tensors, fields), (back, written) = read(source), read(tmp_path / "back")
    assert_same_tensors(tensors, back)
    assert fields.items() <= written.items()
    # Taken without its head, it still comes back whole.
    convert.save(tmp_path / "direct", convert.load(source, heads=()))
    assert_same_tensors(tensors, read(tmp_path / "direct")[0])


def test_a_copy_of_the_word_table_comes_back_and_another_table_is_refused(tmp_path, assert_same_tensors):
    source = make(tmp_path / "source", "ModernBertForMaskedLM")
    tensors, _ = read(source)
    words = tensors["model.embeddings.tok_embeddings.weight"]
    save_file({**tensors, "decoder.weight": words}, source / "model.safetensors")
    convert.save(tmp_path / "back", convert.load(source))
    assert_same_tensors(read(source)[0], read(tmp_path / "back")[0])
    save_file({**tensors, "decoder.weight": words + 1}, source / "model.safetensors")
    with pytest.raises(ValueError, match=r"decoder\.weight differs from model\.embeddings\.tok_embeddings\.weight"):
        convert.load(source)


@pytest.mark.parametrize("task", TASKS)
def test_a_model_made_from_nothing_loads_in_torch(tmp_path, task):
    config = ModernBertConfig(
        vocab_size=30,
        width=8,
        layers=2,
        heads=2,
        mlp_width=6,
        positions=16,
        local_attention=4,
        global_layers=(1,),
        local_theta=77.0,
        pooling="mean",
        pad_id=0,
    )
    sized = task in ("classification", "token_classification")
    model = build(config, task, classes=3 if sized else None)
    shape = (2, 2, 7) if task == "multiple_choice" else (2, 7)
    batch = {"input_ids": np.random.default_rng(0).integers(1, 30, shape).astype(np.int32)}
    params = jax.jit(model.init)(jax.random.key(0), batch)
    labels = ["bad", "fair", "good"] if sized else None
    convert.save(tmp_path / "new", convert.Checkpoint("modernbert", config, params, labels=labels))

    loader = getattr(transformers, ARCHITECTURES[task][1])
    theirs, info = loader.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    ids = torch.tensor(batch["input_ids"]).long()
    with torch.no_grad():
        output = theirs.eval()(ids, attention_mask=torch.ones_like(ids))
    expected = output.last_hidden_state if task == "encoder" else output[0]
    ours = jax.jit(model.apply)(params, batch)
    ours = ours[..., 0] if task == "question_answering" else ours
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5 * np.abs(expected.numpy()).max())
    again = convert.load(tmp_path / "new")
    assert again.config == config
    assert set(again.params) == set(params)
    assert again.labels == labels


def test_published_fields_are_read_kept_and_mean_what_torch_takes_them_for():
    config = read_modernbert(PUBLISHED)
    assert config == ModernBertConfig(pooling="mean")
    assert PUBLISHED.items() <= write_modernbert(config, PUBLISHED).items()
    assert "rope_parameters" not in write_modernbert(config, PUBLISHED)
    older = {
        **VALUES,
        "model_type": "modernbert",
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 90.0,
        "local_rope_theta": 8.0,
    }
    ours, theirs = read_modernbert(older), transformers.ModernBertConfig(**older)
    kinds = ["full_attention" if ours.is_global(layer) else "sliding_attention" for layer in range(4)]
    assert kinds == theirs.layer_types
    rotary = theirs.rope_parameters
    assert rotary is not None
    assert ours.global_theta == rotary["full_attention"]["rope_theta"]
    assert ours.local_theta == rotary["sliding_attention"]["rope_theta"]
    # What transformers makes of older fields says the same in today's.
    assert read_modernbert({name: value for name, value in theirs.to_dict().items() if name != "dtype"}) == ours


def test_a_changed_config_is_written_in_today_s_fields():
    config = replace(read_modernbert(PUBLISHED), layers=3, global_layers=(2,), global_theta=5.0)
    written = write_modernbert(config, PUBLISHED)
    assert written["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]
    assert written["rope_parameters"] == {
        "full_attention": {"rope_type": "default", "rope_theta": 5.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    assert not {"global_rope_theta", "local_rope_theta", "global_attn_every_n_layers"} & written.keys()
    assert read_modernbert(written) == config


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"head_width": 9}, r"unknown field head_width may change .* pass allow_unused=\['config.head_width'\]"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling is .*linear.* which changes what the model",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}}},
            "rope_parameters.full_attention is .*yarn.* but only default rotations are supported",
        ),
        (
            {"rope_parameters": {"sliding_attention": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}},
            "rope_parameters.sliding_attention is .*partial_rotary_factor.* but only default rotations",
        ),
        (
            {"rope_parameters": {"rope_theta": 1.0}},
            "rope_parameters must map full_attention and sliding_attention to values, got {'rope_theta': 1.0}",
        ),
        ({"layer_types": ["full_attention"]}, "layer_types must name each of 22 layers one of full_attention, sliding"),
        ({"layer_types": ["chunked_attention"] * 22}, "layer_types must name each of 22 layers .* got .*chunked"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers must be an integer of at least 1, got 0"),
        ({"local_rope_theta": None}, "local_rope_theta must be a positive number, got None"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key', which changes"),
        ({"classifier_pooling": "max"}, "classifier_pooling must be one of cls, mean, got 'max'"),
        ({"hidden_activation": "relu6"}, "hidden_activation must be one of gelu, .* got 'relu6'"),
        ({"hidden_size": 780}, "hidden_size must be a multiple of twice the heads .* got width 780 and 12 heads"),
        ({"num_hidden_layers": "22"}, "num_hidden_layers must be an integer of at least 1, got '22'"),
        ({"pad_token_id": 60000}, "pad_token_id must be None or an id below vocab_size 50368, got 60000"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        read_modernbert({**PUBLISHED, **changes})


def test_an_unknown_field_can_be_allowed():
    assert read_modernbert({"width_scale": 1}, allow_unused=["config.width_*"]) == ModernBertConfig()


def test_untied_words_are_refused_under_their_head_only(tmp_path):
    source = make(tmp_path / "source", "ModernBertForMaskedLM")
    fields = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**fields, "tie_word_embeddings": False}))
    with pytest.raises(ValueError, match="tie_word_embeddings is False, but the head mlm projects through the word"):
        convert.load(source)
    assert set(convert.load(source, heads=()).params) == {"backbone"}
