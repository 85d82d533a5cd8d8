"""ResNet: stages of blocks of convolutions that each add to what passes them by.

He et al. 2016, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), as Hugging Face's checkpoints compute
it: v1.5, whose bottlenecks have their stride in the 3x3 convolution (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
For small images the stem is a 3x3 convolution alone (Chen et al. 2020, arXiv:2002.05709, appendix B.9).

Depth is counted in stages. The backbone can be entered above any of them, so that a frozen prefix is computed once
(`features`); a frozen prefix normalizes by its running statistics in training too, and these never change.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxptft.models.batch_norm import BatchNorm, Population
from jaxptft.models.layers import ACTIVATIONS, Dense
from jaxptft.models.model import Model, Params
from jaxptft.models.pure import as_model_with_statistics, check_classes, check_depth
from jaxptft.models.resnet_config import ResNetConfig

Batch = Mapping[str, Any]

_TASKS = ("encoder", "classification")
_HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, section 2.2, as torchvision has it


class Unit(nn.Module):
    """A convolution without bias, its norm, and the activation where one is named."""

    config: ResNetConfig
    width: int
    size: int
    stride: int = 1
    activation: str | None = "relu"
    zero_scale: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width inputs"], over: Population, *, active: bool
    ) -> Float[Array, "batch new_height new_width outputs"]:
        config, around = self.config, self.size // 2
        x = nn.Conv(
            self.width,
            (self.size, self.size),
            strides=self.stride,
            padding=((around, around), (around, around)),
            use_bias=False,
            dtype=jnp.dtype(config.dtype),
            kernel_init=_HE,
            name="conv",
        )(x)
        norm = BatchNorm(
            config.norm_epsilon, config.norm_momentum, zero_scale=self.zero_scale, dtype=config.dtype, name="norm"
        )
        x = norm(x, over, active=active)
        return x if self.activation is None else ACTIVATIONS[self.activation](x)


class Block(nn.Module):
    """Two or three units, whose result is added to what passes them by."""

    config: ResNetConfig
    stage: int
    layer: int

    def setup(self) -> None:
        config, stage, layer = self.config, self.stage, self.layer
        width, stride = config.widths[stage], config.stride(stage, layer)
        if config.block == "basic":
            sizes, widths, strided = (3, 3), (width, width), 0
        else:
            sizes, widths, strided = (1, 3, 1), (width // 4, width // 4, width), 0 if config.stride_first else 1
        strides = [stride if index == strided else 1 for index in range(len(sizes))]
        last = {"activation": None, "zero_scale": config.zero_last_scale}
        self.unit = [
            Unit(config, *shape, **(last if index == len(sizes) - 1 else {}))
            for index, shape in enumerate(zip(widths, sizes, strides, strict=True))
        ]
        self.shortcut = Unit(config, width, 1, stride, None) if config.has_shortcut(stage, layer) else None

    def __call__(
        self, x: Float[Array, "batch height width inputs"], over: Population, *, active: bool
    ) -> Float[Array, "batch new_height new_width outputs"]:
        passing = x if self.shortcut is None else self.shortcut(x, over, active=active)
        for unit in self.unit:
            x = unit(x, over, active=active)
        return ACTIVATIONS[self.config.activation](x + passing)


class Stage(nn.Module):
    """The blocks of one width."""

    config: ResNetConfig
    stage: int

    def setup(self) -> None:
        self.layer = [Block(self.config, self.stage, layer) for layer in range(self.config.depths[self.stage])]

    def __call__(
        self, x: Float[Array, "batch height width inputs"], over: Population, *, active: bool
    ) -> Float[Array, "batch new_height new_width outputs"]:
        for layer in self.layer:
            x = layer(x, over, active=active)
        return x


class ResNet(nn.Module):
    """The stem and the stages. `frozen_layers` None freezes nothing; k freezes the stem and the first k stages."""

    config: ResNetConfig
    frozen_layers: int | None = None

    def setup(self) -> None:
        config = self.config
        size, stride = (7, 2) if config.stem == "imagenet" else (3, 1)
        self.stem = Unit(config, config.stem_width, size, stride, config.activation)
        self.stage = [Stage(config, stage) for stage in range(config.stages)]

    def embed(self, batch: Batch, over: Population, *, train: bool) -> Float[Array, "batch height width channels"]:
        image = _read_image(batch, self.config.channels)
        x = self.stem(image, over, active=train and self.frozen_layers is None)
        if self.config.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # type: ignore[arg-type]
        return x

    def __call__(
        self,
        batch: Batch,
        *,
        train: bool,
        axis_name: str | None = None,
        start: int | None = None,
        stop: int | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """The feature map above `stop` stages (None: all); entered at `start`, it reads that of it in "hidden"."""
        over = Population(batch.get("valid"), axis_name)
        if start is None:
            x = self.embed(batch, over, train=train)
        else:
            x = jnp.asarray(batch["hidden"], jnp.dtype(self.config.dtype))
        for index in range(start or 0, self.config.stages if stop is None else stop):
            x = self.stage[index](x, over, active=train and index >= (self.frozen_layers or 0))
        return x


class ResNetTask(nn.Module):
    """The backbone under the head of one task."""

    config: ResNetConfig
    task: str
    classes: int = 0
    frozen_layers: int | None = None
    start: int | None = None

    def setup(self) -> None:
        self.backbone = ResNet(self.config, self.frozen_layers)
        # normal(0.01): Goyal et al. 2017, section 5.1.
        self.classifier = Dense(self.classes, 0.01, self.config.dtype)

    def __call__(self, batch: Batch, *, train: bool = False, axis_name: str | None = None) -> Array:
        x = self.backbone(batch, train=train, axis_name=axis_name, start=self.start)
        if self.task == "encoder":
            return x
        vectors = x.astype(jnp.float32).mean(axis=(1, 2))
        return vectors if self.task == "vectors" else self.classifier(vectors).astype(jnp.float32)


def build(
    config: ResNetConfig,
    task: str,
    *,
    classes: int | None = None,
    frozen_layers: int | None = None,
    start: int | None = None,
    dtype: str | None = None,
    outputs: Sequence[str] = (),
) -> Model:
    """The backbone under the head of `task`: "encoder" (the last feature map) or "classification" (float32 logits).

    It reads `batch["image"]`, normalized floats, channels last. `frozen_layers` None freezes nothing; k has the stem
    and the first k stages normalize by running statistics in training too, which they keep. `start` k enters above k
    stages: the batch then holds "hidden", what `features(config, stop=k)` gave. `dtype` replaces `config.dtype`.

    Raises ValueError where the model lacks the task, `classes` or a depth is out of range, `outputs` are asked for
    (the feature maps of the stages differ in shape), and in `apply` for images of another shape or of integers.
    """
    if task not in _TASKS:
        raise ValueError(f"ResNet has no task {task!r}: expected one of {', '.join(_TASKS)}")
    check_classes(task, classes, sized=("classification",))
    if outputs:
        raise ValueError(
            f"ResNet gives no outputs {', '.join(outputs)}: its stages differ in shape, and nothing in it attends; "
            "take one with features(config, stop=k)"
        )
    return _model(config, task, classes or 0, frozen_layers, start, dtype)


def vectors(
    config: ResNetConfig, *, frozen_layers: int | None = None, start: int | None = None, dtype: str | None = None
) -> Model:
    """The last feature map averaged over its places; `apply` returns [batch, width] in float32."""
    return _model(config, "vectors", 0, frozen_layers, start, dtype)


def _model(
    config: ResNetConfig, task: str, classes: int, frozen_layers: int | None, start: int | None, dtype: str | None
) -> Model:
    # One more than there are stages is the whole backbone, as for models with a pooler.
    check_depth("frozen_layers", frozen_layers, layers=config.stages, most=config.stages + 1)
    check_depth("start", start, layers=config.stages, most=config.stages)
    config = config if dtype is None else replace(config, dtype=dtype)
    return as_model_with_statistics(ResNetTask(config, task, classes, frozen_layers, start))


def features(config: ResNetConfig, *, stop: int, dtype: str | None = None) -> Callable[[Params, Batch], Array]:
    """What a frozen prefix computes, to be run once: (params, batch) -> the feature map above `stop` stages.

    Put it under "hidden" in a batch for `build(..., start=stop)`. 0 is the stem's.
    """
    check_depth("stop", stop, layers=config.stages, most=config.stages)
    backbone = ResNet(config if dtype is None else replace(config, dtype=dtype))

    def apply(params: Params, batch: Batch) -> Any:
        return backbone.apply({"params": params["backbone"]}, batch, train=False, stop=stop)

    return apply


def _read_image(batch: Batch, channels: int) -> Float[Array, "batch height width channels"]:
    image = jnp.asarray(batch["image"])
    if image.ndim != 4 or image.shape[-1] != channels:
        raise ValueError(f"image has shape {image.shape}; expected [batch, height, width, {channels}]")
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"image holds {image.dtype}; expected normalized floats, as a view makes them")
    return image.astype(jnp.float32)
