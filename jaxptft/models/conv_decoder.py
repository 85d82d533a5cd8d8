"""The mirror image of a small backbone: a head that draws images from codes, a decoder or a generator.

A dense layer makes of the code what the backbone has last in front of its features; from there on the layers are the
backbone's in reverse. Where a convolution halved the image, its counterpart repeats each place twice across and down
and convolves what comes out, which leaves no checkerboard as transposed convolutions do (Odena et al. 2016,
"Deconvolution and Checkerboard Artifacts", Distill).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxptft.models.batch_norm import Population
from jaxptft.models.conv_config import ConvConfig
from jaxptft.models.conv_layer import ConvLayer
from jaxptft.models.model import Model
from jaxptft.models.pure import as_model, as_model_with_statistics


class ConvDecoder(nn.Module):
    """Codes -> logits of pixels."""

    config: ConvConfig

    def setup(self) -> None:
        config, (height, width, channels) = self.config, self.config.image_shape
        upwards = config.widths[::-1]
        if config.kind == "mlp":
            hidden = [ConvLayer(config, outputs, 0) for outputs in upwards]
            last = ConvLayer(config, height * width * channels, 0, shape=(height, width, channels), last=True)
        else:
            *_, (down, across) = config.places
            start = ConvLayer(config, down * across * upwards[0], 0, shape=(down, across, upwards[0]))
            hidden = [start, *(ConvLayer(config, outputs, 1) for outputs in upwards[1:])]
            last = ConvLayer(config, channels, 1, last=True)
        self.layer = [*hidden, last]

    def __call__(
        self, code: Float[Array, "batch code"], over: Population, *, active: bool
    ) -> Float[Array, "batch height width channels"]:
        x = code.astype(self.config.dtype)
        for index, layer in enumerate(self.layer):
            if layer.stride:
                down, across = self.config.places[-1 - index]
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, :down, :across]
            x = layer(x, over, active=active)
        return x.astype(jnp.float32)


class DrawingHead(nn.Module):
    """The decoder under a key of its own in the parameters."""

    config: ConvConfig
    key: str
    reads: str

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False, axis_name: str | None = None) -> Array:
        code = jnp.asarray(batch[self.reads])
        if code.ndim != 2 or code.shape[1] != self.config.code:
            raise ValueError(
                f"{self.reads} have shape {code.shape}; expected [batch, {self.config.code}], the length of a code"
            )
        over = Population(batch.get("valid"), axis_name)
        return ConvDecoder(self.config, name=self.key)(code, over, active=train)


def decoder(config: ConvConfig, *, key: str = "decoder", reads: str = "features", dtype: str | None = None) -> Model:
    """A head that draws images [batch, height, width, channels] from `batch[reads]` [batch, code], parameters at `key`.

    What it gives are float32 logits: their sigmoid is the image, its pixels from 0 to 1.
    """
    head = DrawingHead(config if dtype is None else replace(config, dtype=dtype), key, reads)
    return as_model_with_statistics(head) if config.norm == "batch" else as_model(head, dropouts=())
