"""GPT-2: a causal decoder whose every token sees what stands before it, and the heads that read it.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (section 2.3), as Hugging Face's checkpoints
compute it: pre-norm layers, a norm after the last one, learned absolute positions, an output projection that is the
word table, and projections into the residual stream initialised smaller by sqrt(2 layers). The residual stream is kept
in float32. Token types are ignored: GPT-2 has none.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxptft.models.decoding import Cache, Decoder
from jaxptft.models.embeddings import Embedding
from jaxptft.models.gpt2_config import Gpt2Config
from jaxptft.models.heads import flatten_choices, tied_logits
from jaxptft.models.layer_run import Place, run_layers
from jaxptft.models.layers import (
    ACTIVATIONS,
    Dense,
    Dropout,
    LayerNorm,
    attend,
    attention_mask,
    check_length,
    position_ids,
)
from jaxptft.models.model import Model, Params
from jaxptft.models.outputs import check_outputs, put, put_attention
from jaxptft.models.pure import as_features, as_model, check_classes, check_depth

Batch = Mapping[str, Any]

_TASKS = ("encoder", "causal_lm", "classification", "token_classification", "question_answering", "multiple_choice")
_PER_TEXT = ("classification", "multiple_choice")
_SIZED = ("classification", "token_classification")

Slots = tuple[Array, Array, Array]
"""One layer's cached keys and values, and the first slot to write."""


class Embeddings(nn.Module):
    """Word + position rows, with dropout."""

    config: Gpt2Config

    def setup(self) -> None:
        config = self.config
        self.word = Embedding(config.vocab_size, config.width, config.initializer_range)
        self.position = Embedding(config.positions, config.width, config.initializer_range)
        self.drop = Dropout(config.dropout)

    def __call__(self, batch: Batch, *, active: bool) -> Float[Array, "batch length width"]:
        ids = batch["input_ids"]
        check_length(batch, self.config.max_length)
        rows = self.word(ids) + self.position(position_ids(batch, ids.shape[-1]))
        return self.drop(rows, active=active)


