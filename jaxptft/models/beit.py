"""BEiT: a vision transformer that knows how far patches are from each other, and tells masked ones in visual words.

Bao et al. 2022, "BEiT: BERT Pre-Training of Image Transformers" (arXiv:2106.08254, section 2), as Hugging Face's
checkpoints compute it: a linear projection of each patch or, where a patch is masked, one trained vector; a cls token;
pre-norm layers whose attention is biased by distance and has no biases of keys, and whose branches are scaled. The
residual stream is kept in float32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxptft.models.beit_config import BeitConfig
from jaxptft.models.grid_positions import resize_positions
from jaxptft.models.layer_run import Place, run_layers
from jaxptft.models.layers import Dense, Dropout, LayerNorm, Mlp, attend
from jaxptft.models.model import Model, Params
from jaxptft.models.outputs import check_outputs, put, put_attention
from jaxptft.models.pure import as_model, check_classes, check_depth
from jaxptft.models.relative_positions import RelativePositions
from jaxptft.models.vit import PatchProjection, read_images

Batch = Mapping[str, Any]

TASKS = ("encoder", "classification", "masked_image")


class Embeddings(nn.Module):
    """The projected patches, masked ones replaced, behind the cls token; positions, where they are added; dropout."""

    config: BeitConfig

    def setup(self) -> None:
        config = self.config
        normal = nn.initializers.normal(config.initializer_range)
        self.patch = PatchProjection(config.patch, config.width, normal, config.dtype)
        self.cls_token = self.param("cls_token", normal, (1, config.width), jnp.float32)
        if config.mask_token:
            self.mask_token = self.param("mask_token", normal, (1, config.width), jnp.float32)
        if config.absolute_positions:
            rows = config.grid[0] * config.grid[1] + 1
            self.positions = self.param("positions", normal, (rows, config.width), jnp.float32)
        self.drop = Dropout(config.dropout)

    def __call__(self, batch: Batch, *, active: bool) -> Float[Array, "batch length width"]:
        config = self.config
        images = read_images(batch, config, initializing=self.is_initializing())
        patches = self.patch(images, None).astype(jnp.float32)
        masked = batch.get("masked")
        if masked is not None:
            patches = jnp.where(self._checked(masked, patches)[..., None], self.mask_token, patches)
        first = jnp.broadcast_to(self.cls_token, (images.shape[0], 1, config.width))
        x = jnp.concatenate([first, patches], axis=1)
        if config.absolute_positions:
            x = x + resize_positions(self.positions, config.grid, window_of(images, config))
        return self.drop(x, active=active)

    def _checked(self, masked: Array, patches: Array) -> Array:
        masked = jnp.asarray(masked)
        if not self.config.mask_token:
            raise ValueError("the batch has 'masked', but the model has no mask token: leave it out")
        if masked.shape != patches.shape[:2] or masked.dtype != jnp.bool_:
            raise ValueError(
                f"masked is {masked.dtype} of shape {masked.shape}; expected bool of {patches.shape[:2]}, "
                "[batch, patches]"
            )
        return masked


def window_of(images: Array, config: BeitConfig) -> tuple[int, int]:
    """How many patches the images have downwards and across."""
    return images.shape[1] // config.patch_size, images.shape[2] // config.patch_size


class BiasedAttention(nn.Module):
    """Multi-head self-attention of all to all, with biases added to its scores, and none of the keys' own."""

    config: BeitConfig

    def setup(self) -> None:
        config = self.config
        project = partial(Dense, config.width, config.initializer_range, config.dtype)
        self.query, self.key, self.value, self.output = project(), project(use_bias=False), project(), project()
        self.drop = Dropout(config.attention_dropout)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        bias: Float[Array, "heads length length"] | None,
        *,
        active: bool,
    ) -> Float[Array, "batch length width"]:
        heads = self.config.heads
        by_head = (*x.shape[:-1], heads, self.config.width // heads)
        q, k, v = (project(x).reshape(by_head) for project in (self.query, self.key, self.value))
        everything = jnp.ones((x.shape[0], 1, x.shape[1]), bool)
        put_attention(self, q, k, v, everything, bias=bias)
        drop = partial(self.drop, active=True) if active and self.config.attention_dropout > 0 else None
        return self.output(attend(q, k, v, everything, bias=bias, drop=drop).reshape(x.shape))


class BranchScale(nn.Module):
    """A factor for each number of a branch, all starting from one value (Touvron et al. 2021, arXiv:2103.17239)."""

    start: float

    @nn.compact
    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        return x * self.param("scale", nn.initializers.constant(self.start), (x.shape[-1],), jnp.float32)


class Layer(nn.Module):
    """Attention and an MLP, each reading a norm of the residual stream and adding to it by a scale."""

    config: BeitConfig

    def setup(self) -> None:
        config = self.config
        values = {"initializer_range": config.initializer_range, "dtype": config.dtype}
        if config.relative_positions:
            self.relative_positions = RelativePositions(config.grid, config.heads)
        self.attention_norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.attention = BiasedAttention(config)
        self.mlp_norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation, **values)
        self.drop = Dropout(config.dropout)
        if config.layer_scale:
            self.attention_scale, self.mlp_scale = BranchScale(config.layer_scale), BranchScale(config.layer_scale)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        shared: Float[Array, "heads length length"] | None,
        window: tuple[int, int],
        *,
        active: bool,
    ) -> Float[Array, "batch length width"]:
        bias = shared
        if self.config.relative_positions:
            own = self.relative_positions(window)
            bias = own if shared is None else shared + own
        added = self.drop(self.attention(self.attention_norm(x), bias, active=active), active=active)
        x = x + (self.attention_scale(added) if self.config.layer_scale else added)
        added = self.drop(self.mlp(self.mlp_norm(x)), active=active)
        return x + (self.mlp_scale(added) if self.config.layer_scale else added)


