"""ModernBERT's layer: attention over rotated queries and keys, and a gated MLP, each behind a norm.

Warner et al. 2024 (arXiv:2412.13663), section 2.1.1. Biases are there or not by the config.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxptft.models.layers import ACTIVATIONS, Dropout, attend
from jaxptft.models.modernbert_config import ModernBertConfig
from jaxptft.models.outputs import put_attention


def rotate(
    x: Float[Array, "batch length heads head_width"],
    turns: tuple[Float[Array, "rows length pairs"], Float[Array, "rows length pairs"]],
) -> Float[Array, "batch length heads head_width"]:
    """Turns the pair (x_i, x_{i + head_width / 2}) by the i-th angle, given as cosines and sines.

    Source: Su et al. 2021, RoFormer (arXiv:2104.09864), equation 34, with the pairs half a head apart.
    """
    cos, sin = (part[:, :, None] for part in turns)
    one, other = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1).astype(x.dtype)


def turns_at(positions: Int[Array, "rows length"], theta: float, head_width: int) -> tuple[Array, Array]:
    """Cosines and sines [rows, length, head_width / 2] of position * theta^(-2 i / head_width), radians."""
    frequencies = theta ** -(jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def output_deviation(config: ModernBertConfig) -> float:
    """That of weights whose output adds to the residual stream: smaller the deeper the model, as in GPT-2."""
    return config.initializer_range / math.sqrt(2 * config.layers)


class Norm(nn.Module):
    """LayerNorm in float32, its bias by the config."""

    config: ModernBertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.config.norm_epsilon) * scale
        if self.config.norm_bias:
            x = x + self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return x.astype(self.config.dtype)


class Projection(nn.Module):
    """x @ kernel (+ bias), the kernel drawn from a normal of `deviation` cut at the config's number of them."""

    features: int
    deviation: float
    cutoff: float
    biased: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... features"]:
        kernel = self.param("kernel", truncated(self.deviation, self.cutoff), (x.shape[-1], self.features))
        # Rows are flattened because the kernel's gradient then comes out untransposed, as in `layers.Dense`.
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel.astype(self.dtype)
        if self.biased:
            rows = rows + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return rows.reshape(*x.shape[:-1], self.features)


def truncated(deviation: float, cutoff: float) -> Callable[..., Array]:
    return nn.initializers.truncated_normal(deviation, jnp.float32, -cutoff, cutoff)


class Attention(nn.Module):
    """Multi-head self-attention over rotated queries and keys, from one joint projection."""

    config: ModernBertConfig

    def setup(self) -> None:
        config = self.config
        project = partial(
            Projection, cutoff=config.initializer_cutoff, biased=config.attention_bias, dtype=config.dtype
        )
        self.qkv = project(3 * config.width, config.initializer_range)
        self.output = project(config.width, output_deviation(config))
        self.drop = Dropout(config.attention_dropout)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch queries keys"],
        turns: Any,
        *,
        active: bool,
    ) -> Float[Array, "batch length width"]:
        heads = self.config.heads
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, heads, x.shape[-1] // heads)
        q, k, v = rotate(qkv[:, :, 0], turns), rotate(qkv[:, :, 1], turns), qkv[:, :, 2]
        put_attention(self, q, k, v, mask)
        drop = partial(self.drop, active=True) if active and self.config.attention_dropout > 0 else None
        attended = attend(q, k, v, mask, drop=drop)
        return self.drop(self.output(attended.reshape(x.shape)), active=active)


class Mlp(nn.Module):
    """Gated: (activation(x A) * x B) C, with A and B in one kernel (Shazeer 2020, arXiv:2002.05202, equation 5)."""

    config: ModernBertConfig

    def setup(self) -> None:
        config = self.config
        project = partial(Projection, cutoff=config.initializer_cutoff, biased=config.mlp_bias, dtype=config.dtype)
        self.up = project(2 * config.mlp_width, config.initializer_range)
        self.down = project(config.width, output_deviation(config))
        self.drop = Dropout(config.mlp_dropout)

    def __call__(self, x: Float[Array, "batch length width"], *, active: bool) -> Float[Array, "batch length width"]:
        entry, gate = jnp.split(self.up(x), 2, axis=-1)
        return self.down(self.drop(ACTIVATIONS[self.config.activation](entry) * gate, active=active))


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and added to what came in; the first layer's attention has no norm."""

    config: ModernBertConfig
    first: bool

    def setup(self) -> None:
        self.attention_norm = None if self.first else Norm(self.config)
        self.attention = Attention(self.config)
        self.mlp_norm = Norm(self.config)
        self.mlp = Mlp(self.config)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch queries keys"],
        turns: Any,
        *,
        active: bool,
    ) -> Float[Array, "batch length width"]:
        entry = x if self.attention_norm is None else self.attention_norm(x)
        x = x + self.attention(entry, mask, turns, active=active)
        return x + self.mlp(self.mlp_norm(x), active=active)