class Attention(nn.Module):
    """Multi-head attention over the keys that the mask allows; one projection gives queries, keys and values.

    `factor` is of the scores, beyond the 1 / sqrt(head width) that `attend` applies.
    """

    config: Gpt2Config
    factor: float

    def setup(self) -> None:
        config = self.config
        self.qkv = Dense(3 * config.width, config.initializer_range, config.dtype)
        self.output = Dense(config.width, _into_residual(config), config.dtype)
        self.drop = Dropout(config.attention_dropout)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length keys"],
        *,
        active: bool,
        past: Slots | None = None,
    ) -> tuple[Float[Array, "batch length width"], tuple[Array, Array]]:
        """The outputs, and the keys and values attended to: those of `x`, or with `past` those of all its slots."""
        config = self.config
        by_head = (*x.shape[:-1], config.heads, config.width // config.heads)
        q, k, v = (part.reshape(by_head) for part in jnp.split(self.qkv(x), 3, axis=-1))
        if past is not None:
            keys, values, first = past
            k = jax.lax.dynamic_update_slice_in_dim(keys, k, first, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(values, v, first, axis=1)
        if self.factor != 1.0:
            q = q * self.factor
        put_attention(self, q, k, v, mask)
        drop = partial(self.drop, active=True) if active and config.attention_dropout > 0 else None
        return self.output(attend(q, k, v, mask, drop=drop).reshape(x.shape)), (k, v)


def _factor(config: Gpt2Config, index: int) -> float:
    """Of the scores of a layer."""
    factor = 1.0 if config.scale_attention else math.sqrt(config.width // config.heads)
    return factor / (index + 1) if config.scale_by_layer else factor


class Mlp(nn.Module):
    """Two projections with an activation between."""

    config: Gpt2Config

    def setup(self) -> None:
        config = self.config
        mlp_width = 4 * config.width if config.mlp_width is None else config.mlp_width
        self.up = Dense(mlp_width, config.initializer_range, config.dtype)
        self.down = Dense(config.width, _into_residual(config), config.dtype)

    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        return self.down(ACTIVATIONS[self.config.activation](self.up(x)))


def _into_residual(config: Gpt2Config) -> float:
    # Each layer adds to the residual stream twice.
    return config.initializer_range / math.sqrt(2 * config.layers)


class Layer(nn.Module):
    """Attention and MLP, each reading a norm of the residual stream and adding to it."""

    config: Gpt2Config
    factor: float

    def setup(self) -> None:
        config = self.config
        self.attention_norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.attention = Attention(config, self.factor)
        self.mlp_norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.mlp = Mlp(config)
        self.drop = Dropout(config.residual_dropout)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length keys"],
        *,
        active: bool,
        past: Slots | None = None,
    ) -> tuple[Float[Array, "batch length width"], tuple[Array, Array]]:
        attended, slots = self.attention(self.attention_norm(x), mask, active=active, past=past)
        x = x + self.drop(attended, active=active)
        return x + self.drop(self.mlp(self.mlp_norm(x)), active=active), slots


class Gpt2(nn.Module):
    """The decoder without a head.

    `frozen_layers` None freezes nothing; k runs the embeddings and the first k layers with dropout off.
    """

    config: Gpt2Config
    frozen_layers: int | None = None

    def setup(self) -> None:
        config = self.config
        self.embeddings = Embeddings(config)
        self.layer = [Layer(config, _factor(config, index)) for index in range(config.layers)]
        self.final_norm = LayerNorm(config.norm_epsilon, config.dtype)

    def __call__(
        self, batch: Batch, *, train: bool, start: int | None = None, stop: int | None = None
    ) -> Float[Array, "batch length width"]:
        """Runs from `start` to `stop`: None is the ids, k the hidden states after k layers, layers + 1 the normed ones.

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
        length = hidden.shape[1]
        place = jnp.arange(length)
        mask = attention_mask(batch, hidden.shape[:2]) & (place[:, None] >= place)
        places = [
            Place(self.layer[index], train and index >= (self.frozen_layers or 0))
            for index in range(start or 0, min(stop, layers))
        ]

        def call(layer: Layer, x: Array, active: bool, _: Any) -> Array:
            return layer(x, mask, active=active)[0]

        config = self.config
        hidden = run_layers(self, places, hidden, call, scan_layers=config.scan_layers, remat=config.remat)
        if stop > layers:
            hidden = self.final_norm(hidden)
            put(self, "hidden", hidden)
        return hidden

    def read(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"], cache: Cache
    ) -> tuple[Float[Array, "batch length width"], Cache]:
        """Hidden states of tokens that follow those in `cache`, and the cache with them in it."""
        first, length = cache.filled, ids.shape[1]
        ahead = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
        positions = cache.seen[:, None] + jnp.maximum(ahead - 1, 0)
        marked = jax.lax.dynamic_update_slice_in_dim(cache.visible, mask, first, axis=1)
        order = jnp.arange(marked.shape[1])[None, :] <= first + jnp.arange(length)[:, None]
        hidden = self.embeddings({"input_ids": ids, "position_ids": positions}, active=False)
        slots = []
        for layer, keys, values in zip(self.layer, cache.keys, cache.values, strict=True):
            hidden, written = layer(hidden, marked[:, None, :] & order, active=False, past=(keys, values, first))
            slots.append(written)
        keys, values = zip(*slots, strict=True)
        return self.final_norm(hidden), Cache(keys, values, marked, cache.seen + ahead[:, -1], first + length)

    def logits(self, hidden: Float[Array, "... width"]) -> Float[Array, "... vocab"]:
        """Next-token logits: the products with the rows of the word table, accumulated in float32."""
        return tied_logits(hidden, self.embeddings.word.embedding, self.config.dtype)


def last_token(mask: Bool[Array, "batch length"]) -> Int[Array, " batch"]:
    """The last place where `mask` is True in each row, on whichever side its padding is; 0 where there is none."""
    return jnp.argmax(jnp.arange(mask.shape[1]) * mask, axis=1)


class Gpt2Task(nn.Module):
    """The decoder and the head of one task; only what the task uses has parameters."""

    config: Gpt2Config
    task: str
    classes: int = 0
    frozen_layers: int | None = None
    start: int | None = None

    def setup(self) -> None:
        config = self.config
        init, dtype = nn.initializers.normal(config.initializer_range), jnp.dtype(config.dtype)
        self.backbone = Gpt2(config, self.frozen_layers)
        self.classifier = nn.Dense(self.classes, use_bias=False, kernel_init=init, dtype=dtype)
        self.token_classifier = nn.Dense(self.classes, kernel_init=init, dtype=dtype)
        self.question_answering = nn.Dense(2, kernel_init=init, dtype=dtype)
        self.multiple_choice = nn.Dense(1, kernel_init=init, dtype=dtype)
        self.drop = Dropout(_head_dropout(config, self.task))

    def __call__(self, batch: Batch, *, train: bool = False) -> Array:
        if self.task in _PER_TEXT and "segment_ids" in batch:
            raise ValueError(
                f"{self.task} reads the last token of each row, but the rows are packed: give one text a row"
            )
        flat = flatten_choices(batch) if self.task == "multiple_choice" else batch
        hidden = self.backbone(flat, train=train, start=self.start)
        if self.task == "encoder":
            return hidden
        if self.task == "causal_lm":
            return self.backbone.logits(hidden)
        if self.task in _PER_TEXT:
            hidden = self._last(flat, hidden)
        head = {"classification": "classifier", "token_classification": "token_classifier"}.get(self.task, self.task)
        logits = getattr(self, head)(self.drop(hidden, active=train)).astype(jnp.float32)
        if self.task == "multiple_choice":
            return logits.reshape(batch["input_ids" if self.start is None else "hidden"].shape[:2])
        return logits

    def _last(self, batch: Batch, hidden: Float[Array, "batch length width"]) -> Float[Array, "batch width"]:
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        real = jnp.ones(hidden.shape[:2], bool) if mask is None else jnp.asarray(mask, bool)
        if self.task == "classification" and self.config.pad_id is not None and ids is not None:
            real &= ids != self.config.pad_id  # Hugging Face goes by the ids alone, its padding being `pad_id`
        return jnp.take_along_axis(hidden, last_token(real)[:, None, None], axis=1)[:, 0]


def _head_dropout(config: Gpt2Config, task: str) -> float:
    return {"token_classification": config.head_dropout, "multiple_choice": config.choice_dropout}.get(task, 0.0)


def tasks(config: Gpt2Config) -> tuple[str, ...]:
    """The tasks that `build` takes."""
    return _TASKS


def features(config: Gpt2Config, *, stop: int, dtype: str | None = None) -> Callable[[Params, Batch], Array]:
    """What a frozen prefix computes, to be run once: (params, batch) -> hidden states, dropout off.

    `stop` k gives the residual stream after k layers (0: the embeddings), in float32; layers + 1 what the last norm
    makes of it. Put the result under "hidden" in a batch for `build(..., start=stop)`. Ids with an axis of choices
    keep it.
    """
    check_depth("stop", stop, layers=config.layers, most=config.layers + 1)
    return as_features(Gpt2(_computed_in(config, dtype)), stop=stop)


def build(
    config: Gpt2Config,
    task: str,
    *,
    classes: int | None = None,
    frozen_layers: int | None = None,
    start: int | None = None,
    dtype: str | None = None,
    outputs: Sequence[str] = (),
) -> Model:
    """GPT-2 for a task; `apply` returns the hidden states ("encoder", in `dtype`) or float32 logits.

    Classification and multiple choice read a row's last token that is not padding, on whichever side that stands.
    `frozen_layers` None freezes nothing; k runs the embeddings and the first k layers with dropout off. `start` k
    enters above k layers (layers + 1: above the last norm): the batch then holds "hidden", what
    `features(config, stop=k)` gave, in place of ids. `dtype` replaces `config.dtype`. With `outputs`, some of
    `models.OUTPUTS`, `apply` returns {"logits": ..., and one array for each of them}.

    Raises ValueError for an unknown task or output, where `classes` or a depth is out of range, and in `apply` where
    dropout needs an absent `rng`.
    """
    if task not in tasks(config):
        raise ValueError(f"task must be one of {', '.join(tasks(config))} for GPT-2, got {task!r}")
    check_classes(task, classes, sized=_SIZED)
    check_depth("frozen_layers", frozen_layers, layers=config.layers, most=config.layers + 1)
    check_depth("start", start, layers=config.layers, most=config.layers + 1)
    config = _computed_in(config, dtype)
    module = Gpt2Task(config, task, classes or 0, frozen_layers, start)
    rates = (config.dropout, config.attention_dropout, config.residual_dropout, _head_dropout(config, task))

    return as_model(module, dropouts=rates, outputs=check_outputs(outputs, start))


def decoder(config: Gpt2Config, *, dtype: str | None = None) -> Decoder:
    """Reading token by token with a cache, on the parameters of `build(config, "causal_lm")`; equal to its logits."""
    config = _computed_in(config, dtype)
    module = Gpt2(config)

    def empty(batch: int, slots: int) -> Cache:
        if not 1 <= slots <= config.positions:
            raise ValueError(f"slots must be from 1 to the model's {config.positions} positions, got {slots}")
        block = jnp.zeros((batch, slots, config.heads, config.width // config.heads), config.dtype)
        blocks = (block,) * config.layers
        return Cache(blocks, blocks, jnp.zeros((batch, slots), bool), jnp.zeros(batch, jnp.int32), jnp.int32(0))

    def read(
        params: Params,
        ids: Int[Array, "batch length"],
        cache: Cache,
        mask: Bool[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        real = jnp.ones(ids.shape, bool) if mask is None else jnp.asarray(mask, bool)
        variables = {"params": params["backbone"]}
        hidden, cache = module.apply(variables, ids, real, cache, method="read")  # type: ignore[assignment]
        last = jnp.take_along_axis(hidden, last_token(real)[:, None, None], axis=1)[:, 0]
        return module.apply(variables, last, method="logits"), cache  # type: ignore[return-value]

    return Decoder(empty, read)


def _computed_in(config: Gpt2Config, dtype: str | None) -> Gpt2Config:
    return config if dtype is None else replace(config, dtype=dtype)
