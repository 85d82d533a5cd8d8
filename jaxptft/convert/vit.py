"""ViT's conversion table: patches, positions, layers, pooler, classifier and config.json as Hugging Face has them.

Two fields are ours, which Hugging Face's models pass over: `add_pooling_layer` false, where a backbone has no pooler
(theirs then start one anew), and `fixed_positions`, where the position table is never trained.
"""

from collections.abc import Mapping, Sequence
from reprlib import repr as shown
from typing import Any

from jaxptft.convert.hf_config import ConfigTable
from jaxptft.convert.rules import CONVOLUTION, IDENTITY, ONLY_ROW, Family, Head, Rule, dense, norm
from jaxptft.models import VitConfig

FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_channels": "channels",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "hidden_act": "activation",
    "layer_norm_eps": "norm_epsilon",
    "qkv_bias": "qkv_bias",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "initializer_range",
}
_OURS = {"add_pooling_layer": True, "fixed_positions": False}
_SIZES = ("image_size", "patch_size")


def sizes_to_ours(values: dict[str, Any]) -> dict[str, Any]:
    """Pairs of height and width as tuples."""
    return values | {name: tuple(values[name]) for name in _SIZES if isinstance(values[name], list)}


def sizes_to_theirs(values: dict[str, Any]) -> dict[str, Any]:
    """Pairs of height and width as lists."""
    return values | {name: list(values[name]) for name in _SIZES if isinstance(values[name], tuple)}


_CONFIG = ConfigTable(
    model_type="vit",
    config=VitConfig,
    fields={**FIELDS, "add_pooling_layer": "pooler", "fixed_positions": "fixed_positions"},
    required={"pooler_act": ("tanh",)},
    # encoder_stride is that of a head for masked images, which is left aside.
    harmless={"encoder_stride", "pooler_output_size"},
    to_ours=sizes_to_ours,
    to_theirs=sizes_to_theirs,
)


def _read_config(fields: Mapping[str, Any], *, allow_unused: Sequence[str] = ()) -> VitConfig:
    config = _CONFIG.read(fields, allow_unused=allow_unused)
    pooled = fields.get("pooler_output_size")
    if pooled not in (None, config.width):
        raise ValueError(
            f"config.json: pooler_output_size is {shown(pooled)}, which changes what the model computes and is not "
            f"supported (supported: hidden_size, {config.width})"
        )
    return config


def _write_config(config: VitConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    written = _CONFIG.write(config, fields)
    unsaid = [name for name, usual in _OURS.items() if name not in fields and written[name] is usual]
    return {name: value for name, value in written.items() if name not in unsaid}


def position_rule(theirs: str, ours: str, config: VitConfig) -> Rule:
    """The position table, under the name that says whether it trains."""
    rows, leaf = config.grid[0] * config.grid[1] + 1, "fixed_positions" if config.fixed_positions else "positions"
    return Rule(theirs, f"{ours}/{leaf}", ONLY_ROW, (1, rows, config.width))


def layer_rules(theirs: str, ours: str, config: VitConfig) -> list[Rule]:
    """The layers, whose names begin as `theirs` and `ours` say."""
    width, mlp_width = config.width, config.mlp_width
    rules = []
    for index in range(config.layers):
        one, other = f"{theirs}.{index}", f"{ours}/layer_{index}"
        rules += norm(f"{one}.layernorm_before", f"{other}/attention_norm", width)
        for name in ("query", "key", "value"):
            read = f"{one}.attention.attention.{name}"
            rules += dense(read, f"{other}/attention/{name}", width, width, bias=config.qkv_bias)
        rules += dense(f"{one}.attention.output.dense", f"{other}/attention/output", width, width)
        rules += norm(f"{one}.layernorm_after", f"{other}/mlp_norm", width)
        rules += dense(f"{one}.intermediate.dense", f"{other}/mlp/up", width, mlp_width)
        rules += dense(f"{one}.output.dense", f"{other}/mlp/down", mlp_width, width)
    return rules


def backbone_rules(config: VitConfig) -> list[Rule]:
    """The encoder, and its pooler where it has one."""
    width, projection = config.width, "embeddings.patch_embeddings.projection"
    patch = (width, config.channels, *config.patch)
    pooler = dense("pooler.dense", "backbone/pooler", width, width) if config.pooler else []
    return [
        Rule("embeddings.cls_token", "backbone/embeddings/cls_token", ONLY_ROW, (1, 1, width)),
        position_rule("embeddings.position_embeddings", "backbone/embeddings", config),
        Rule(f"{projection}.weight", "backbone/embeddings/patch/kernel", CONVOLUTION, patch),
        Rule(f"{projection}.bias", "backbone/embeddings/patch/bias", IDENTITY, (width,)),
        *layer_rules("encoder.layer", "backbone", config),
        *norm("layernorm", "backbone/final_norm", width),
        *pooler,
    ]


VIT = Family(
    name="vit",
    config=VitConfig,
    prefix="vit.",
    backbone_rules=backbone_rules,
    heads={
        "classifier": Head(lambda config, classes: dense("classifier", "classifier", config.width, classes), sized=True)
    },
    architectures={"ViTModel": (), "ViTForImageClassification": ("classifier",)},
    read_config=_read_config,
    write_config=_write_config,
    optional=("pooler.*",),
    other_heads=("classifier.*", "decoder.*", "embeddings.mask_token"),
)