class Beit(nn.Module):
    """The encoder without a head.

    `frozen_layers` None freezes nothing; k runs the embeddings and the first k layers with dropout off.
    """

    config: BeitConfig
    frozen_layers: int | None = None

    def setup(self) -> None:
        config = self.config
        self.embeddings = Embeddings(config)
        if config.shared_relative_positions:
            self.relative_positions = RelativePositions(config.grid, config.heads)
        self.layer = [Layer(config) for _ in range(config.layers)]
        norm = partial(LayerNorm, config.norm_epsilon, config.dtype)
        if config.pooling == "cls":
            self.final_norm = norm()
        else:
            self.pooler = norm()

    def pool(self, hidden: Float[Array, "batch length width"]) -> Float[Array, "batch width"]:
        """What a classifier reads."""
        return hidden[:, 0] if self.config.pooling == "cls" else self.pooler(hidden[:, 1:].mean(axis=1))

    def __call__(
        self, batch: Batch, *, train: bool, start: int | None = None, stop: int | None = None
    ) -> Float[Array, "batch length width"]:
        """Runs from `start` to `stop`: None is the images, k the states after k layers, layers + 1 the normed ones.

        Entered at `start`, it reads `batch["hidden"]`, what `stop=start` returned; `stop` defaults to layers + 1.
        """
        config, layers = self.config, self.config.layers
        stop = layers + 1 if stop is None else stop
        if start is None:
            hidden = self.embeddings(batch, active=train and self.frozen_layers is None)
            window = window_of(batch["image"], config)
        else:
            hidden, window = batch["hidden"], config.grid
        if start is not None and start > layers:
            return hidden
        shared = None
        if (config.shared_relative_positions or config.relative_positions) and start is not None:
            _check_window(hidden, window)
        if config.shared_relative_positions:
            shared = self.relative_positions(window)
        put(self, "hidden", hidden)
        places = [
            Place(self.layer[index], train and index >= (self.frozen_layers or 0))
            for index in range(start or 0, min(stop, layers))
        ]

        def call(layer: Layer, x: Array, active: bool, _: Any) -> Array:
            return layer(x, shared, window, active=active)

        hidden = run_layers(self, places, hidden, call, scan_layers=config.scan_layers, remat=config.remat)
        if stop > layers:
            hidden = self.final_norm(hidden) if config.pooling == "cls" else hidden
            put(self, "hidden", hidden)
        return hidden


