"""Decoded pixels of many images in one array: decoded once, kept in the cache folder, and mapped into memory.

An entry is known by a fingerprint of the files' bytes and of how they were decoded: a file that changes makes another
entry, one that is only moved or touched does not. What could not be decoded is part of the entry, so that a second run
says of it what the first said.
"""

import hashlib
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jaxptft.data.cache import cache_folder, exclusive, fingerprint, publish, read_manifest
from jaxptft.data.validate import Problem

FORMAT = "image store 1"
_CHUNK = 1 << 24  # bytes handled at a time


@dataclass(frozen=True, eq=False)
class ImageStore:
    """Pixels in memory or mapped from a file, read only."""

    pixels: UInt8[np.ndarray, "stored height width channels"]
    known: UInt8[np.ndarray, "stored 32"] | None = None

    @cached_property
    def digests(self) -> UInt8[np.ndarray, "stored 32"]:
        """The SHA-256 of each image's pixels."""
        return row_digests(self.pixels) if self.known is None else self.known

    def content(self, places: Int[np.ndarray, " rows"]) -> str:
        """SHA-256 of the shape and of the pixels at these places, in order."""
        return fingerprint(["images 1", repr(self.pixels.shape[1:]), self.digests[places].tobytes()])


def row_digests(pixels: UInt8[np.ndarray, "rows height width channels"]) -> UInt8[np.ndarray, "rows 32"]:
    """The SHA-256 of every row's bytes."""
    found = b"".join(hashlib.sha256(row.tobytes()).digest() for row in pixels)
    return np.frombuffer(found, np.uint8).reshape(len(pixels), 32)


class Built(NamedTuple):
    """A store, and what was left out of it: (place among those that were to be decoded, why)."""

    store: ImageStore
    refused: list[tuple[int, Problem]]


class PixelWriter:
    """Appends images of one size to a file; a grey file becomes a coloured one when the first coloured image comes."""

    def __init__(self, file: IO[bytes], source: str):
        self._file, self._source = file, source
        self._first = ""
        self.rows = 0
        self.shape: tuple[int, int, int] = (0, 0, 0)

    def append(self, name: str, pixels: UInt8[np.ndarray, "height width channels"]) -> None:
        """Write one image; ValueError where it is not as large as those before."""
        height, width, channels = pixels.shape
        if not self.rows:
            self._first, self.shape = name, (height, width, channels)
        elif (height, width) != self.shape[:2]:
            raise ValueError(
                f"{self._source}: {self._first} is {self.shape[1]} x {self.shape[0]} pixels and {name} {width} x "
                f"{height}; give the size that all are to have"
            )
        if channels > self.shape[2]:
            self._colour()
        elif channels < self.shape[2]:
            pixels = np.repeat(pixels, self.shape[2], axis=-1)
        self._file.write(np.ascontiguousarray(pixels).data)
        self.rows += 1

    def _colour(self) -> None:
        """Repeat every grey value three times, from the end of the file to its beginning."""
        end = self._file.tell()
        for start in reversed(range(0, end, _CHUNK)):
            self._file.seek(start)
            grey = np.frombuffer(self._file.read(min(_CHUNK, end - start)), np.uint8)
            self._file.seek(3 * start)
            self._file.write(np.repeat(grey, 3).data)
        self._file.seek(3 * end)
        self.shape = (*self.shape[:2], 3)


Build = Callable[[PixelWriter], list[tuple[int, Problem]]]


def stored_in_memory(source: str, build: Build) -> Built:
    """What `build` writes, kept in memory."""
    buffer = io.BytesIO()
    writer = PixelWriter(buffer, source)
    refused = build(writer)
    pixels = np.frombuffer(buffer.getvalue(), np.uint8).reshape(writer.rows, *writer.shape)
    return Built(ImageStore(pixels), refused)


def store_folder(key: str) -> Path:
    """Where the entry with this key is, or would be."""
    return cache_folder() / "images" / key


def cached_store(key: str, source: str, build: Build) -> Built:
    """The entry with this key from the cache folder, or built there: by one process, while others that want it wait.

    Args:
      key: a fingerprint of everything that decides what is in it.
      build: appends every image to the writer, and returns which it could not; if it raises, nothing is left behind.

    Raises:
      OSError: the cache folder cannot be written.
    """
    if (found := _open(key)) is not None:
        return found
    folder = store_folder(key)
    lock = folder.parent / f".{key}.lock"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise OSError(
            f"{folder.parent} cannot be written ({error.strerror}); JAXPTFT_CACHE names another, and cache=False needs "
            "none"
        ) from None
    with exclusive(lock):
        if (found := _open(key)) is not None:
            return found
        for left in folder.parent.glob(f".{key}-*"):  # by a process that was killed: whoever lives has the lock
            shutil.rmtree(left, ignore_errors=True)

        def fill(fresh: Path) -> dict[str, Any]:
            with (fresh / "pixels.bin").open("w+b") as file:
                writer = PixelWriter(file, source)
                refused = build(writer)
            shape = (writer.rows, *writer.shape)
            (fresh / "digests.bin").write_bytes(row_digests(_mapped(fresh / "pixels.bin", shape)).tobytes())
            return {"key": key, "shape": shape, "refused": [[place, *problem] for place, problem in refused]}

        publish(folder, fill)
        found = _open(key)
    if found is None:
        raise OSError(f"{folder}: what was just written there cannot be read back; look at the disk")
    return found


def _open(key: str) -> Built | None:
    folder = store_folder(key)
    manifest = read_manifest(folder, {"key": key})
    if manifest is None:
        return None
    rows, *shape = manifest["shape"]
    digests = np.frombuffer((folder / "digests.bin").read_bytes(), np.uint8).reshape(rows, 32)
    refused = [(place, Problem(*problem)) for place, *problem in manifest["refused"]]
    return Built(ImageStore(_mapped(folder / "pixels.bin", (rows, *shape)), digests), refused)


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if not shape[0]:
        return np.zeros(shape, np.uint8)
    # Viewed as a plain array: np.memmap's own indexing is several times slower.
    return np.memmap(path, np.uint8, "r", shape=shape).view(np.ndarray)
