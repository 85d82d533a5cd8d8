"""ViTMAE's conversion table: ViT's encoder with fixed positions, and the decoder."""

from typing import Any

from jaxptft.convert.hf_config import ConfigTable
from jaxptft.convert.rules import ONLY_ROW, Family, Head, Rule, dense, norm
from jaxptft.convert.vit import FIELDS, backbone_rules, layer_rules, position_rule, sizes_to_ours, sizes_to_theirs
from jaxptft.models import MaeConfig

DECODER_FIELDS = {
    "decoder_hidden_size": "decoder_width",
    "decoder_num_hidden_layers": "decoder_layers",
    "decoder_num_attention_heads": "decoder_heads",
    "decoder_intermediate_size": "decoder_mlp_width",
    "mask_ratio": "mask_ratio",
    "norm_pix_loss": "normalise",
}
"""What a vision transformer's config.json does not have."""

_CONFIG = ConfigTable(
    model_type="vit_mae",
    config=MaeConfig,
    fields={**FIELDS, **DECODER_FIELDS},
    to_ours=sizes_to_ours,
    to_theirs=sizes_to_theirs,
)


def _decoder_rules(config: MaeConfig, _: Any) -> list[Rule]:
    own, pixels = config.decoder, config.patch[0] * config.patch[1] * config.channels
    return [
        *dense("decoder.decoder_embed", "decoder/embed", config.width, own.width),
        Rule("decoder.mask_token", "decoder/mask_token", ONLY_ROW, (1, 1, own.width)),
        position_rule("decoder.decoder_pos_embed", "decoder", own),
        *layer_rules("decoder.decoder_layers", "decoder", own),
        *norm("decoder.decoder_norm", "decoder/norm", own.width),
        *dense("decoder.decoder_pred", "decoder/prediction", own.width, pixels),
    ]


VIT_MAE = Family(
    name="vit_mae",
    config=MaeConfig,
    prefix="vit.",
    backbone_rules=lambda config: backbone_rules(config.encoder),
    heads={"decoder": Head(_decoder_rules)},
    architectures={"ViTMAEModel": (), "ViTMAEForPreTraining": ("decoder",)},
    read_config=_CONFIG.read,
    write_config=_CONFIG.write,
    other_heads=("decoder.*",),
    # As transformers 5 writes what it reads as decoder_layers.
    spellings=(("decoder.decoder_encoder.layer.", "decoder.decoder_layers."),),
)
