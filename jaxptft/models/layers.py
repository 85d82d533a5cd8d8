"""The blocks of a transformer: normalization, dropout, activations, attention with its masks, and the MLP.

Parameters are float32 whatever the compute dtype; statistics of LayerNorm and softmax are taken in float32.
Attention is the original transformer's (Vaswani et al. 2017, section 3.2); which keys a query sees is one mask, made
from the batch by `attention_mask`, for padded and for packed rows alike.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jaxptft.models.outputs import put_attention


def _exact_gelu(x: Array) -> Array:
    # erf rather than jax.nn.gelu's erfc: the same function, 1.3-1.6x faster on CPU, and torch's own formula.
    return x * (0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5))))


_tanh_gelu = partial(jax.nn.gelu, approximate=True)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _exact_gelu,
    "gelu_python": _exact_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""Activations by the names that checkpoints carry."""


_STEPS = 2**16  # of a dropout rate


class TracedRate(float):
    """A dropout rate that a compiled program takes as an argument, for the place of a number in a model's config.

    To the config it is a number between 0 and 1, and no other's equal; `dropout` computes with `threshold`, int32 [],
    what `rate_threshold` makes of the true rate, 0 included.
    """

    threshold: Int[Array, ""]

    def __new__(cls, threshold: Int[Array, ""]) -> "TracedRate":
        rate = super().__new__(cls, 0.5)
        rate.threshold = threshold
        return rate

    __eq__, __ne__, __hash__ = object.__eq__, object.__ne__, object.__hash__  # since it holds on to one tracing


def rate_threshold(rate: float) -> int:
    """How many of 2**16 equally likely draws drop an element."""
    return round(rate * _STEPS)