def _check_window(hidden: Array, window: tuple[int, int]) -> None:
    patches = window[0] * window[1]
    if hidden.shape[1] != patches + 1:
        raise ValueError(
            f"hidden has {hidden.shape[1] - 1} patches, but entered midway the model knows the distances of "
            f"{window[0]} x {window[1]} alone: enter at the images, or give images of the config's size"
        )


class VisualWords(nn.Module):
    """norm and projection of each patch: logits of the visual words, in float32."""

    config: BeitConfig

    @nn.compact
    def __call__(self, patches: Float[Array, "batch patches width"]) -> Float[Array, "batch patches vocab"]:
        config = self.config
        x = LayerNorm(config.norm_epsilon, config.dtype, name="norm")(patches)
        return Dense(config.vocab_size, config.initializer_range, config.dtype, name="out")(x).astype(jnp.float32)


class BeitTask(nn.Module):
    """The encoder and the head of one task; only what the task uses has parameters."""

    config: BeitConfig
    task: str
    classes: int = 0
    frozen_layers: int | None = None
    start: int | None = None

    def setup(self) -> None:
        config = self.config
        self.backbone = Beit(config, self.frozen_layers)
        self.classifier = Dense(self.classes, config.initializer_range, config.dtype)
        self.mim = VisualWords(config)

    def __call__(self, batch: Batch, *, train: bool = False) -> Array:
        hidden = self.backbone(batch, train=train, start=self.start)
        if self.task == "masked_image":
            return self.mim(hidden[:, 1:])
        if self.task == "classification":
            return self.classifier(self.backbone.pool(hidden)).astype(jnp.float32)
        if self.is_initializing():
            # The pooler belongs to the bare backbone's parameters though the hidden states do not pass it.
            self.backbone.pool(hidden)
        return hidden


def build(
    config: BeitConfig,
    task: str,
    *,
    classes: int | None = None,
    frozen_layers: int | None = None,
    start: int | None = None,
    dtype: str | None = None,
    outputs: Sequence[str] = (),
) -> Model:
    """BEiT for a task, "encoder", "classification" or "masked_image"; it reads `batch["image"]`, channels last.

    `apply` returns the last states, the cls token's first [batch, 1 + patches, width] (behind a norm, in `dtype`, where
    the config pools by the cls token; else the residual stream itself), float32 logits of classes, or those of the
    visual words of every patch [batch, patches, vocab]. `batch["masked"]`, bool [batch, patches], where it is there,
    names the patches that are replaced by the mask token. All else is as in `vit.build`.

    Raises ValueError as `vit.build` does, for "masked_image" without a mask token or with a `start`, since other
    patches are hidden each time, and in `apply` for `masked` of another shape or without a mask token.
    """
    if task not in TASKS:
        raise ValueError(f"BEiT has no task {task!r}: expected one of {', '.join(TASKS)}")
    check_classes(task, classes, sized=("classification",))
    check_depth("frozen_layers", frozen_layers, layers=config.layers, most=config.layers + 1)
    check_depth("start", start, layers=config.layers, most=config.layers + 1)
    if task == "masked_image" and not config.mask_token:
        raise ValueError("BeitConfig.mask_token is False, and masked_image puts it in the place of patches: set it")
    if task == "masked_image" and start is not None:
        raise ValueError("BEiT's masked_image has no start, since other patches are masked each time: leave it out")
    config = config if dtype is None else replace(config, dtype=dtype)
    module = BeitTask(config, task, classes or 0, frozen_layers, start)
    return as_model(module, dropouts=(config.dropout, config.attention_dropout), outputs=check_outputs(outputs, start))


def features(config: BeitConfig, *, stop: int, dtype: str | None = None) -> Callable[[Params, Batch], Array]:
    """What a frozen prefix computes, to be run once: (params, batch) -> hidden states, dropout off.

    `stop` k gives the residual stream after k layers (0: the embeddings), in float32; layers + 1 the last states. Put
    the result under "hidden" in a batch for `build(..., start=stop)`, which takes those of images of the config's size.
    """
    check_depth("stop", stop, layers=config.layers, most=config.layers + 1)
    backbone = Beit(config if dtype is None else replace(config, dtype=dtype))

    def apply(params: Params, batch: Batch) -> Any:
        return backbone.apply({"params": params["backbone"]}, batch, train=False, stop=stop)

    return apply
