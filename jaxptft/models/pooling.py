"""One vector a text or an image from any backbone: what similarity, domain adaptation and clustering read."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxptft.models.beit_config import BeitConfig
from jaxptft.models.bert_config import BertConfig
from jaxptft.models.build import AnyConfig, build
from jaxptft.models.conv_config import ConvConfig
from jaxptft.models.gpt2 import last_token
from jaxptft.models.gpt2_config import Gpt2Config
from jaxptft.models.mae_config import MaeConfig
from jaxptft.models.model import Model, Params
from jaxptft.models.resnet import vectors
from jaxptft.models.resnet_config import ResNetConfig
from jaxptft.models.vit_config import VitConfig

POOLINGS = ("mean", "first", "last", "pooler")


def pooled(
    config: AnyConfig,
    pooling: str = "mean",
    *,
    frozen_layers: int | None = None,
    start: int | None = None,
    dtype: str | None = None,
) -> Model:
    """The backbone with its last hidden states [batch, length, width] made one vector a row; `apply` gives float32.

    `pooling` is "mean" over the tokens of the text, its "first" token, its "last" one, or "pooler", the first token
    behind BERT's or ViT's trained pooler, which is what BERT's classifier reads. Of an image they are the patches seen,
    whose "mean" leaves out the cls token, and that token, the "first". All else is as in `build(config, "encoder")`,
    `start` too. A backbone's pooler has parameters only where it is read.

    Raises ValueError for another pooling, "pooler" where the model has none, "first" where no token sees what follows
    it, "last" of an image, packed rows, and what `build` refuses.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    if isinstance(config, ResNetConfig):
        if pooling != "mean":
            raise ValueError(f"ResNet gives the mean over all places, and has no {pooling!r}: use pooling 'mean'")
        return vectors(config, frozen_layers=frozen_layers, start=start, dtype=dtype)
    if isinstance(config, ConvConfig):
        if pooling != "mean":
            raise ValueError(f"a small image model gives one vector, and has no {pooling!r}: use pooling 'mean'")
        return build(config, "encoder", frozen_layers=frozen_layers, start=start, dtype=dtype)
    of_patches = isinstance(config, VitConfig | MaeConfig | BeitConfig)
    if pooling == "last" and of_patches:
        raise ValueError("the patches of an image have no last one that stands for it: use pooling 'mean' or 'first'")
    has_pooler = isinstance(config, BertConfig | VitConfig) and config.pooler
    if pooling == "pooler" and not has_pooler:
        raise ValueError("pooling 'pooler' needs a model with a pooler; this one has none: use 'mean' or 'first'")
    if pooling == "first" and isinstance(config, Gpt2Config):
        raise ValueError("the first token of GPT-2 sees no other: use pooling 'mean' or 'last'")
    encoder = build(config, "encoder", frozen_layers=frozen_layers, start=start, dtype=dtype)

    def init(rng: Any, batch: Any) -> Params:
        params = encoder.init(rng, batch)
        kept = {name: leaf for name, leaf in params["backbone"].items() if name != "pooler" or pooling == "pooler"}
        return {**params, "backbone": kept}

    def apply(params: Params, batch: Any, *, rng: Any = None, train: bool = False) -> Float[Array, "batch width"]:
        if "segment_ids" in batch:
            raise ValueError("pooling makes one vector a row, but the rows are packed: give one text a row")
        hidden = encoder.apply(params, batch, rng=rng, train=train).astype(jnp.float32)
        if of_patches and pooling == "mean":
            return hidden[:, 1:].mean(axis=1)
        mask = batch.get("attention_mask")
        real = jnp.ones(hidden.shape[:2], bool) if mask is None else jnp.asarray(mask, bool)
        if pooling == "mean":
            weights = real[..., None].astype(jnp.float32)
            return (hidden * weights).sum(1) / jnp.maximum(weights.sum(1), 1.0)
        if pooling == "last":
            return jnp.take_along_axis(hidden, last_token(real)[:, None, None], axis=1)[:, 0]
        if pooling == "first":
            return hidden[:, 0]
        pooler = params["backbone"]["pooler"]
        return jnp.tanh(jnp.matmul(hidden[:, 0], pooler["kernel"]) + pooler["bias"])

    return Model(init, apply)


def reads_images(config: AnyConfig) -> bool:
    """Whether the models of a config read images, and not text."""
    return hasattr(config, "channels")


def usual_pooling(config: AnyConfig) -> str:
    """The pooling that gives what a classifier of the family reads."""
    if isinstance(config, Gpt2Config):
        return "last"
    if reads_images(config):
        return "first" if getattr(config, "pooling", "mean") == "cls" else "mean"
    return "pooler" if getattr(config, "pooler", False) else "first"
