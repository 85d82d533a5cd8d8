"""MAE: a vision transformer over the visible patches of an image, and a small one that draws the others.

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners" (arXiv:2111.06377, section 3), as Hugging Face's
checkpoints compute it: the decoder reads the encoded patches back in their places, one trained mask token in each of
the others, and positions of its own. The encoder alone is `vit` with fixed positions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxptft.models import vit
from jaxptft.models.grid_positions import sincos_table
from jaxptft.models.layer_run import Place, run_layers
from jaxptft.models.layers import Dense, LayerNorm
from jaxptft.models.mae_config import MaeConfig
from jaxptft.models.model import Model, Params
from jaxptft.models.pure import as_model, check_classes, check_depth
from jaxptft.models.vit import Layer, Vit, call_layer

Batch = Mapping[str, Any]

TASKS = (*vit.TASKS, "pretraining")


class Decoder(nn.Module):
    """The encoded patches and mask tokens, in the order of the image, through layers to pixels."""

    config: MaeConfig

    def setup(self) -> None:
        config, own = self.config, self.config.decoder
        values = {"initializer_range": config.initializer_range, "dtype": config.dtype}
        self.embed = Dense(own.width, **values)
        normal = nn.initializers.normal(config.initializer_range)
        self.mask_token = self.param("mask_token", normal, (1, own.width), jnp.float32)
        self.positions = self.param("fixed_positions", lambda _: jnp.asarray(sincos_table(own.grid, own.width)))
        self.layer = [Layer(own) for _ in range(own.layers)]
        self.norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.prediction = Dense(config.patch[0] * config.patch[1] * config.channels, **values)

    def __call__(
        self, hidden: Float[Array, "batch seen width"], restore: Int[Array, "batch patches"], *, active: bool
    ) -> Float[Array, "batch patches pixels"]:
        x = self.embed(hidden).astype(jnp.float32)
        hidden_count = restore.shape[1] - (x.shape[1] - 1)
        masks = jnp.broadcast_to(self.mask_token, (len(x), hidden_count, x.shape[2]))
        patches = jnp.take_along_axis(jnp.concatenate([x[:, 1:], masks], axis=1), restore[..., None], axis=1)
        x = jnp.concatenate([x[:, :1], patches], axis=1) + jax.lax.stop_gradient(self.positions)
        places = [Place(layer, active) for layer in self.layer]
        x = run_layers(self, places, x, call_layer, scan_layers=self.config.scan_layers, remat=self.config.remat)
        return self.prediction(self.norm(x))[:, 1:].astype(jnp.float32)


class MaePretraining(nn.Module):
    """The encoder and the decoder."""

    config: MaeConfig
    frozen_layers: int | None = None

    def setup(self) -> None:
        self.backbone = Vit(self.config.encoder, self.frozen_layers)
        self.decoder = Decoder(self.config)

    def __call__(self, batch: Batch, *, train: bool = False) -> Float[Array, "batch patches pixels"]:
        config = self.config
        given = jnp.shape(batch["image"])[1:] if "image" in batch else config.image_shape
        if given[:2] != config.image_shape[:2]:
            height, width = config.image_shape[:2]
            raise ValueError(
                f"the images have shape {given}, but the decoder draws {height} x {width} pixels: "
                "give it such images, or a config of another image_size"
            )
        if ("keep" in batch) != ("restore" in batch):
            raise ValueError("the batch has one of 'keep' and 'restore'; give both, or neither to show all patches")
        hidden = self.backbone(batch, train=train)
        everywhere = jnp.broadcast_to(jnp.arange(self._patches()), (len(hidden), self._patches()))
        return self.decoder(hidden, batch.get("restore", everywhere), active=train)

    def _patches(self) -> int:
        rows, columns = self.config.encoder.grid
        return rows * columns


def build(
    config: MaeConfig,
    task: str,
    *,
    classes: int | None = None,
    frozen_layers: int | None = None,
    start: int | None = None,
    dtype: str | None = None,
    outputs: Sequence[str] = (),
) -> Model:
    """A masked autoencoder for "pretraining", or its encoder for a task of `vit.build`, under the same refusals.

    For pre-training the batch holds `image`, of the config's size, and two tables: `keep` [batch, seen], the patches
    that the encoder sees, and `restore` [batch, patches], for each patch its place among those seen, in their order,
    with the unseen ones behind them. Without these all are seen. `apply` returns the pixels of every patch
    [batch, patches, height * width * channels of a patch], in float32. There are no `outputs` and no `start`, since the
    encoder sees other patches each time.
    """
    if task != "pretraining":
        if task not in TASKS:
            raise ValueError(f"MAE has no task {task!r}: expected one of {', '.join(TASKS)}")
        return vit.build(
            config.encoder,
            task,
            classes=classes,
            frozen_layers=frozen_layers,
            start=start,
            dtype=dtype,
            outputs=outputs,
        )
    check_classes(task, classes, sized=())
    check_depth("frozen_layers", frozen_layers, layers=config.layers, most=config.layers + 1)
    if start is not None or outputs:
        raise ValueError("MAE's pretraining has no start and no outputs: take them of task 'encoder'")
    config = config if dtype is None else replace(config, dtype=dtype)
    return as_model(MaePretraining(config, frozen_layers), dropouts=(config.dropout, config.attention_dropout))


def features(config: MaeConfig, *, stop: int, dtype: str | None = None) -> Callable[[Params, Batch], Array]:
    """What a frozen prefix of the encoder computes, as `vit.features`."""
    return vit.features(config.encoder, stop=stop, dtype=dtype)
