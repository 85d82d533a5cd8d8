"""The values that fix a small backbone for small images, and the heads that draw such images again."""

from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any

from jaxptft.models.fields import (
    DTYPES,
    check_activations,
    check_choice,
    check_integers,
    check_positive,
    check_rates,
    is_integer,
)
from jaxptft.models.layers import ACTIVATIONS

USUAL_WIDTHS = {"conv": (32, 64), "mlp": (512, 256)}
"""The kinds of backbones, and the widths that each has where none are given."""

FEATURES_ACTIVATIONS = ("none", "sigmoid", *sorted(ACTIVATIONS))


@dataclass(frozen=True, kw_only=True)
class ConvConfig:
    """The values that fix a backbone of kind "conv" or "mlp"; the defaults are for images like those of MNIST.

    A "conv" has a 3x3 convolution of stride 2 for each of `widths`, which gives so many channels and halves the image
    (rounded up), and a dense layer that makes `features` numbers of what is left; an "mlp" has dense layers of these
    `widths` on the pixels instead. `widths` () stands for the usual ones of the kind. `image_size` is height and width;
    images of another size are refused.

    `norm` is "none", "layer" (over the channels of each place) or "batch", in front of each `activation`; behind the
    dense layer that makes the features there is `features_activation` alone, which may be "none": codes are to lie
    between 0 and 1 ("sigmoid") where their activity is held down.

    Heads that draw images, "decoder" and "generator", read `latent` numbers (None: as many as there are features).
    `norm_momentum` is the share of a batch in the running statistics. `dtype` is what is computed in; parameters,
    statistics and features are float32.
    """

    kind: str = "conv"
    image_size: tuple[int, int] = (28, 28)
    channels: int = 1
    widths: tuple[int, ...] = ()
    features: int = 128
    latent: int | None = None
    activation: str = "relu"
    features_activation: str = "none"
    norm: str = "none"
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_choice(self, "kind", tuple(USUAL_WIDTHS))
        if self.widths == ():
            object.__setattr__(self, "widths", USUAL_WIDTHS[self.kind])
        self._check_tuple("image_size", "a pair of integers of at least 1, height and width", length=2)
        self._check_tuple("widths", "a tuple of integers of at least 1, one a layer")
        check_integers(self, "channels", "features")
        check_integers(self, "latent", optional=True)
        check_activations(self, "activation")
        check_choice(self, "features_activation", FEATURES_ACTIVATIONS)
        check_choice(self, "norm", ("none", "layer", "batch"))
        check_positive(self, "norm_epsilon")
        check_rates(self, "norm_momentum")
        check_choice(self, "dtype", DTYPES)

    def _check_tuple(self, name: str, expected: str, length: int | None = None) -> None:
        values: Any = getattr(self, name)
        whole = isinstance(values, tuple) and all(is_integer(value) and value >= 1 for value in values)
        if not whole or len(values) != (length or len(values)):
            raise ValueError(f"ConvConfig.{name} must be {expected}, got {shown(values)}")

    @property
    def layers(self) -> int:
        """How many layers there are above the stem, which reads the image: what freezing and entering midway count."""
        return len(self.widths)

    @property
    def width(self) -> int:
        """The length of the backbone's vectors."""
        return self.features

    @property
    def code(self) -> int:
        """How many numbers an image is drawn from."""
        return self.features if self.latent is None else self.latent

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return (*self.image_size, self.channels)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the image, and of what each convolution makes of it."""
        found = [self.image_size]
        for _ in self.widths:
            height, width = found[-1]
            found.append(((height + 1) // 2, (width + 1) // 2))
        return tuple(found)
