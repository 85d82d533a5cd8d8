"""ViT: a transformer over the patches of an image and a cls token, and the heads that read it.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (arXiv:2010.11929, section 3.1), as Hugging Face's checkpoints
compute it: a linear projection of each patch, a cls token, positions that are learned (or fixed), pre-norm layers, and
a norm after the last one. The residual stream is kept in float32. Images of another size than the position table's have
it interpolated (section 3.2).

A batch may name the patches of each image that are seen, `keep`: the others are not computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxptft.models.grid_positions import resize_positions, sincos_table
from jaxptft.models.layer_run import Place, run_layers
from jaxptft.models.layers import Attention, Dense, Dropout, LayerNorm, Mlp
from jaxptft.models.model import Model, Params
from jaxptft.models.outputs import check_outputs, put
from jaxptft.models.pure import as_model, check_classes, check_depth
from jaxptft.models.vit_config import VitConfig

Batch = Mapping[str, Any]

TASKS = ("encoder", "classification")


class PatchProjection(nn.Module):
    """A linear layer over the pixels of each patch; its kernel is that of a convolution by whole patches."""

    patch: tuple[int, int]
    features: int
    kernel_init: Callable[..., Array]
    dtype: str

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], keep: Int[Array, "batch seen"] | None
    ) -> Float[Array, "batch places features"]:
        (tall, wide), channels = self.patch, images.shape[-1]
        kernel = self.param("kernel", self._kernel, (tall, wide, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        rows, columns = images.shape[1] // tall, images.shape[2] // wide
        pixels = images.reshape(-1, rows, tall, columns, wide, channels).swapaxes(2, 3)
        pixels = pixels.reshape(images.shape[0], rows * columns, tall * wide * channels)
        if keep is not None:
            pixels = jnp.take_along_axis(pixels, keep[..., None], axis=1)
        flat = pixels.reshape(-1, pixels.shape[-1]).astype(self.dtype)
        projected = flat @ kernel.reshape(-1, self.features).astype(self.dtype) + bias.astype(self.dtype)
        return projected.reshape(*pixels.shape[:2], self.features)

    def _kernel(self, rng: Array, shape: tuple[int, ...]) -> Array:
        tall, wide, channels, features = shape
        return self.kernel_init(rng, (tall * wide * channels, features), jnp.float32).reshape(shape)


class Embeddings(nn.Module):
    """The projected patches behind the cls token, with their positions, and dropout."""

    config: VitConfig

    def setup(self) -> None:
        config = self.config
        normal = nn.initializers.normal(config.initializer_range)
        init = nn.initializers.xavier_uniform() if config.fixed_positions else normal
        rows = config.grid[0] * config.grid[1] + 1
        self.patch = PatchProjection(config.patch, config.width, init, config.dtype)
        self.cls_token = self.param("cls_token", normal, (1, config.width), jnp.float32)
        if config.fixed_positions:
            fixed = sincos_table(config.grid, config.width)
            self.positions = self.param("fixed_positions", lambda _: jnp.asarray(fixed))
        else:
            self.positions = self.param("positions", normal, (rows, config.width), jnp.float32)
        self.drop = Dropout(config.dropout)

    def __call__(self, batch: Batch, *, active: bool) -> Float[Array, "batch length width"]:
        config = self.config
        images = read_images(batch, config, initializing=self.is_initializing())
        keep = batch.get("keep")
        wanted = images.shape[1] // config.patch[0], images.shape[2] // config.patch[1]
        table = jax.lax.stop_gradient(self.positions) if config.fixed_positions else self.positions
        table = resize_positions(table, config.grid, wanted)
        patches = self.patch(images, keep) + (table[1:] if keep is None else table[1:][keep])
        first = jnp.broadcast_to(self.cls_token + table[:1], (images.shape[0], 1, config.width))
        return self.drop(jnp.concatenate([first, patches], axis=1), active=active)


def read_images(
    batch: Batch, config: Any, *, initializing: bool = False
) -> Float[Array, "batch height width channels"]:
    """The batch's images in float32; ValueError for other channels, and a size that the patches do not divide."""
    if "image" not in batch:
        raise ValueError(f"the batch has {sorted(batch)} but no 'image': give it [batch, height, width, channels]")
    images = jnp.asarray(batch["image"])
    if images.ndim != 4 or images.shape[-1] != config.channels:
        raise ValueError(f"image has shape {images.shape}; expected [batch, height, width, {config.channels}]")
    (height, width), (tall, wide) = images.shape[1:3], config.patch
    if height % tall or width % wide or not height * width:
        raise ValueError(
            f"images of {height} x {width} pixels are no whole number of patches of {tall} x {wide}: "
            "resize or crop them to multiples"
        )
    # For fresh parameters only the shape matters, which integers have too.
    if not initializing and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"image holds {images.dtype}; expected normalized floats, as a view makes them")
    return images.astype(jnp.float32)


class Layer(nn.Module):
    """Attention of all to all and an MLP, each reading a norm of the residual stream and adding to it."""

    config: VitConfig

    def setup(self) -> None:
        config = self.config
        values = {"initializer_range": config.initializer_range, "dtype": config.dtype}
        self.attention_norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.attention = Attention(
            config.width, config.heads, config.attention_dropout, qkv_bias=config.qkv_bias, **values
        )
        self.mlp_norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation, **values)
        self.drop = Dropout(config.dropout)

    def __call__(self, x: Float[Array, "batch length width"], *, active: bool) -> Float[Array, "batch length width"]:
        everything = jnp.ones((x.shape[0], 1, x.shape[1]), bool)
        x = x + self.drop(self.attention(self.attention_norm(x), everything, active=active), active=active)
        return x + self.drop(self.mlp(self.mlp_norm(x)), active=active)


