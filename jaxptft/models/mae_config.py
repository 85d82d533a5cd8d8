"""The values that fix a masked autoencoder: a vision transformer's, and those of its decoder."""

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
from jaxptft.models.vit_config import Size, VitConfig, as_pair, check_fixed, check_heads, check_image


@dataclass(frozen=True, kw_only=True)
class MaeConfig:
    """The values that fix a masked autoencoder; the defaults are those of the base model.

    The encoder is a `VitConfig` of the same fields, with fixed positions and without a pooler (`encoder`); the
    decoder's layers are of its kind, with sizes of their own (`decoder`). `mask_ratio` and `normalise` are how it is
    pre-trained: the share of patches hidden, and whether the targets are pixels normalised in each patch. They are for
    the objective; the model does not read them.

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
    pooling: str = "cls"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    decoder_width: int = 512
    decoder_layers: int = 8
    decoder_heads: int = 16
    decoder_mlp_width: int = 2048
    mask_ratio: float = 0.75
    normalise: bool = False
    dtype: str = "float32"
    scan_layers: bool = field(default=False, repr=False)
    remat: str = field(default="none", repr=False)

    def __post_init__(self) -> None:
        check_integers(self, "width", "layers", "heads", "mlp_width")
        check_integers(self, "decoder_width", "decoder_layers", "decoder_heads", "decoder_mlp_width")
        check_image(self)
        check_heads(self, "width", "heads")
        check_heads(self, "decoder_width", "decoder_heads")
        check_fixed(self, "width")
        check_fixed(self, "decoder_width")
        check_activations(self, "activation")
        check_choice(self, "pooling", ("cls", "mean"))
        check_choice(self, "dtype", DTYPES)
        check_layer_run(self)
        check_flags(self, "qkv_bias", "normalise")
        check_rates(self, "dropout", "attention_dropout", "mask_ratio")
        check_positive(self, "norm_epsilon", "initializer_range")

    @property
    def encoder(self) -> VitConfig:
        """The encoder as a vision transformer."""
        return self._of(self.width, self.layers, self.heads, self.mlp_width)

    @property
    def decoder(self) -> VitConfig:
        """What the decoder's layers are: those of a vision transformer of this config."""
        return self._of(self.decoder_width, self.decoder_layers, self.decoder_heads, self.decoder_mlp_width)

    def _of(self, width: int, layers: int, heads: int, mlp_width: int) -> VitConfig:
        return VitConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            channels=self.channels,
            width=width,
            layers=layers,
            heads=heads,
            mlp_width=mlp_width,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            qkv_bias=self.qkv_bias,
            pooler=False,
            pooling=self.pooling,
            fixed_positions=True,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            initializer_range=self.initializer_range,
            dtype=self.dtype,
            scan_layers=self.scan_layers,
            remat=self.remat,
        )

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch, in pixels."""
        return as_pair(self.patch_size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image as large as the position tables."""
        return (*as_pair(self.image_size), self.channels)
