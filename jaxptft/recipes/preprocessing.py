"""What is done to an image before a model reads it, as the `preprocessor_config.json` of a model's folder says it.

Files are decoded and brought to the model's size on the host, as bytes; numbers become (x / 255 - mean) / std on the
device, by the `View` that `Preprocessing.view` gives.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxptft.augment import View, center_crop, compose, normalise, plain, to_float
from jaxptft.convert.hf_config import read_json

FILE = "preprocessor_config.json"
_RESAMPLE: dict[Any, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
_NUMBERS = {name: number for number, name in _RESAMPLE.items()}
_BY_EDGE = ("CLIP", "ConvNext")  # those that read one number as the shorter side
_HALF = 0.5  # Hugging Face's mean and deviation for ViT, where a folder has no file


class Preprocessing(NamedTuple):
    """Size and channels of the images that a model reads, and the mean and deviation of each channel, of 0 to 1.

    `fit` says how an image of another shape comes to this size: "squash" resizes both sides, "crop" the shorter side,
    and cuts the longer one evenly; both to `margin` times the size, of which the middle is read (1 / 0.875 for
    ImageNet's models).
    """

    size: tuple[int, int]  # height, width
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Literal["squash", "crop"] = "squash"
    margin: float = 1.0
    resample: Literal["bilinear", "bicubic"] = "bilinear"

    @property
    def stored_size(self) -> tuple[int, int]:
        """What files are decoded to."""
        height, width = (round(side * self.margin) for side in self.size)
        return height, width

    @property
    def view(self) -> View:
        """From bytes to what the model reads."""
        seen = plain(mean=self.mean, std=self.std)
        return seen if self.stored_size == self.size else compose(center_crop(self.size), seen)

    def prepare(self, image: Any) -> Any:
        """What `view` makes of an image, without a key, which nothing here draws from."""
        crop = () if self.stored_size == self.size else (center_crop(self.size),)
        key: Any = None
        for step in (to_float(), *crop, normalise(self.mean, self.std)):
            image = step(key, image)
        return image


def usual(size: tuple[int, int], channels: int) -> Preprocessing:
    """From -1 to 1, as ViT's own."""
    return Preprocessing(size, channels, (_HALF,) * channels, (_HALF,) * channels)


def read_preprocessing(folder: Path, architecture: Any) -> Preprocessing:
    """Of a model's folder, or the usual one; ValueError, naming the field, for what cannot be done."""
    channels = architecture.channels
    size = _pair(getattr(architecture, "image_size", None) or 224)
    if not (folder / FILE).is_file():
        return usual(size, channels)
    fields = read_json(folder / FILE)
    where = f"{folder / FILE}"
    if fields.get("do_rescale", True) is False or abs(float(fields.get("rescale_factor", 1 / 255)) - 1 / 255) > 1e-9:
        raise ValueError(f"{where}: rescale_factor is not 1/255, which is all that is done here; mend the file")
    mean, std = (
        _channels(fields.get(name, _HALF), channels, f"{where}: {name}") for name in ("image_mean", "image_std")
    )
    if not fields.get("do_normalize", True):
        mean, std = (0.0,) * channels, (1.0,) * channels
    if (number := fields.get("resample", 2)) not in _RESAMPLE:
        raise ValueError(f"{where}: resample is {number}; expected 2 (bilinear) or 3 (bicubic); mend the file")
    shared: dict[str, Any] = {"channels": channels, "mean": mean, "std": std, "resample": _RESAMPLE[number]}
    asked, crop = fields.get("size"), fields.get("crop_size")
    cropped = bool(fields.get("do_center_crop")) and crop is not None
    kind = str(fields.get("image_processor_type") or fields.get("feature_extractor_type") or "")
    edge = asked.get("shortest_edge") if isinstance(asked, Mapping) else None
    if isinstance(asked, int) and kind.startswith(_BY_EDGE):  # one number, which older files have, is read by the kind
        edge = asked
    if edge is not None and cropped:
        size = _pair(crop)
        return Preprocessing(size, fit="crop", margin=max(1.0, int(edge) / min(size)), **shared)
    if edge is not None:
        # ConvNextImageProcessor, ResNet's: below 384 it resizes to edge / crop_pct and cuts the middle; else squashes.
        edge, share = int(edge), float(fields.get("crop_pct", 0.875))
        small = edge < 384
        margin = int(edge / share) / edge if small else 1.0
        return Preprocessing((edge, edge), fit="crop" if small else "squash", margin=margin, **shared)
    size = size if asked is None else _pair(asked)
    if cropped:
        return Preprocessing(_pair(crop), margin=max(1.0, size[0] / _pair(crop)[0]), **shared)
    return Preprocessing(size, **shared)


def write_preprocessing(folder: Path, preprocessing: Preprocessing) -> None:
    """The file that `transformers` and `read_preprocessing` read."""
    height, width = preprocessing.size
    fields: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": _NUMBERS[preprocessing.resample],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    if preprocessing.fit == "crop":
        fields |= {
            "image_processor_type": "CLIPImageProcessor",  # ViT's has no crop
            "do_convert_rgb": preprocessing.channels == 3,
            "size": {"shortest_edge": min(preprocessing.stored_size)},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
        }
    elif preprocessing.stored_size != preprocessing.size:
        fields |= {
            "image_processor_type": "BeitImageProcessor",
            "size": dict(zip(("height", "width"), preprocessing.stored_size, strict=True)),
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
        }
    (folder / FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, Mapping):
        return int(value["height"]), int(value["width"])
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)


def _channels(value: Any, channels: int, name: str) -> tuple[float, ...]:
    values = tuple(float(v) for v in value) if isinstance(value, list | tuple) else (float(value),) * channels
    if len(values) == 1:
        values *= channels
    if len(values) != channels:
        raise ValueError(f"{name} has {len(values)} numbers, and the model reads {channels} channels; give as many")
    return values
