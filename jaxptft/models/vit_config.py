"""The values that fix a vision transformer."""

from dataclasses import dataclass, field
from reprlib import repr as shown
from typing import Any

from jaxptft.models.fields import (
    DTYPES,
    check_activations,
    check_choice,
    check_flags,
    check_integers,
    check_positive,
    check_rates,
    is_integer,
)
from jaxptft.models.layer_run import check_layer_run

Size = int | tuple[int, int]
"""Height and width in pixels; one number where they are the same."""


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """The values that fix a vision transformer; the defaults are ViT-B/16's.

    `image_size` is that of the position table, `patch_size` must divide it; other images have their positions
    interpolated. `fixed_positions` makes the table the sines and cosines of `grid_positions.sincos_table`, never
    trained (MAE, MoCo v3), and draws the patches' kernel as a linear layer's (Glorot & Bengio 2010).

    `qkv_bias` says whether queries, keys and values have biases; `pooler` whether there is a tanh pooler on the cls
    token; `pooling` what the classifier reads: the "cls" token, or the "mean" over the patches.

    Dropouts are probabilities. `dtype` is what is computed in; parameters and the residual stream are float32.

    `scan_layers` and `remat` are how the layers run, and change no result but for its last bits (`layer_run`).
    """

    image_size: Size = 224
    patch_size: Size = 16
    channels: int = 3
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    qkv_bias: bool = True
    pooler: bool = True
    pooling: str = "cls"
    fixed_positions: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    dtype: str = "float32"
    scan_layers: bool = field(default=False, repr=False)
    remat: str = field(default="none", repr=False)

    def __post_init__(self) -> None:
        check_integers(self, "width", "layers", "heads", "mlp_width")
        check_image(self)
        check_heads(self, "width", "heads")
        check_activations(self, "activation")
        check_choice(self, "pooling", ("cls", "mean"))
        check_choice(self, "dtype", DTYPES)
        check_layer_run(self)
        check_flags(self, "qkv_bias", "pooler", "fixed_positions")
        check_rates(self, "dropout", "attention_dropout")
        check_positive(self, "norm_epsilon", "initializer_range")
        if self.fixed_positions:
            check_fixed(self, "width")

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch, in pixels."""
        return as_pair(self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """How many patches the position table has downwards and across."""
        height, width = as_pair(self.image_size)
        return height // self.patch[0], width // self.patch[1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image as large as the position table."""
        return (*as_pair(self.image_size), self.channels)


def as_pair(size: Size) -> tuple[int, int]:
    """Height and width."""
    return size if isinstance(size, tuple) else (size, size)


def check_image(config: Any) -> None:
    """ValueError for sizes of image and patch that are none or do not go together, and for other channels."""
    name = type(config).__name__
    for measure in ("image_size", "patch_size"):
        size = getattr(config, measure)
        pair = as_pair(size)
        if len(pair) != 2 or not all(is_integer(part) and part >= 1 for part in pair):
            raise ValueError(
                f"{name}.{measure} must be an integer of at least 1, or a pair of them: height and width; "
                f"got {shown(size)}"
            )
    image, patch = as_pair(config.image_size), as_pair(config.patch_size)
    if any(whole % part for whole, part in zip(image, patch, strict=True)):
        raise ValueError(f"{name}.image_size must be a multiple of patch_size, got {image} and patches of {patch}")
    if config.channels not in (1, 3) or isinstance(config.channels, bool):
        raise ValueError(f"{name}.channels must be 1 (grey) or 3 (colour), got {shown(config.channels)}")


def check_heads(config: Any, width: str, heads: str) -> None:
    """ValueError where the heads cannot share the width."""
    if getattr(config, width) % getattr(config, heads):
        raise ValueError(
            f"{type(config).__name__}.{width} must be a multiple of {heads}, "
            f"got width {getattr(config, width)} and {getattr(config, heads)} heads"
        )


def check_fixed(config: Any, width: str) -> None:
    """ValueError for a width that fixed positions do not divide into."""
    if getattr(config, width) % 4:
        raise ValueError(
            f"{type(config).__name__}.{width} must be a multiple of 4 for fixed positions, "
            f"sine and cosine of two axes; got {getattr(config, width)}"
        )
