"""The augmentations of published methods. None normalises: put `normalise` behind them with `compose`."""

from collections.abc import Sequence

from jaxptft.augment.blur import blur
from jaxptft.augment.color import color_jitter, grey, solarise
from jaxptft.augment.geometry import flip, random_resized_crop
from jaxptft.augment.view import View, compose, normalise, to_float

Size = int | Sequence[int]


def simclr(
    size: Size,
    *,
    channels: int = 3,
    strength: float = 1.0,
    blurred: bool = True,
    scale: tuple[float, float] = (0.08, 1.0),
    mirrored: bool = True,
) -> View:
    """Chen et al. 2020, arXiv:2002.05709, appendix A: crop, flip, colour distortion of a strength, grey, blur.

    With `channels` 1 the distortions of colour, which change nothing in grey images, are left out. The paper has
    strength 1 and a blur on ImageNet, 0.5 and none on CIFAR-10 (appendix B.9). Of an image of 8 x 8 pixels the least
    of its `scale`, the share of the area that is seen, is two pixels: raise it. `mirrored` False leaves the flip out,
    for images that mean something else the other way round: digits.

    Raises ValueError on channels other than 1 and 3, and on a negative strength.
    """
    if channels not in (1, 3) or strength < 0:
        raise ValueError(f"channels is {channels} and strength {strength}; expected 1 or 3, and at least 0")
    views = [random_resized_crop(size, scale=scale), *([flip()] if mirrored else [])]
    tone = {"brightness": 0.8 * strength, "contrast": 0.8 * strength, "p": 0.8}
    if channels == 1:
        views += [color_jitter(**tone)]
    else:
        views += [color_jitter(**tone, saturation=0.8 * strength, hue=min(0.2 * strength, 0.5)), grey(0.2)]
    return compose(*views, *([blur(0.5)] if blurred else []))


def moco_v2(size: Size) -> View:
    """Chen et al. 2020, arXiv:2003.04297, section 3, in the order of its code: crop, jitter, grey, blur, flip.

    The code blurs with Pillow, of which this kernel, a tenth of the image, is a cut-off version.
    """
    jitter = color_jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8)
    return compose(random_resized_crop(size, scale=(0.2, 1.0)), jitter, grey(0.2), blur(0.5), flip())


def byol(size: Size) -> tuple[View, View]:
    """The two views of Grill et al. 2020, arXiv:2006.07733, table 6: the second is solarised and rarely blurred.

    Brightness, contrast and saturation are changed as by `color_jitter`, by factors where the paper's code shifts.
    """

    def view(blurring: float, solarising: float) -> View:
        return compose(
            random_resized_crop(size, method="cubic"),
            flip(),
            color_jitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
            grey(0.2),
            blur(blurring),
            solarise(solarising),
        )

    return view(1.0, 0.0), view(0.1, 0.2)


def crop_flip(size: Size, *, scale: tuple[float, float] = (0.2, 1.0), mirrored: bool = True) -> View:
    """He et al. 2022, arXiv:2111.06377, appendix A.1 (MAE): random crops of at least a fifth, and flips, no more."""
    return compose(random_resized_crop(size, scale=scale, method="cubic"), *([flip()] if mirrored else []))


def plain(*, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0) -> View:
    """The image itself, normalised; nothing is random. What evaluation reads."""
    return compose(to_float(), normalise(mean, std))
