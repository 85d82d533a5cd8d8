"""Random views of one image, on device: `(key, image) -> image`, to be composed, vmapped and jitted."""

from jaxptft.augment.blur import blur
from jaxptft.augment.color import color_jitter, grey, solarise
from jaxptft.augment.cutout import cutout
from jaxptft.augment.geometry import center_crop, flip, random_crop, random_resized_crop, resize
from jaxptft.augment.presets import byol, crop_flip, moco_v2, plain, simclr
from jaxptft.augment.view import Image, View, compose, normalise, to_float

__all__ = [
    "Image",
    "View",
    "blur",
    "byol",
    "center_crop",
    "color_jitter",
    "compose",
    "crop_flip",
    "cutout",
    "flip",
    "grey",
    "moco_v2",
    "normalise",
    "plain",
    "random_crop",
    "random_resized_crop",
    "resize",
    "simclr",
    "solarise",
    "to_float",
]
