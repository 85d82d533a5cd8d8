"""IDX files, in which MNIST and its kin are published: a header of big-endian sizes, then the values; plain or gzipped.

Format: https://web.archive.org/web/2021/http://yann.lecun.com/exdb/mnist/ , "the IDX file format".
"""

import gzip
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP = b"\x1f\x8b"
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
PREFIXES = {"train": "train", "test": "t10k"}  # of a split's files
_CHUNK = 1 << 24  # bytes read at a time


class IdxPair(NamedTuple):
    """The two files of one split; `labels` is None where there is none."""

    images: Path
    labels: Path | None


def read_idx(path: Path) -> Shaped[np.ndarray, "..."]:
    """The array that an IDX file holds, in this machine's byte order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no IDX file, or holds more or fewer bytes than its header says.
    """
    try:
        with path.open("rb") as plain:
            if plain.read(2) == GZIP:
                with gzip.open(path) as file:
                    return _read(file, path, None)
            plain.seek(0)
            return _read(plain, path, path.stat().st_size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: its gzip data is damaged or cut short ({error}); get the file again") from None


def _read(file: Any, path: Path, size: int | None) -> Shaped[np.ndarray, "..."]:
    magic = file.read(4)
    if not magic:
        raise ValueError(f"{path}: is empty, expected an IDX file")
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or not magic[3]:
        kinds = ", ".join(f"{kind:#04x}" for kind in TYPES)
        raise ValueError(
            f"{path}: is no IDX file: it begins with 0x{magic.hex()}, expected 0x0000, a type of {kinds}, and a number "
            "of dimensions"
        )
    header = file.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise ValueError(f"{path}: is cut short within its header of {magic[3]} sizes; get the file again")
    shape = tuple(int(count) for count in np.frombuffer(header, ">u4"))
    dtype = np.dtype(TYPES[magic[2]])
    expected = dtype.itemsize
    for count in shape:
        expected *= count
    found = None if size is None else size - 4 - len(header)
    if found is None or found == expected:  # what a plain file lacks is known before anything is read
        content = bytearray()
        while len(content) <= expected and (chunk := file.read(_CHUNK)):
            content += chunk
        found = len(content)
        if found == expected:
            return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    sizes = " x ".join(map(str, shape))
    needed = f"{sizes} values of {dtype.itemsize} bytes are {expected}"
    if found < expected:
        raise ValueError(f"{path}: is cut short: {needed}, and it has {found}; get the file again")
    raise ValueError(f"{path}: goes on after its last value: {needed}, and it has more")


def read_idx_pair(pair: IdxPair) -> tuple[UInt8[np.ndarray, "rows height width"], Int[np.ndarray, " rows"] | None]:
    """Images and labels of one split; ValueError where they are not images, not labels, or not as many."""
    pixels = read_idx(pair.images)
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"{pair.images}: holds {pixels.dtype} of shape {pixels.shape}, expected uint8 of (images, height, width)"
        )
    if not pixels.size:
        raise ValueError(f"{pair.images}: has no images; its shape is {pixels.shape}")
    if pair.labels is None:
        return pixels, None
    labels = read_idx(pair.labels)
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        raise ValueError(
            f"{pair.labels}: holds {labels.dtype} of shape {labels.shape}, expected one whole number a row"
        )
    if len(labels) != len(pixels):
        raise ValueError(f"{pair.labels}: has {len(labels)} labels for the {len(pixels)} images of {pair.images.name}")
    return pixels, labels.astype(np.int64)


def idx_pairs(folder: Path) -> dict[str, IdxPair]:
    """The splits whose canonical files (`train-images-idx3-ubyte.gz`, `t10k-...`; `.gz` or not) are in the folder."""
    found = {}
    for split, prefix in PREFIXES.items():
        for images in _spellings(folder, f"{prefix}-{IMAGES}"):
            if images.is_file():
                found[split] = idx_pair(images)
                break
    return found


def is_idx(path: Path) -> bool:
    """Whether the name is that of an IDX file of images."""
    return any(path.name.endswith(name.name) for name in _spellings(path.parent, IMAGES))


def idx_pair(images: Path) -> IdxPair:
    """The file of images with that of labels which lies beside it, where there is one."""
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    return IdxPair(images, next((path for path in _spellings(images.parent, name) if path.is_file()), None))


def _spellings(folder: Path, name: str) -> list[Path]:
    names = dict.fromkeys((name, name.replace("-idx", ".idx"), name.replace(".idx", "-idx")))
    return [folder / (spelling + end) for spelling in names for end in ("", ".gz")]
