"""One image file of any size and kind -> uint8 pixels of the size and the channels wanted; several at once in threads.

Read are PNG, JPEG, GIF, BMP, PPM (with PBM and PGM), TIFF and WebP, told by what a file holds and not by its name; of
an animation, the first frame. Kinds that run other programs or hold no pixels of their own (EPS, WMF, PDF) are not.

- What is transparent lies on a ground of one grey, white unless told otherwise.
- 16 bits become their upper 8. Palettes, CMYK and the like become RGB by Pillow's plain formulas: no colour profile is
  applied. Grey is ITU-R 601-2 luma.
- The orientation that a camera wrote (EXIF) is applied, so `size` and shape are those that people see.
- Resizing is antialiased, and comes last.
"""

import os
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import UInt8

from jaxptft.data.readers import first_line
from jaxptft.data.validate import Refused

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".gif", ".bmp", ".pbm", ".pgm", ".ppm", ".pnm", ".tif", ".tiff", ".webp",
)  # fmt: skip
MAX_PIXELS = 1 << 26  # 67 million: 200 MB of RGB
GIANT = 1 << 24  # pixels of an image that is decoded alone
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B")
_ORIENTATION = 0x0112  # EXIF
_alone = threading.Lock()

Image = Any  # PIL.Image.Image
T = TypeVar("T")


@dataclass(frozen=True)
class Decoding:
    """What a file's pixels are to become.

    Args:
      size: height and width. None: the file's own.
      channels: 1 (grey) or 3 (red, green, blue). None: 1 for a grey file, else 3.
      fit: how another shape becomes `size`: "crop" cuts the longer side to the shape wanted, as much at both ends;
        "squash" keeps all of it, out of proportion.
      resample: how pixels are weighted.
      background: the grey, 0 (black) to 255 (white), below what is transparent.
      max_pixels: files of more are refused before they are decoded. Pillow refuses above 179 million by itself, unless
        `PIL.Image.MAX_IMAGE_PIXELS` is raised.

    Raises ValueError for a value out of range.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    fit: Literal["crop", "squash"] = "crop"
    resample: Literal["bilinear", "bicubic"] = "bicubic"
    background: int = 255
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.size is not None and (len(self.size) != 2 or any(type(n) is not int or n < 1 for n in self.size)):
            raise ValueError(f"size is {self.size}, expected a height and a width of 1 pixel or more")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels is {self.channels}, expected 1 (grey) or 3 (colour)")
        for name, value, known in (("fit", self.fit, ("crop", "squash")), ("resample", self.resample, _FILTERS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; choose {' or '.join(map(repr, known))}")
        if not 0 <= self.background <= 255:
            raise ValueError(f"background is {self.background}, expected a grey from 0 (black) to 255 (white)")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}, expected at least 1")


_FILTERS = ("bilinear", "bicubic")


def decode(content: Path | bytes, how: Decoding) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of one file, or of the bytes of one.

    Raises:
      Refused: there is no such file, it is empty, no image, cut short, damaged or too large, or holds real numbers.
    """
    if isinstance(content, bytes):
        return _decode(BytesIO(content), len(content), how)
    try:
        if not content.is_file():
            raise Refused("no such file", "is no file" if content.exists() else "is not there")
        with content.open("rb") as file:
            return _decode(file, content.stat().st_size, how)
    except OSError as error:
        raise Refused("unreadable file", f"cannot be opened ({error.strerror or first_line(error)})") from None


def _decode(file: Any, length: int, how: Decoding) -> UInt8[np.ndarray, "height width channels"]:
    if not length:
        raise Refused("empty file", "is empty (0 bytes)")
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise Refused("not an image", f"is no image ({kinds}), or its beginning is damaged") from None
    except Image.DecompressionBombError as error:
        raise Refused("too large", f"is too large for Pillow ({first_line(error)})") from None
    except Exception as error:
        raise _failure(error) from None
    width, height = image.size
    if width * height > how.max_pixels:
        said = f"is {width} x {height} pixels, more than max_pixels={how.max_pixels}"
        raise Refused("too large", f"{said}; raise max_pixels, or make it smaller")
    if not width * height:
        raise Refused("damaged image", f"is {width} x {height} pixels, so it shows nothing")
    with _alone if width * height > GIANT else nullcontext():
        try:
            image.load()
            return shaped(_upright(image), how)
        except Refused:
            raise
        except MemoryError:
            raise Refused("too large", f"is {width} x {height} pixels, more than there is memory for") from None
        except Exception as error:
            raise _failure(error) from None


