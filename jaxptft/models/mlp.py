"""A multi-layer perceptron over one vector a row: the head that tells domains apart, or any other small one."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxptft.models.fields import is_integer
from jaxptft.models.layers import Dropout
from jaxptft.models.model import Model
from jaxptft.models.pure import as_model


class Perceptron(nn.Module):
    """Linear layers with a ReLU and dropout behind each but the last."""

    hidden: tuple[int, ...]
    outputs: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "rows width"], *, active: bool) -> Float[Array, "rows outputs"]:
        for index, width in enumerate(self.hidden):
            x = nn.relu(nn.Dense(width, name=f"hidden_{index}")(x))
            x = Dropout(self.dropout)(x, active=active)
        return nn.Dense(self.outputs, name="out")(x)


class Head(nn.Module):
    """The perceptron under a key of its own in the parameters."""

    key: str
    hidden: tuple[int, ...]
    outputs: int
    dropout: float

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> Array:
        x = jnp.asarray(batch["features"], jnp.float32)
        x = Perceptron(self.hidden, self.outputs, self.dropout, name=self.key)(x, active=train)
        return x[:, 0] if self.outputs == 1 else x


def mlp(key: str, *, hidden: Sequence[int] = (128,), outputs: int = 1, dropout: float = 0.0) -> Model:
    """A head on `batch["features"]` [rows, width], its parameters under `key`; [rows, outputs], or [rows] for one.

    `hidden` are the widths of the layers with a ReLU, () for a linear head. Computed in float32.

    Raises ValueError on widths or outputs below 1, and a dropout outside [0, 1).
    """
    sizes = (*hidden, outputs)
    if not all(is_integer(size) and size >= 1 for size in sizes):
        raise ValueError(f"hidden and outputs must be integers of at least 1, got {tuple(hidden)} and {outputs!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a probability in [0, 1), got {dropout!r}")
    return as_model(Head(key, tuple(hidden), outputs, dropout), dropouts=(dropout,) if hidden else ())
