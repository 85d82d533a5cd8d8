"""Batch normalization (Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1), exact over padding and over devices.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias        for each channel

In training mean and variance (biased) are those of all places of the valid rows of the whole batch, and the gradient
goes through them. Else they are running ones, which training renews as torch does, the variance unbiased:

    running <- (1 - momentum) * running + momentum * statistic

Running statistics are leaves of params, beside scale and bias, so that they are imported, saved and exported with the
model; no gradient reaches them. While a model learns they are carried apart, in the Linen collection `STATISTICS`
(`models.pure.as_model_with_statistics`), which takes their place where it is given.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxptft.models.model import Params

STATISTICS = "statistics"
"""The collection of running statistics, a tree like the one of `running_statistics`."""

LEAVES = ("running_mean", "running_var")


class Population(NamedTuple):
    """What the statistics of a batch are taken over: its `valid` rows (None: all), on all devices of `axis_name`."""

    valid: Bool[Array, " batch"] | None = None
    axis_name: str | None = None


class Moments(NamedTuple):
    """Mean and biased variance of each channel, and over how many numbers; all 0 where there are none."""

    mean: Float[Array, " width"]
    variance: Float[Array, " width"]
    count: Float[Array, ""]


def moments(x: Float[Array, "batch *places width"], over: Population) -> Moments:
    """The statistics of each channel in float32, in two passes: the mean of all devices first, then the squares.

    Raises ValueError where `over.valid` is not one value a row.
    """
    x = x.astype(jnp.float32)
    rows: Any = x.shape[0]
    counted: Any = True
    if over.valid is not None:
        if over.valid.shape != x.shape[:1]:
            raise ValueError(f"valid has shape {over.valid.shape}; expected one value for each of {len(x)} rows")
        rows = jnp.sum(over.valid, dtype=jnp.float32)
        counted = jnp.asarray(over.valid, bool).reshape(-1, *(1,) * (x.ndim - 1))

    def whole(local: Any) -> Array:
        return jnp.asarray(local if over.axis_name is None else jax.lax.psum(local, over.axis_name), jnp.float32)

    def total(values: Array) -> Array:
        return whole(values.sum(axis=tuple(range(x.ndim - 1))))

    count = whole(rows * math.prod(x.shape[1:-1]))
    divisor = jnp.maximum(count, 1.0)
    mean = total(jnp.where(counted, x, 0.0)) / divisor
    variance = total(jnp.square(jnp.where(counted, x - mean, 0.0))) / divisor
    return Moments(mean, variance, count)


class BatchNorm(nn.Module):
    """Normalizes each channel, the last axis; computed in float32, returned in `dtype`.

    `momentum` is the share of the new statistic, as in torch. Without `affine` there is neither scale nor bias.
    `zero_scale` starts the scale at 0. A batch with fewer than two numbers a channel leaves the running statistics.
    """

    epsilon: float = 1e-5
    momentum: float = 0.1
    affine: bool = True
    zero_scale: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *places width"], over: Population, *, active: bool
    ) -> Float[Array, "batch *places width"]:
        """`active` normalizes by the batch, as in training; else by the running statistics."""
        shape = x.shape[-1:]
        start = dict(zip(LEAVES, (nn.initializers.zeros, nn.initializers.ones), strict=True))
        running = {name: self.param(name, start[name], shape, jnp.float32) for name in LEAVES}
        if self.has_variable(STATISTICS, LEAVES[0]):
            running = {name: self.get_variable(STATISTICS, name) for name in LEAVES}
        running = jax.lax.stop_gradient(running)
        if active:
            mean, variance, count = moments(x, over)
            self._renew(running, jax.lax.stop_gradient(Moments(mean, variance, count)))
        else:
            mean, variance = (running[name] for name in LEAVES)
        factor = jax.lax.rsqrt(variance + self.epsilon)
        if self.affine:
            scale = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
            factor = factor * self.param("scale", scale, shape, jnp.float32)
        y = (x.astype(jnp.float32) - mean) * factor
        if self.affine:
            y = y + self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return y.astype(self.dtype)

    def _renew(self, running: Mapping[str, Array], found: Moments) -> None:
        if not self.is_mutable_collection(STATISTICS) or self.is_initializing():
            return
        unbiased = found.variance * (found.count / jnp.maximum(found.count - 1.0, 1.0))
        for name, statistic in zip(LEAVES, (found.mean, unbiased), strict=True):
            renewed = (1.0 - self.momentum) * running[name] + self.momentum * statistic
            self.put_variable(STATISTICS, name, jnp.where(found.count > 1, renewed, running[name]))


def running_statistics(params: Params) -> Params:
    """The sub-tree of the running statistics among `params`, without empty branches; the leaves are not copied."""
    found: Params = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            if inner := running_statistics(dict(value)):
                found[name] = inner
        elif name in LEAVES:
            found[name] = value
    return found
