"""Small backbones for small images: strided convolutions and a dense layer, or a perceptron on the pixels.

What autoencoders and the discriminators of adversarial networks have on digits and the like: strides in place of
pooling as in Radford et al. 2016 (arXiv:1511.06434), section 3. The heads that draw images are in `conv_decoder`.

The layer that reads the image is the "stem", those above it "layer_0", "layer_1", ..., the last of which gives the
features. The backbone can be entered above any of them (`features`); frozen ones normalize by running statistics.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxptft.models.batch_norm import Population
from jaxptft.models.conv_config import ConvConfig
from jaxptft.models.conv_decoder import decoder
from jaxptft.models.conv_layer import ConvLayer, activate_features
from jaxptft.models.layers import Dense
from jaxptft.models.mlp import mlp
from jaxptft.models.model import Model, Params
from jaxptft.models.pure import as_model, as_model_with_statistics, check_classes, check_depth
from jaxptft.models.stack import stack

Batch = Mapping[str, Any]

DRAWING = {"decoder": "features", "generator": "noise"}
"""The tasks that draw images, and what each reads of a batch."""

_LATENT = ("latent_mean", "latent_log_variance")
TASKS = ("encoder", "classification", *DRAWING, "discriminator", *_LATENT)


class ConvBackbone(nn.Module):
    """Images -> vectors. `frozen_layers` None freezes nothing; k freezes the stem and the first k layers."""

    config: ConvConfig
    frozen_layers: int | None = None

    def setup(self) -> None:
        config, stride = self.config, 2 if self.config.kind == "conv" else 0
        self.stem = ConvLayer(config, config.widths[0], stride)
        hidden = [ConvLayer(config, width, stride) for width in config.widths[1:]]
        self.layer = [*hidden, ConvLayer(config, config.features, 0, last=True)]

    def __call__(
        self,
        batch: Batch,
        *,
        train: bool,
        axis_name: str | None = None,
        start: int | None = None,
        stop: int | None = None,
    ) -> Float[Array, "batch *places width"]:
        """What is above `stop` layers (None: the features); entered at `start`, it reads that of it in "hidden"."""
        over, last = Population(batch.get("valid"), axis_name), self.config.layers
        if start is None:
            image = _read_image(batch, self.config.image_shape)
            x = self.stem(image, over, active=train and self.frozen_layers is None)
        else:
            x = jnp.asarray(batch["hidden"])
        for index in range(start or 0, last if stop is None else stop):
            x = self.layer[index](x, over, active=train and index >= (self.frozen_layers or 0))
            if index + 1 == last:
                x = activate_features(self.config, x)
        return x


class ConvTask(nn.Module):
    """The backbone, under a classifier where there are classes."""

    config: ConvConfig
    classes: int = 0
    frozen_layers: int | None = None
    start: int | None = None

    def setup(self) -> None:
        self.backbone = ConvBackbone(self.config, self.frozen_layers)
        if self.classes:
            self.classifier = Dense(self.classes, self.config.features**-0.5, self.config.dtype)

    def __call__(self, batch: Batch, *, train: bool = False, axis_name: str | None = None) -> Array:
        vectors = self.backbone(batch, train=train, axis_name=axis_name, start=self.start)
        return self.classifier(vectors).astype(jnp.float32) if self.classes else vectors


def build(
    config: ConvConfig,
    task: str,
    *,
    classes: int | None = None,
    frozen_layers: int | None = None,
    start: int | None = None,
    dtype: str | None = None,
    outputs: Sequence[str] = (),
) -> Model:
    """The backbone, or what stands on it; all give float32.

    - "encoder": vectors [batch, features]; "classification": logits [batch, classes].
    - "discriminator": one logit an image [batch].
    - "latent_mean", "latent_log_variance": [batch, code], of a Gaussian for each image's code.
    - "decoder", "generator": the heads alone, which draw from `batch["features"]` and `batch["noise"]` [batch, code]
      logits of pixels [batch, height, width, channels].

    Each head's parameters are under its name ("classifier" for classification). Images are `batch["image"]`, floats,
    channels last, of the config's size; for what draws them, from 0 to 1. `frozen_layers` None freezes nothing; k has
    the stem and the first k layers normalize by running statistics in training too, which they keep. `start` k enters
    above k layers: the batch then holds "hidden", what `features(config, stop=k)` gave. `dtype` replaces
    `config.dtype`.

    Raises ValueError where the model lacks the task, `classes` or a depth is out of range or for a head without a
    backbone, `outputs` are asked for, and in `apply` for images of another shape or of integers.
    """
    if task not in TASKS:
        raise ValueError(f"a small image model has no task {task!r}: expected one of {', '.join(TASKS)}")
    check_classes(task, classes, sized=("classification",))
    if outputs:
        raise ValueError(
            f"a small image model gives no outputs {', '.join(outputs)}: its layers differ in shape, and nothing in it "
            "attends; take one with features(config, stop=k)"
        )
    if task in DRAWING:
        if frozen_layers is not None or start is not None:
            raise ValueError(f"task {task!r} has no backbone to freeze or enter: leave frozen_layers and start out")
        return decoder(config, key=task, reads=DRAWING[task], dtype=dtype)
    # One more than there are layers is the whole backbone, as for models with a pooler.
    check_depth("frozen_layers", frozen_layers, layers=config.layers, most=config.layers + 1)
    check_depth("start", start, layers=config.layers, most=config.layers)
    module = ConvTask(config if dtype is None else replace(config, dtype=dtype), classes or 0, frozen_layers, start)
    model = as_model_with_statistics(module) if config.norm == "batch" else as_model(module, dropouts=())
    if task in ("encoder", "classification"):
        return model
    return stack(model, mlp(task, hidden=(), outputs=config.code if task in _LATENT else 1))


def features(config: ConvConfig, *, stop: int, dtype: str | None = None) -> Callable[[Params, Batch], Array]:
    """What a frozen prefix computes, to be run once: (params, batch) -> what is above `stop` layers; 0 is the stem's.

    Put it under "hidden" in a batch for `build(..., start=stop)`.
    """
    check_depth("stop", stop, layers=config.layers, most=config.layers)
    backbone = ConvBackbone(config if dtype is None else replace(config, dtype=dtype))

    def apply(params: Params, batch: Batch) -> Any:
        return backbone.apply({"params": params["backbone"]}, batch, train=False, stop=stop)

    return apply


def _read_image(batch: Batch, shape: tuple[int, int, int]) -> Float[Array, "batch height width channels"]:
    image = jnp.asarray(batch["image"])
    if image.ndim != 4 or image.shape[1:] != shape:
        raise ValueError(f"image has shape {image.shape}; expected [batch, {', '.join(map(str, shape))}]")
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"image holds {image.dtype}; expected floats, as a view makes them")
    return image.astype(jnp.float32)