def _failure(error: Exception) -> Refused:
    """What an error of Pillow's comes to; damaged files raise errors of every kind."""
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return Refused("truncated image", f"is cut short ({first_line(error)})")
    return Refused("damaged image", f"cannot be decoded ({first_line(error)})")


def _upright(image: Image) -> Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF spoils no pixel
        turn = None
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info, turned.format = image.info, image.format
    return turned


def shaped(image: Image, how: Decoding) -> UInt8[np.ndarray, "height width channels"]:
    """A Pillow image's pixels as `how` wants them; Refused where they are neither 8 nor 16 bits deep."""
    from PIL.Image import Resampling

    channels = how.channels or (1 if image.mode in _GREY else 3)
    image = _plain(image, how.background).convert("L" if channels == 1 else "RGB")
    if how.size is not None and (image.height, image.width) != how.size:
        height, width = how.size
        box = None if how.fit == "squash" else _centre(image.width, image.height, width, height)
        image = image.resize((width, height), Resampling[how.resample.upper()], box=box)
    return np.array(image, np.uint8).reshape(image.height, image.width, channels)


def _plain(image: Image, background: int) -> Image:
    """The image in 8 bits, L or RGB, with nothing transparent."""
    from PIL import Image

    clear = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        values = np.asarray(image)
        bytes_ = (values >> 8).astype(np.uint8)
        if isinstance(clear, int):
            bytes_ = np.where(values == clear, np.uint8(background), bytes_)
        return Image.fromarray(bytes_)
    if image.mode in ("I", "F"):
        kind = "whole" if image.mode == "I" else "real"
        raise Refused("wrong type", f"has pixels of 32 bits ({kind} numbers), expected 8 or 16")
    if not image.has_transparency_data:
        return image if image.mode in ("1", "L", "RGB") else image.convert("RGB")
    grey = image.mode in _GREY
    ground = Image.new("RGBA", image.size, (background, background, background, 255))
    over = Image.alpha_composite(ground, image.convert("RGBA"))
    return over.getchannel("R") if grey else over.convert("RGB")


def _centre(width: int, height: int, to_width: int, to_height: int) -> tuple[float, float, float, float]:
    """The middle of an image that has the shape wanted, and is as large as it can be: left, top, right, bottom."""
    scale = min(width / to_width, height / to_height)
    left, top = (width - to_width * scale) / 2, (height - to_height * scale) / 2
    return max(0.0, left), max(0.0, top), min(width, width - left), min(height, height - top)


def decode_all(
    items: Iterable[tuple[T, Path | bytes]], how: Decoding, *, threads: int | None = None
) -> Iterator[tuple[T, UInt8[np.ndarray, "height width channels"] | Refused]]:
    """Each item with its pixels, or with what is wrong, in order; decoded in threads, a few ahead of whoever reads.

    Args:
      threads: None: one a core, 8 at most.

    Raises ValueError for fewer than one thread.
    """
    count = min(8, os.cpu_count() or 1) if threads is None else threads
    if count < 1:
        raise ValueError(f"threads is {threads}, expected at least 1")

    def work(content: Path | bytes) -> np.ndarray | Refused:
        try:
            return decode(content, how)
        except Refused as refused:
            return refused

    from PIL.Image import DecompressionBombWarning

    pending: deque[tuple[T, Future[np.ndarray | Refused]]] = deque()
    with warnings.catch_warnings():
        # Of images that `max_pixels` allows; and of damaged metadata, which spoils no pixel.
        warnings.simplefilter("ignore", DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        pool = ThreadPoolExecutor(count, thread_name_prefix="decode")
        try:
            for item, content in items:
                pending.append((item, pool.submit(work, content)))
                if len(pending) > 4 * count:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