def call_layer(layer: Layer, x: Array, active: bool, _: Any) -> Array:
    """How `run_layers` runs one."""
    return layer(x, active=active)


class Vit(nn.Module):
    """The encoder without a head.

    `frozen_layers` None freezes nothing; k runs the embeddings and the first k layers with dropout off.
    """

    config: VitConfig
    frozen_layers: int | None = None

    def setup(self) -> None:
        config = self.config
        self.embeddings = Embeddings(config)
        self.layer = [Layer(config) for _ in range(config.layers)]
        self.final_norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.pooler = Dense(config.width, config.initializer_range, config.dtype)

    def pool(self, hidden: Float[Array, "batch length width"]) -> Float[Array, "batch width"]:
        return jnp.tanh(self.pooler(hidden[:, 0]))

    def __call__(
        self, batch: Batch, *, train: bool, start: int | None = None, stop: int | None = None
    ) -> Float[Array, "batch length width"]:
        """Runs from `start` to `stop`: None is the images, k the states after k layers, layers + 1 the normed ones.

        Entered at `start`, it reads `batch["hidden"]`, what `stop=start` returned; `stop` defaults to layers + 1.
        """
        layers = self.config.layers
        stop = layers + 1 if stop is None else stop
        if start is None:
            hidden = self.embeddings(batch, active=train and self.frozen_layers is None)
        else:
            hidden = batch["hidden"]
        if start is not None and start > layers:
            return hidden
        put(self, "hidden", hidden)
        places = [
            Place(self.layer[index], train and index >= (self.frozen_layers or 0))
            for index in range(start or 0, min(stop, layers))
        ]
        config = self.config
        hidden = run_layers(self, places, hidden, call_layer, scan_layers=config.scan_layers, remat=config.remat)
        if stop > layers:
            hidden = self.final_norm(hidden)
            put(self, "hidden", hidden)
        return hidden


class VitTask(nn.Module):
    """The encoder and the head of one task; only what the task uses has parameters."""

    config: VitConfig
    task: str
    classes: int = 0
    frozen_layers: int | None = None
    start: int | None = None

    def setup(self) -> None:
        config = self.config
        self.backbone = Vit(config, self.frozen_layers)
        self.classifier = Dense(self.classes, config.initializer_range, config.dtype)

    def __call__(self, batch: Batch, *, train: bool = False) -> Array:
        hidden = self.backbone(batch, train=train, start=self.start)
        if self.task == "encoder":
            if self.is_initializing() and self.config.pooler:
                # The pooler belongs to the bare backbone's parameters though the hidden states do not pass it.
                self.backbone.pool(hidden)
            return hidden
        vector = hidden[:, 0] if self.config.pooling == "cls" else hidden[:, 1:].mean(axis=1)
        return self.classifier(vector).astype(jnp.float32)


def build(
    config: VitConfig,
    task: str,
    *,
    classes: int | None = None,
    frozen_layers: int | None = None,
    start: int | None = None,
    dtype: str | None = None,
    outputs: Sequence[str] = (),
) -> Model:
    """ViT for a task, "encoder" or "classification"; it reads `batch["image"]`, normalized floats, channels last.

    `apply` returns the states behind the final norm, the cls token's first [batch, 1 + patches, width], in `dtype`, or
    float32 logits. `batch["keep"]` [batch, seen], where it is there, names the patches of each image that are seen.
    `frozen_layers` None freezes nothing; k runs the embeddings and the first k layers with dropout off. `start` k
    enters above k layers (layers + 1: above the final norm): the batch then holds "hidden", what
    `features(config, stop=k)` gave. `dtype` replaces `config.dtype`. With `outputs`, some of `models.OUTPUTS`, `apply`
    returns {"logits": ..., and one array for each of them}.

    Raises ValueError for an unknown task or output, where `classes` or a depth is out of range, and in `apply` where
    dropout needs an absent `rng`, or for images of other channels, of integers, or that patches do not divide.
    """
    if task not in TASKS:
        raise ValueError(f"ViT has no task {task!r}: expected one of {', '.join(TASKS)}")
    check_classes(task, classes, sized=("classification",))
    check_depth("frozen_layers", frozen_layers, layers=config.layers, most=config.layers + 1)
    check_depth("start", start, layers=config.layers, most=config.layers + 1)
    config = config if dtype is None else replace(config, dtype=dtype)
    module = VitTask(config, task, classes or 0, frozen_layers, start)

    return as_model(module, dropouts=(config.dropout, config.attention_dropout), outputs=check_outputs(outputs, start))


def features(config: VitConfig, *, stop: int, dtype: str | None = None) -> Callable[[Params, Batch], Array]:
    """What a frozen prefix computes, to be run once: (params, batch) -> hidden states, dropout off.

    `stop` k gives the residual stream after k layers (0: the embeddings), in float32; layers + 1 what the final norm
    makes of it. Put the result under "hidden" in a batch for `build(..., start=stop)`.
    """
    check_depth("stop", stop, layers=config.layers, most=config.layers + 1)
    backbone = Vit(config if dtype is None else replace(config, dtype=dtype))

    def apply(params: Params, batch: Batch) -> Any:
        return backbone.apply({"params": params["backbone"]}, batch, train=False, stop=stop)

    return apply
