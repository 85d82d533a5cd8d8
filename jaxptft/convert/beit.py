"""BEiT's conversion table: patches, positions, layers, pooler, both heads and config.json as Hugging Face has them.

Fields of config.json that steer training alone (`drop_path_rate`: whole layers are never dropped here) or a segmenter
are carried along unread. So is what older files hold of `relative_position_index`, which follows from the grid.
"""

from reprlib import repr as shown
from typing import Any

from jaxptft.convert.hf_config import ConfigTable
from jaxptft.convert.rules import CONVOLUTION, IDENTITY, ONLY_ROW, Family, Head, Rule, dense, norm
from jaxptft.models import BeitConfig
from jaxptft.models.relative_positions import distances

_HARMLESS = """
    drop_path_rate pool_scales use_auxiliary_head auxiliary_loss_weight auxiliary_channels auxiliary_num_convs
    auxiliary_concat_input semantic_loss_ignore_index add_fpn reshape_hidden_states out_features out_indices
    segmentation_indices stage_names
"""


def _to_ours(values: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(values["pooling"], bool):
        raise ValueError(f"use_mean_pooling must be True or False, got {shown(values['pooling'])}")
    image, patch = (tuple(v) if isinstance(v, list) else v for v in (values["image_size"], values["patch_size"]))
    if isinstance(patch, tuple) and len(set(patch)) == 1:
        patch = patch[0]
    pooling = "mean" if values["pooling"] else "cls"
    return {**values, "image_size": image, "patch_size": patch, "pooling": pooling}


def _to_theirs(values: dict[str, Any]) -> dict[str, Any]:
    size = values["image_size"]
    size = list(size) if isinstance(size, tuple) else size
    # transformers refuses a whole number here.
    scale = float(values["layer_scale"])
    return {**values, "image_size": size, "layer_scale": scale, "pooling": values["pooling"] == "mean"}


_CONFIG = ConfigTable(
    model_type="beit",
    config=BeitConfig,
    fields={
        "image_size": "image_size",
        "patch_size": "patch_size",
        "num_channels": "channels",
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "intermediate_size": "mlp_width",
        "vocab_size": "vocab_size",
        "hidden_act": "activation",
        "layer_norm_eps": "norm_epsilon",
        "layer_scale_init_value": "layer_scale",
        "use_mask_token": "mask_token",
        "use_absolute_position_embeddings": "absolute_positions",
        "use_relative_position_bias": "relative_positions",
        "use_shared_relative_position_bias": "shared_relative_positions",
        "use_mean_pooling": "pooling",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "initializer_range": "initializer_range",
    },
    defaults={"use_mask_token": False, "use_shared_relative_position_bias": False, "use_mean_pooling": True},
    harmless=frozenset(_HARMLESS.split()),
    to_ours=_to_ours,
    to_theirs=_to_theirs,
)


def _relative_positions(theirs: str, ours: str, config: BeitConfig) -> Rule:
    shape = (distances(config.grid), config.heads)
    name = f"{theirs}.relative_position_bias.relative_position_bias_table"
    return Rule(name, f"{ours}/relative_positions/table", IDENTITY, shape)


def _embedding_rules(config: BeitConfig) -> list[Rule]:
    width, ours, projection = config.width, "backbone/embeddings", "embeddings.patch_embeddings.projection"
    rules = [
        Rule("embeddings.cls_token", f"{ours}/cls_token", ONLY_ROW, (1, 1, width)),
        Rule(f"{projection}.weight", f"{ours}/patch/kernel", CONVOLUTION, (width, config.channels, *config.patch)),
        Rule(f"{projection}.bias", f"{ours}/patch/bias", IDENTITY, (width,)),
    ]
    if config.mask_token:
        rules.append(Rule("embeddings.mask_token", f"{ours}/mask_token", ONLY_ROW, (1, 1, width)))
    if config.absolute_positions:
        shape = (1, config.grid[0] * config.grid[1] + 1, width)
        rules.append(Rule("embeddings.position_embeddings", f"{ours}/positions", ONLY_ROW, shape))
    return rules


def _layer_rules(index: int, config: BeitConfig) -> list[Rule]:
    width, theirs, ours = config.width, f"encoder.layer.{index}", f"backbone/layer_{index}"
    rules = norm(f"{theirs}.layernorm_before", f"{ours}/attention_norm", width)
    for name in ("query", "key", "value"):
        read = f"{theirs}.attention.attention.{name}"
        rules += dense(read, f"{ours}/attention/{name}", width, width, bias=name != "key")
    if config.relative_positions:
        rules.append(_relative_positions(f"{theirs}.attention.attention", ours, config))
    rules += dense(f"{theirs}.attention.output.dense", f"{ours}/attention/output", width, width)
    rules += norm(f"{theirs}.layernorm_after", f"{ours}/mlp_norm", width)
    rules += dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up", width, config.mlp_width)
    rules += dense(f"{theirs}.output.dense", f"{ours}/mlp/down", config.mlp_width, width)
    if config.layer_scale:
        rules += [
            Rule(f"{theirs}.lambda_1", f"{ours}/attention_scale/scale", IDENTITY, (width,)),
            Rule(f"{theirs}.lambda_2", f"{ours}/mlp_scale/scale", IDENTITY, (width,)),
        ]
    return rules


def backbone_rules(config: BeitConfig) -> list[Rule]:
    """The encoder, and the norm behind its last layer or, where patches are pooled, behind their mean."""
    shared = config.shared_relative_positions
    last = ("layernorm", "final_norm") if config.pooling == "cls" else ("pooler.layernorm", "pooler")
    return [
        *_embedding_rules(config),
        *([_relative_positions("encoder", "backbone", config)] if shared else ()),
        *(rule for index in range(config.layers) for rule in _layer_rules(index, config)),
        *norm(last[0], f"backbone/{last[1]}", config.width),
    ]


def _mim_rules(config: BeitConfig, _: int) -> list[Rule]:
    return [
        *norm("mim.layernorm", "mim/norm", config.width),
        *dense("lm_head", "mim/out", config.width, config.vocab_size),
    ]


BEIT = Family(
    name="beit",
    config=BeitConfig,
    prefix="beit.",
    backbone_rules=backbone_rules,
    heads={
        "classifier": Head(
            lambda config, classes: dense("classifier", "classifier", config.width, classes),
            sized=True,
            needs=("pooler.*",),
        ),
        "mim": Head(_mim_rules),
    },
    architectures={
        "BeitModel": (),
        "BeitForImageClassification": ("classifier",),
        "BeitForMaskedImageModeling": ("mim",),
    },
    read_config=_CONFIG.read,
    write_config=_CONFIG.write,
    optional=("pooler.*",),
    buffers=("*relative_position_index",),
    other_heads=(
        *("classifier.*", "lm_head.*", "mim.layernorm.*"),
        *("decode_head.*", "auxiliary_head.*", "fpn*", "embeddings.mask_token"),
    ),
    unprefixed={f"mim.layernorm.{name}": f"layernorm.{name}" for name in ("weight", "bias")},
)
