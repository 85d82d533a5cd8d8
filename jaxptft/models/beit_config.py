"""The values that fix a BEiT."""

from dataclasses import dataclass, field

from jaxptft.models.fields import (
    DTYPES,
    check_activations,
    check_choice,
    check_flags,
    check_integers,
    check_positive,
    check_rates,
)
from jaxptft.models.layer_run import check_layer_run
from jaxptft.models.vit_config import Size, as_pair, check_heads, check_image


@dataclass(frozen=True, kw_only=True)
class BeitConfig:
    """The values that fix a BEiT; the defaults are those of the base model as it is pre-trained.

    `image_size` gives the grid of patches that positions are of; images of another size have theirs interpolated.
    Patches are squares of `patch_size` pixels. `vocab_size` is the number of visual words that masked patches are told
    in, and `mask_token` whether patches can be masked at all.

    Where a patch lies can be told by a table that is added to the patches (`absolute_positions`), and by biases of the
    attention for each distance of two patches: of each layer's own (`relative_positions`), the same in all
    (`shared_relative_positions`), or both added.

    `layer_scale` is what the scales of the branches start from (0: there are none). `pooling` is what the classifier
    reads: the "mean" of the patches behind a norm, or the "cls" token; in the latter case the norm stands behind the
    last layer, which in the former has none.

    Dropouts are probabilities; whole layers are never dropped. `dtype` is what is computed in; parameters and the
    residual stream are float32.

    `scan_layers` and `remat` are how the layers run, and change no result but for its last bits (`layer_run`).
    """

    image_size: Size = 224
    patch_size: int = 16
    channels: int = 3
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    vocab_size: int = 8192
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    layer_scale: float = 0.1
    mask_token: bool = True
    absolute_positions: bool = False
    relative_positions: bool = False
    shared_relative_positions: bool = True
    pooling: str = "mean"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    dtype: str = "float32"
    scan_layers: bool = field(default=False, repr=False)
    remat: str = field(default="none", repr=False)

    def __post_init__(self) -> None:
        check_integers(self, "patch_size", "width", "layers", "heads", "mlp_width", "vocab_size")
        check_image(self)
        check_heads(self, "width", "heads")
        check_activations(self, "activation")
        check_choice(self, "pooling", ("cls", "mean"))
        check_choice(self, "dtype", DTYPES)
        check_layer_run(self)
        check_flags(self, "mask_token", "absolute_positions", "relative_positions", "shared_relative_positions")
        check_rates(self, "dropout", "attention_dropout")
        check_positive(self, "norm_epsilon", "initializer_range")
        if self.layer_scale != 0:
            check_positive(self, "layer_scale")

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch, in pixels."""
        return self.patch_size, self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """How many patches the positions are of, downwards and across."""
        height, width = as_pair(self.image_size)
        return height // self.patch_size, width // self.patch_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image that needs no interpolated positions."""
        return (*as_pair(self.image_size), self.channels)
