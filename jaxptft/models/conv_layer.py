"""The one layer that small backbones and the heads that draw are made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxptft.models.batch_norm import BatchNorm, Population
from jaxptft.models.conv_config import ConvConfig
from jaxptft.models.layers import ACTIVATIONS, LayerNorm

# He et al. 2015, arXiv:1502.01852, section 2.2, in front of an activation; LeCun et al. 1998 where none follows.
_ACTIVATED = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
_LINEAR = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class ConvLayer(nn.Module):
    """A 3x3 convolution of a `stride`, or a dense layer where that is 0; then the config's norm and activation.

    `shape` is what a row becomes behind a dense layer. The `last` layer of a network has neither norm nor activation.
    """

    config: ConvConfig
    outputs: int
    stride: int
    shape: tuple[int, ...] = ()
    last: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch *shape width"], over: Population, *, active: bool) -> Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        bias, start = self.last or config.norm == "none", _LINEAR if self.last else _ACTIVATED
        if self.stride:
            around = ((1, 1), (1, 1))
            conv = nn.Conv(
                self.outputs, (3, 3), self.stride, around, use_bias=bias, dtype=dtype, kernel_init=start, name="conv"
            )
            x = conv(x)
        else:
            dense = nn.Dense(self.outputs, use_bias=bias, dtype=dtype, kernel_init=start, name="dense")
            x = dense(x.reshape(x.shape[0], -1))
            x = x.reshape(x.shape[0], *self.shape) if self.shape else x
        if self.last:
            return x
        if config.norm == "layer":
            x = LayerNorm(config.norm_epsilon, config.dtype, name="norm")(x)
        elif config.norm == "batch":
            norm = BatchNorm(config.norm_epsilon, config.norm_momentum, dtype=config.dtype, name="norm")
            x = norm(x, over, active=active)
        return ACTIVATIONS[config.activation](x)


def activate_features(config: ConvConfig, x: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
    """The backbone's vectors out of its last layer, in float32."""
    x = x.astype(jnp.float32)
    if config.features_activation == "none":
        return x
    return jax.nn.sigmoid(x) if config.features_activation == "sigmoid" else ACTIVATIONS[config.features_activation](x)