def dropout(x: Float[Array, "..."], rate: float, rng: Key[Array, ""]) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate` and scales the others by 1 / (1 - rate).

    The rate is kept to within 2**-17, and the scale is that of the rate actually used: one 32-bit draw serves two
    elements. Source: Srivastava et al. 2014, section 4.
    """
    if isinstance(rate, TracedRate):
        threshold: Any = rate.threshold
        scale: Any = (_STEPS / (_STEPS - threshold)).astype(x.dtype)
    else:
        threshold = rate_threshold(rate)
        if threshold == 0:
            return x
        scale = _STEPS / (_STEPS - threshold)
    half = (x.shape[-1] + 1) // 2
    words = _draws(rng, (*x.shape[:-1], half))
    draws = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*x.shape[:-1], 2 * half)[..., : x.shape[-1]]
    return jnp.where(draws >= threshold, x * scale, 0).astype(x.dtype)


def _draws(rng: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Random words: each element's number, mixed with the key.

    Threefry, which JAX's own draws come from, is a cipher, and on CPU 15 times slower: it was a tenth of a training
    step. To drop elements a mixer of good avalanche is enough: murmur3's scheme with the constants of C. Wellons'
    search for low bias (https://nullprogram.com/blog/2018/07/31/, "lowbias32"), keyed before each multiplication.

    Where the rows, the first axis, are split over devices by a mapped axis `data`, elements are numbered through the
    rows of all, so that devices with one key draw what one device would.
    """
    keys = jax.random.bits(rng, (3,), "uint32")
    number = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    if "data" in jax.sharding.get_abstract_mesh().manual_axes:
        number += jax.lax.axis_index("data").astype(jnp.uint32) * np.uint32(number.size)
    x = number.reshape(shape) ^ keys[0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D) ^ keys[1]
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B) ^ keys[2]
    return x ^ (x >> 16)


class Dropout(nn.Module):
    """Dropout drawn from the "dropout" stream; the identity where it is inactive or the rate is 0."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, active: bool) -> Float[Array, "..."]:
        if not active or self.rate == 0.0:
            return x
        return dropout(x, self.rate, self.key())

    def key(self) -> Key[Array, ""]:
        """The key of the next draw; `layer_run` gives it where layers are scanned."""
        return self.make_rng("dropout")


class LayerNorm(nn.Module):
    """LayerNorm over the last axis (Ba et al. 2016, equation 4), variance in two passes as torch takes it."""

    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(x).mean(axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)


class Dense(nn.Module):
    """A projection x @ kernel (+ bias) with BERT's initialization: normal(initializer_range), zero bias."""

    features: int
    initializer_range: float
    dtype: str
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... features"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(self.initializer_range), shape, jnp.float32)
        # Rows are flattened because the kernel's gradient then comes out untransposed: 1.5x faster back on CPU.
        projected = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            projected += self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return projected.reshape(*x.shape[:-1], self.features)


def attention_mask(batch: Mapping[str, Any], shape: tuple[int, ...]) -> Bool[Array, "batch queries keys"]:
    """Which keys a query sees, for rows of `shape` (batch, length); `queries` is 1 where all see the same.

    With `segment_ids` (packed rows) those of its own segment, padding being the segment 0; otherwise those that
    `attention_mask` marks; all where the batch has neither.
    """
    segments, mask = batch.get("segment_ids"), batch.get("attention_mask")
    if segments is not None:
        return segments[:, :, None] == segments[:, None, :]
    return (jnp.ones(shape, bool) if mask is None else jnp.asarray(mask, bool))[:, None]


def check_length(batch: Mapping[str, Any], longest: int) -> None:
    """ValueError where texts are longer than the model has positions; a packed row may be, since its texts are not."""
    length = batch["input_ids"].shape[-1]
    if length > longest and "position_ids" not in batch:
        raise ValueError(
            f"input_ids are {length} tokens long, but the model has {longest} positions: truncate the text"
        )


def position_ids(batch: Mapping[str, Any], length: int) -> Int[Array, "#batch length"]:
    """Where each token stands in its text: the batch's `position_ids` (packed rows), or 0 to length - 1."""
    positions = batch.get("position_ids")
    return jnp.arange(length)[None] if positions is None else positions


def attend(
    q: Float[Array, "batch length heads head_width"],
    k: Float[Array, "batch length heads head_width"],
    v: Float[Array, "batch length heads head_width"],
    mask: Bool[Array, "batch length"] | Bool[Array, "batch queries keys"] | Bool[Array, "batch heads queries keys"],
    *,
    bias: Float[Array, "heads queries keys"] | None = None,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "batch length heads head_width"]:
    """Softmax attention over the keys where `mask` is True, softmax(q k^T / sqrt(head_width) + bias) v.

    The mask may leave out the axes of heads and queries, or have them as 1: all of them then see the same keys.
    `drop` acts on the probabilities, which `jax.nn.dot_product_attention` does not offer: only then is the
    attention written out. A query without a single True key attends to all alike, so it stays finite.
    """
    if mask.ndim < 4:
        mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    if drop is None:
        return jax.nn.dot_product_attention(q, k, v, bias=None if bias is None else bias[None], mask=mask)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    scores = scores if bias is None else scores + bias
    scores = jnp.where(mask, scores, -0.7 * jnp.finfo(jnp.float32).max)
    probabilities = drop(jax.nn.softmax(scores, axis=-1)).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", probabilities, v)


class Attention(nn.Module):
    """Multi-head self-attention with an output projection.

    `heads` says how wide one is; there are `kept_heads` of them, where that is given (pruned models).
    """

    width: int
    heads: int
    attention_dropout: float
    initializer_range: float
    dtype: str
    qkv_bias: bool = True
    kept_heads: int | None = None

    def setup(self) -> None:
        values = {"initializer_range": self.initializer_range, "dtype": self.dtype}
        read = partial(Dense, self._heads() * (self.width // self.heads), **values, use_bias=self.qkv_bias)
        self.query, self.key, self.value, self.output = read(), read(), read(), Dense(self.width, **values)
        self.drop = Dropout(self.attention_dropout)

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "batch queries keys"], *, active: bool
    ) -> Float[Array, "batch length width"]:
        by_head = (*x.shape[:-1], self._heads(), self.width // self.heads)
        # Three products, not one over joined kernels: joining them at run time measured 20 % slower on CPU.
        q, k, v = (project(x).reshape(by_head) for project in (self.query, self.key, self.value))
        put_attention(self, q, k, v, mask)
        drop = partial(self.drop, active=True) if active and self.attention_dropout > 0 else None
        return self.output(attend(q, k, v, mask, drop=drop).reshape(*x.shape[:-1], -1))

    def _heads(self) -> int:
        return self.heads if self.kept_heads is None else self.kept_heads


class Mlp(nn.Module):
    """Two projections with an activation between."""

    width: int
    mlp_width: int
    activation: str
    initializer_range: float
    dtype: str

    def setup(self) -> None:
        self.up = Dense(self.mlp_width, self.initializer_range, self.dtype)
        self.down = Dense(self.width, self.initializer_range, self.dtype)

    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))
