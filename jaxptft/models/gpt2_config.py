"""The values that fix a GPT-2."""

from dataclasses import dataclass, field

from jaxptft.models.fields import (
    DTYPES,
    check_activations,
    check_choice,
    check_flags,
    check_integers,
    check_pad_id,
    check_positive,
    check_rates,
)
from jaxptft.models.layer_run import check_layer_run


@dataclass(frozen=True, kw_only=True)
class Gpt2Config:
    """The values that fix a GPT-2; the defaults are those of the smallest released one.

    `mlp_width` None means 4 x width. `dropout` acts on the embeddings' sum, `residual_dropout` on what each block adds,
    `head_dropout` before the token classifier and `choice_dropout` before the multiple-choice head.
    Attention scores are divided by sqrt(head width) where `scale_attention`, and by the layer's number, counted from 1,
    where `scale_by_layer`.
    `pad_id` names tokens that classification passes over when it looks for a row's last one (None: padding is what
    the attention mask says).

    `scan_layers` and `remat` are how the layers run, and change no result but for its last bits (`layer_run`).
    """

    vocab_size: int = 50257
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int | None = None
    activation: str = "gelu_new"
    positions: int = 1024
    norm_epsilon: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.1
    residual_dropout: float = 0.1
    head_dropout: float = 0.1
    choice_dropout: float = 0.1
    scale_attention: bool = True
    scale_by_layer: bool = False
    initializer_range: float = 0.02
    pad_id: int | None = None
    dtype: str = "float32"
    scan_layers: bool = field(default=False, repr=False)
    remat: str = field(default="none", repr=False)

    def __post_init__(self) -> None:
        check_integers(self, "vocab_size", "width", "layers", "heads", "positions")
        check_integers(self, "mlp_width", optional=True)
        if self.width % self.heads:
            raise ValueError(
                f"Gpt2Config.width must be a multiple of heads, got width {self.width} and {self.heads} heads"
            )
        check_activations(self, "activation")
        check_rates(self, "dropout", "attention_dropout", "residual_dropout", "head_dropout", "choice_dropout")
        check_positive(self, "norm_epsilon", "initializer_range")
        check_flags(self, "scale_attention", "scale_by_layer")
        check_pad_id(self)
        check_choice(self, "dtype", DTYPES)
        check_layer_run(self)
        if self.scan_layers and self.scale_by_layer:
            raise ValueError(
                "Gpt2Config.scan_layers runs layers that compute alike, and under scale_by_layer each divides by its "
                "own number: leave scan_layers out"
            )

    @property
    def max_length(self) -> int:
        """The longest text, in tokens."""
        return self.positions
