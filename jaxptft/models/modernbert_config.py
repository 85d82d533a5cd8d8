"""The values that fix a ModernBERT."""

from dataclasses import dataclass, field
from reprlib import repr as shown

from jaxptft.models.fields import (
    DTYPES,
    check_activations,
    check_choice,
    check_flags,
    check_integers,
    check_pad_id,
    check_positive,
    check_rates,
    is_integer,
)
from jaxptft.models.layer_run import check_layer_run


@dataclass(frozen=True, kw_only=True)
class ModernBertConfig:
    """The values that fix a ModernBERT; the defaults are ModernBERT-base's.

    `global_layers` are the layers that attend to the whole text (None: every third, from the first), with rotary base
    `global_theta`; in the others a token sees `local_attention // 2` tokens to each side, with base `local_theta`.
    `pooling` is "cls" or "mean". Dropouts are probabilities. Weights start truncated at `initializer_cutoff`
    deviations. `pad_id` names the row of the word table that is zero at the start and gets no gradient as an input.
    `positions` is the longest text, in tokens. `dtype` is what is computed in; parameters are float32.

    `scan_layers` and `remat` are how the layers run, and change no result but for its last bits (`layer_run`).
    """

    vocab_size: int = 50368
    width: int = 768
    layers: int = 22
    heads: int = 12
    mlp_width: int = 1152
    activation: str = "gelu"
    positions: int = 8192
    global_layers: tuple[int, ...] | None = None
    global_theta: float = 160_000.0
    local_theta: float = 10_000.0
    local_attention: int = 128
    norm_epsilon: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    decoder_bias: bool = True
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    pooling: str = "cls"
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    head_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_cutoff: float = 2.0
    pad_id: int | None = 50283
    dtype: str = "float32"
    scan_layers: bool = field(default=False, repr=False)
    remat: str = field(default="none", repr=False)

    def __post_init__(self) -> None:
        check_integers(self, "vocab_size", "width", "layers", "heads", "mlp_width", "positions", "local_attention")
        if self.width % (2 * self.heads):
            raise ValueError(
                "ModernBertConfig.width must be a multiple of twice the heads (rotations turn pairs), "
                f"got width {self.width} and {self.heads} heads"
            )
        check_flags(self, "norm_bias", "attention_bias", "mlp_bias", "decoder_bias", "classifier_bias")
        check_rates(self, "embedding_dropout", "attention_dropout", "mlp_dropout", "head_dropout")
        check_positive(self, "global_theta", "local_theta", "norm_epsilon", "initializer_range", "initializer_cutoff")
        check_activations(self, "activation", "classifier_activation")
        check_choice(self, "pooling", ("cls", "mean"))
        check_choice(self, "dtype", DTYPES)
        check_layer_run(self)
        check_pad_id(self)
        if self.global_layers is not None:
            strays = [layer for layer in self.global_layers if not is_integer(layer) or not 0 <= layer < self.layers]
            if strays:
                raise ValueError(
                    f"ModernBertConfig.global_layers must be layers from 0 to {self.layers - 1}, got {shown(strays[0])}"
                )
            # One spelling for each choice, so that equal models have equal configs; JSON gives a list.
            chosen = tuple(sorted(set(self.global_layers)))
            object.__setattr__(self, "global_layers", None if chosen == tuple(range(0, self.layers, 3)) else chosen)

    def is_global(self, layer: int) -> bool:
        """Whether a layer attends to the whole text."""
        return layer % 3 == 0 if self.global_layers is None else layer in self.global_layers

    @property
    def max_length(self) -> int:
        """The longest text, in tokens."""
        return self.positions
