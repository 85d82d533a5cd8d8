"""The values that fix a ResNet, and those of the usual ones by name."""

from dataclasses import dataclass
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

_USUAL = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
_WIDTHS = {"basic": (64, 128, 256, 512), "bottleneck": (256, 512, 1024, 2048)}


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """The values that fix a ResNet; the defaults are ResNet-50's, v1.5.

    `channels` are the image's. `stem` is "imagenet" (a 7x7 convolution of stride 2 and a 3x3 maximum of stride 2) or
    "cifar" (a 3x3 convolution of stride 1 alone), `stem_width` wide. Stage k has `depths[k]` blocks that give
    `widths[k]` channels; `block` is "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1, the inner ones a quarter as
    wide). Each stage but the first halves the image, and the first too where `downsample_first`; a bottleneck does so
    in its 3x3 (v1.5), or in its first 1x1 where `stride_first` (v1). `activation` is that behind the stem and behind
    each sum; inside a block it is ReLU.

    `norm_momentum` is the share of a batch in the running statistics. `zero_last_scale` starts the scale of each
    block's last norm at 0 (Goyal et al. 2017, section 5.1). `dtype` is what is computed in; parameters and statistics
    are float32.
    """

    channels: int = 3
    stem: str = "imagenet"
    stem_width: int = 64
    widths: tuple[int, ...] = _WIDTHS["bottleneck"]
    depths: tuple[int, ...] = (3, 4, 6, 3)
    block: str = "bottleneck"
    activation: str = "relu"
    downsample_first: bool = False
    stride_first: bool = False
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.1
    zero_last_scale: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_integers(self, "channels", "stem_width")
        check_choice(self, "stem", ("imagenet", "cifar"))
        check_choice(self, "block", tuple(_WIDTHS))
        least = 4 if self.block == "bottleneck" else 1
        self._check_stages("widths", least)
        self._check_stages("depths", 1)
        if len(self.widths) != len(self.depths):
            raise ValueError(
                f"ResNetConfig.widths must have one value for each of depths, got {self.widths} and {self.depths}"
            )
        check_activations(self, "activation")
        check_flags(self, "downsample_first", "stride_first", "zero_last_scale")
        check_positive(self, "norm_epsilon")
        check_rates(self, "norm_momentum")
        check_choice(self, "dtype", DTYPES)

    def _check_stages(self, name: str, least: int) -> None:
        values: Any = getattr(self, name)
        if not isinstance(values, tuple) or not values or not all(is_integer(v) and v >= least for v in values):
            raise ValueError(
                f"ResNetConfig.{name} must be a tuple of integers of at least {least}, one a stage, got {shown(values)}"
            )

    @property
    def stages(self) -> int:
        """How many stages there are: what freezing and entering midway count."""
        return len(self.depths)

    @property
    def layers(self) -> int:
        """How many blocks there are in all stages."""
        return sum(self.depths)

    @property
    def width(self) -> int:
        """The channels of the last stage."""
        return self.widths[-1]

    def inputs(self, stage: int, layer: int) -> int:
        """The channels that a block reads."""
        if layer:
            return self.widths[stage]
        return self.widths[stage - 1] if stage else self.stem_width

    def stride(self, stage: int, layer: int) -> int:
        """By how much a block divides height and width."""
        return 2 if layer == 0 and (stage > 0 or self.downsample_first) else 1

    def has_shortcut(self, stage: int, layer: int) -> bool:
        """Whether a block projects what passes it by, because its own result has another shape."""
        return self.stride(stage, layer) != 1 or self.inputs(stage, layer) != self.widths[stage]


def resnet_config(name: str, **changes: Any) -> ResNetConfig:
    """The config of "resnet18", "resnet34", "resnet50", "resnet101" or "resnet152", with some fields changed.

    Source: He et al. 2016, arXiv:1512.03385, table 1. Raises ValueError for another name.
    """
    if name not in _USUAL:
        raise ValueError(f"name must be one of {', '.join(_USUAL)}, got {name!r}")
    block, depths = _USUAL[name]
    return ResNetConfig(**{"block": block, "depths": depths, "widths": _WIDTHS[block], **changes})
