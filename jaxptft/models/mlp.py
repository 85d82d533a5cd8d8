"""A multi-layer perceptron over one vector a row: the head that tells domains apart, a projector, or any small one."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxptft.models.batch_norm import BatchNorm, Population
from jaxptft.models.fields import is_integer
from jaxptft.models.layers import Dropout
from jaxptft.models.model import Model
from jaxptft.models.pure import as_model, as_model_with_statistics

NORMS = ("none", "batch")
FINAL_NORMS = ("none", "batch", "plain")


class Perceptron(nn.Module):
    """Linear layers, behind each but the last a batch norm, if any, a ReLU and dropout."""

    hidden: tuple[int, ...]
    outputs: int
    dropout: float
    norm: str = "none"
    final_norm: str = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "rows width"], over: Population, *, active: bool
    ) -> Float[Array, "rows outputs"]:
        # A bias in front of a batch norm would be taken away again with the mean.
        for index, width in enumerate(self.hidden):
            x = nn.Dense(width, use_bias=self.norm == "none", name=f"hidden_{index}")(x)
            if self.norm == "batch":
                x = BatchNorm(name=f"hidden_{index}_norm")(x, over, active=active)
            x = Dropout(self.dropout)(nn.relu(x), active=active)
        x = nn.Dense(self.outputs, use_bias=self.final_norm == "none", name="out")(x)
        if self.final_norm != "none":
            x = BatchNorm(affine=self.final_norm == "batch", name="final_norm")(x, over, active=active)
        return x


class Head(nn.Module):
    """The perceptron under a key of its own in the parameters."""

    key: str
    perceptron: Mapping[str, Any]

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False, axis_name: str | None = None) -> Array:
        x = jnp.asarray(batch["features"], jnp.float32)
        valid: Bool[Array, " rows"] | None = batch.get("valid")
        x = Perceptron(**self.perceptron, name=self.key)(x, Population(valid, axis_name), active=train)
        return x[:, 0] if x.shape[1] == 1 else x


def mlp(
    key: str,
    *,
    hidden: Sequence[int] = (128,),
    outputs: int = 1,
    dropout: float = 0.0,
    norm: str = "none",
    final_norm: str = "none",
) -> Model:
    """A head on `batch["features"]` [rows, width], its parameters under `key`; [rows, outputs], or [rows] for one.

    `hidden` are the widths of the layers with a ReLU, () for a linear head. Computed in float32. `norm` "batch" puts a
    batch norm in front of each ReLU, over the rows that `batch["valid"]` marks where it is there (BYOL's projector and
    predictor, Grill et al. 2020, arXiv:2006.07733, section 3.3); `final_norm` puts one behind the last layer, "plain"
    being one without scale and bias (MoCo v3's, Chen, Xie and He 2021, arXiv:2104.02057, section 4.1).

    Raises ValueError on widths or outputs below 1, a dropout outside [0, 1), and another norm.
    """
    sizes = (*hidden, outputs)
    if not all(is_integer(size) and size >= 1 for size in sizes):
        raise ValueError(f"hidden and outputs must be integers of at least 1, got {tuple(hidden)} and {outputs!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a probability in [0, 1), got {dropout!r}")
    for name, value, known in (("norm", norm, NORMS), ("final_norm", final_norm, FINAL_NORMS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    perceptron = {"hidden": tuple(hidden), "outputs": outputs, "dropout": dropout}
    module = Head(key, {**perceptron, "norm": norm, "final_norm": final_norm})
    dropouts = (dropout,) if hidden else ()
    if (hidden and norm != "none") or final_norm != "none":
        return as_model_with_statistics(module, dropouts=dropouts)
    return as_model(module, dropouts=dropouts)
