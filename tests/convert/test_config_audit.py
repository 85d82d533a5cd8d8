"""config.json <-> our config, family by family: what is read, what is refused, and that reading undoes writing."""

import json
from dataclasses import replace

import pytest
import transformers

from jaxptft import convert
from jaxptft.convert.families import FAMILIES
from jaxptft.models import BertConfig

KIN = ("bert", "roberta", "distilbert", "albert", "electra")

# As the files on the hub have them, where they differ from transformers' defaults.
PUBLISHED = {
    "bert": (
        {"architectures": ["BertForMaskedLM"], "gradient_checkpointing": False, "position_embedding_type": "absolute"},
        BertConfig(),
    ),
    "roberta": (
        {"layer_norm_eps": 1e-5, "max_position_embeddings": 514, "type_vocab_size": 1, "bos_token_id": 0},
        BertConfig(
            vocab_size=50265,
            positions=514,
            token_types=1,
            norm_epsilon=1e-5,
            pad_id=1,
            position_offset=2,
            classifier_activation="tanh",
            mlm_activation="gelu",
            choice_dropout=0.1,
        ),
    ),
    "distilbert": (
        {"sinusoidal_pos_embds": False, "tie_weights_": True, "qa_dropout": 0.1},
        BertConfig(
            layers=6,
            token_types=0,
            head_dropout=0.2,
            pooler=False,
            classifier_activation="relu",
            classifier_input_dropout=False,
            token_dropout=0.1,
            answer_dropout=0.1,
        ),
    ),
    "albert": (
        {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "down_scale_factor": 1,
            "gap_size": 0,
            "net_structure_type": 0,
            "num_memory_blocks": 0,
            "inner_group_num": 1,
        },
        BertConfig(
            vocab_size=30000,
            activation="gelu_new",
            dropout=0.0,
            attention_dropout=0.0,
            head_dropout=0.1,
            sentence_dropout=0.1,
            embedding_width=128,
            layer_groups=1,
            sentence_head="sop",
        ),
    ),
    "electra": (
        {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu", "embedding_size": 128},
        BertConfig(
            width=256,
            heads=4,
            mlp_width=1024,
            embedding_width=128,
            pooler=False,
            classifier_activation="gelu",
            mlm_activation="gelu",
            choice_dropout=0.1,
        ),
    ),
}


@pytest.mark.parametrize("family", KIN)
def test_published_configs_are_read_and_written_back(family):
    fields, expected = PUBLISHED[family]
    table = FAMILIES[family]
    fields = {"model_type": family, **fields}
    config = table.read_config(fields)
    assert config == expected
    written = table.write_config(config, fields)
    assert fields.items() <= written.items()
    assert table.read_config(written) == config


@pytest.mark.parametrize("family", KIN)
def test_absent_fields_mean_what_transformers_takes_them_for(family):
    """Reading nothing equals reading all of transformers' default config, which is thereby understood in full."""
    table = FAMILIES[family]
    default = json.loads(transformers.AutoConfig.for_model(family).to_json_string(use_diff=False))
    assert table.read_config({"model_type": family}) == table.read_config(default)
    # Each field is translated: none is lost on the way back.
    written = table.write_config(table.read_config(default), {})
    assert written.items() <= default.items()


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("roberta", {"pad_token_id": None}, "pad_token_id is None, but RoBERTa counts its positions from the padding"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings must exceed position_offset 2, got 2"),
        ("roberta", {"pad_token_id": "1"}, "pad_token_id must be None or an id below vocab_size 50265, got '1'"),
        ("roberta", {"is_decoder": True}, "is_decoder is True, which changes what the model computes"),
        ("distilbert", {"hidden_size": 768}, "unknown field hidden_size may change what the model computes"),
        ("distilbert", {"activation": "gelo"}, "activation must be one of gelu, .* got 'gelo'"),
        ("distilbert", {"dim": 30}, "dim must be a multiple of heads, got width 30 and 12 heads"),
        ("albert", {"inner_group_num": 2}, r"inner_group_num is 2, which changes .* \(supported: 1\)"),
        ("albert", {"num_hidden_groups": 13}, "num_hidden_groups must be at most layers, got 13 and 12 layers"),
        ("albert", {"num_hidden_groups": None}, "num_hidden_groups must be an integer of at least 1, got None"),
        ("albert", {"embedding_size": None}, "embedding_size must be an integer of at least 1, got None"),
        ("albert", {"net_structure_type": 1}, "net_structure_type is 1, which changes"),
        ("electra", {"embedding_size": None}, "embedding_size must be an integer of at least 1, got None"),
        ("electra", {"summary_type": "mean"}, "summary_type is 'mean', which changes"),
        ("electra", {"summary_activation": "tanh"}, "summary_activation is 'tanh', which changes"),
        ("electra", {"generator_share": 0.25}, "unknown field generator_share .* allow_unused=.'config.generator"),
    ],
)
def test_what_is_not_understood_is_refused(family, changes, message):
    with pytest.raises(ValueError, match=f"config.json: {message}") as caught:
        FAMILIES[family].read_config({"model_type": family, **changes})
    assert "\n" not in str(caught.value)


def test_electra_without_factorised_embeddings():
    fields = {"embedding_size": 256, "hidden_size": 256}
    config = FAMILIES["electra"].read_config(fields)
    assert config.embedding_width is None
    assert FAMILIES["electra"].write_config(config, {})["embedding_size"] == 256


@pytest.mark.parametrize(
    "family, config, message",
    [
        ("bert", BertConfig(pooler=False), "family bert cannot express BertConfig.pooler False in a config.json"),
        ("bert", BertConfig(answer_dropout=0.1), "cannot express BertConfig.answer_dropout 0.1 .* its models have 0.0"),
        ("bert", BertConfig(embedding_width=128), "cannot express BertConfig.embedding_width 128 .* have None"),
        ("electra", BertConfig(), "family electra cannot express BertConfig.pooler True"),
        ("albert", BertConfig(), "embedding_size must be an integer of at least 1, got None"),
        ("distilbert", {"width": 8}, "family distilbert has configs of type BertConfig, got dict"),
        ("modernbert", BertConfig(), "family modernbert has configs of type ModernBertConfig, got BertConfig"),
        ("t5", BertConfig(), "model_type 't5' is not supported: expected one of albert, beit, bert"),
    ],
)
def test_a_config_that_a_family_cannot_express_is_refused(family, config, message):
    with pytest.raises(ValueError, match=message):
        convert.new_checkpoint(config, family=family)


def test_what_is_computed_in_is_no_matter_of_the_checkpoint():
    config = BertConfig(dtype="bfloat16")
    assert "dtype" not in convert.new_checkpoint(config, family="bert").extras.fields
    assert FAMILIES["bert"].read_config(FAMILIES["bert"].write_config(config, {})) == replace(config, dtype="float32")
