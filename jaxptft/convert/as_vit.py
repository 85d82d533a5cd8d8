"""A masked autoencoder's encoder as a vision transformer, to be fine-tuned and exported as one.

The table of fixed positions becomes one that learns, as in the fine-tuning of He et al. 2022 (arXiv:2111.06377,
appendix A.1).
"""

from dataclasses import replace

from jaxptft.convert.checkpoint import Checkpoint, Extras
from jaxptft.convert.families import find_family
from jaxptft.convert.vit_mae import DECODER_FIELDS


def as_vit(checkpoint: Checkpoint) -> Checkpoint:
    """The backbone of a "vit_mae" checkpoint as a "vit" checkpoint without a head; values and dtypes as they are.

    It computes what the encoder does where no patch is hidden. The decoder stays behind.

    Raises ValueError for a checkpoint of another family.
    """
    if checkpoint.family != "vit_mae":
        raise ValueError(f"as_vit takes a checkpoint of family vit_mae, got {checkpoint.family}")
    config = replace(checkpoint.config.encoder, fixed_positions=False)
    backbone = dict(checkpoint.params["backbone"])
    embeddings = dict(backbone["embeddings"])
    embeddings["positions"] = embeddings.pop("fixed_positions")
    dropped = {*DECODER_FIELDS, "architectures"}
    fields = {name: value for name, value in checkpoint.extras.fields.items() if name not in dropped}
    table = find_family("vit")
    kept = {rule.hf_name for rule in table.backbone_rules(config)}
    dtypes = {name: dtype for name, dtype in checkpoint.extras.dtypes.items() if name in kept}
    return Checkpoint(
        family="vit",
        config=config,
        params={"backbone": {**backbone, "embeddings": embeddings}},
        extras=Extras(fields=table.write_config(config, fields), dtypes=dtypes),
        tokenizer_files=checkpoint.tokenizer_files,
    )
