"""Images with or without a class each, read from any source with every row checked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jaxptft.data.cache import fingerprint
from jaxptft.data.corpus_files import Piece, content_fingerprint, stamps
from jaxptft.data.image_files import MAX_PIXELS, Decoding, decode_all, shaped
from jaxptft.data.image_sources import (
    FASHION,
    Arrays,
    ImageColumns,
    Picture,
    Pictures,
    image_split_names,
    open_images,
)
from jaxptft.data.image_store import FORMAT, Built, ImageStore, PixelWriter, cached_store, stored_in_memory
from jaxptft.data.labels import label_name
from jaxptft.data.split import choose_evaluation_split, split
from jaxptft.data.tables import Table
from jaxptft.data.targets import Found, OneClass
from jaxptft.data.validate import OnBadRow, Problem, Refused, Report, Tally


@dataclass(frozen=True, eq=False)
class Images:
    """Checked images of one size; `rows[i]` is where image i stands in `source`, and `places[i]` in `store`."""

    store: ImageStore
    places: Int[np.ndarray, " rows"]
    labels: Int[np.ndarray, " rows"] | None  # int32, places among `names`
    names: tuple[str, ...]
    report: Report
    source: str
    rows: Int[np.ndarray, " rows"]
    keys: list[Any] | None = None  # of the id column where one was chosen, else the files' names

    def __len__(self) -> int:
        return len(self.places)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.store.pixels.shape[1], self.store.pixels.shape[2]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (colour)."""
        return self.store.pixels.shape[3]

    @property
    def pixels(self) -> UInt8[np.ndarray, "rows height width channels"]:
        """All of them, in memory."""
        return self.take(np.arange(len(self)))

    def take(self, indices: Int[np.ndarray, " chosen"]) -> UInt8[np.ndarray, "chosen height width channels"]:
        """The pixels of the images at these positions, copied."""
        return self.store.pixels[self.places[indices]]

    @cached_property
    def content(self) -> str:
        """SHA-256 of the pixels, in order."""
        return self.store.content(self.places)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pixels, labels and class names, in order; not of where they came from."""
        labels = b"" if self.labels is None else self.labels.astype("<i4").tobytes()
        return fingerprint(["labelled images 1", self.content, str(len(self.names)), *self.names, labels])

    def select(self, indices: Int[np.ndarray, " chosen"]) -> "Images":
        """The images at these positions, in this order; no pixel is copied."""
        chosen = np.asarray(indices, np.int64)
        return replace(
            self,
            places=self.places[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            rows=self.rows[chosen],
            keys=None if self.keys is None else [self.keys[index] for index in chosen.tolist()],
        )


def read_images(
    source: Any,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    columns: ImageColumns | None = None,
    names: Sequence[str] | None = None,
    labelled: bool | None = None,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
    fit: Literal["crop", "squash"] = "crop",
    resample: Literal["bilinear", "bicubic"] = "bicubic",
    background: int = 255,
    max_pixels: int = MAX_PIXELS,
    threads: int | None = None,
    cache: bool = True,
) -> Images:
    """Read a folder of images, a table of their paths, a data set's image column, IDX files, or images known by name.

    `image_sources` says what each looks like (`sklearn:digits` among them), `image_files` which files are read and how.

    Args:
      size: height and width in pixels, or one number for both. None: that of the files, which must then have one.
      channels: 1 or 3. None: 1 where all files are grey, else 3.
      columns: which columns of a table hold what; those that are not given are told from the names found.
      names: the classes known from training, in order; any other class is an error, also when skipping. None: learn
        them from these rows.
      labelled: True: every row must have a class. False: leave classes out. None: have them where the source has them;
        one folder, or rows that are all of one class, have none.
      split: which split of a source that has several.
      on_bad_row: "error" raises at a bad row; "skip" leaves bad rows out and counts them in the report. A row is bad
        whose file is missing, empty, no image, cut short, damaged or larger than `max_pixels`, or whose class is bad.
      fit, resample, background, max_pixels: see `Decoding`.
      threads: that decode; None: one a core, 8 at most.
      cache: keep what is decoded in the cache folder, and look there first; else it is kept in memory.

    Raises:
      FileNotFoundError: there is no such source.
      ValueError: a row, a column or the whole source is bad; names file, row and column.
      OSError: the cache folder cannot be written.
    """
    pair = (size, size) if isinstance(size, int) else None if size is None else (int(size[0]), int(size[1]))
    how = Decoding(pair, channels, fit, resample, background, max_pixels)
    opened = open_images(source, split, columns=columns, labelled=labelled)
    if isinstance(opened, Arrays):
        return _of_arrays(opened, how, names, labelled, on_bad_row)
    return _of_pictures(opened, how, names, labelled, on_bad_row, threads=threads, cache=cache)


def make_images(
    pixels: UInt8[np.ndarray, "rows height width *channels"],
    labels: Sequence[Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    source: str = "the images given",
) -> Images:
    """Images already in memory: uint8, 1 or 3 channels last, or none for grey; rows count from 1."""
    pixels = np.asarray(pixels)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or not pixels.size:
        raise ValueError(
            f"{source}: pixels are {pixels.dtype} of shape {pixels.shape}, expected uint8 (0 to 255) of (rows, height, "
            "width, 1 or 3 channels)"
        )
    if labels is not None and len(labels) != len(pixels):
        raise ValueError(f"{source}: {len(labels)} labels for {len(pixels)} images; expected as many")
    values = None if labels is None else np.asarray(labels, object)
    return _of_arrays(Arrays(source, pixels, values), Decoding(), names, labels is not None, "error")


def _of_arrays(
    opened: Arrays, how: Decoding, names: Sequence[str] | None, labelled: bool | None, on_bad_row: OnBadRow
) -> Images:
    tally = Tally(opened.name, on_bad_row)
    if opened.labels is None and labelled:
        raise ValueError(f"{opened.name}: has no labels, and labels are needed")
    found: list[str] = []
    numbers: list[int] = []
    for place in range(len(opened.pixels)):
        tally.rows += 1
        if opened.labels is not None and labelled is not False:
            try:
                found.append(label_name(opened.labels[place], opened.declared))
            except Refused as refused:
                tally.refuse(place + 1, Problem(refused.reason, refused.detail, "label"))
                continue
        numbers.append(place + 1)
    rows = np.asarray(numbers, np.int32)
    pixels = _reshaped(opened.pixels, how)
    classes = Found(opened.name, ("label",), found, numbers, opened.declared)
    return _settled(ImageStore(pixels), rows.astype(np.int64) - 1, classes, names, labelled, tally, None)


def _reshaped(pixels: np.ndarray, how: Decoding) -> np.ndarray:
    height, width, channels = pixels.shape[1:]
    if how.size in (None, (height, width)):
        if how.channels in (None, channels):
            return pixels
        if channels == 1:
            return np.repeat(pixels, 3, axis=-1)
    from PIL import Image

    wanted = replace(how, channels=how.channels or channels)
    return np.stack([shaped(Image.fromarray(row[..., 0] if channels == 1 else row), wanted) for row in pixels])


class _Row(NamedTuple):
    number: int
    label: str | None
    key: Any
    stamp: str | Path  # of bytes their SHA-256


def _of_pictures(
    opened: Pictures,
    how: Decoding,
    names: Sequence[str] | None,
    labelled: bool | None,
    on_bad_row: OnBadRow,
    *,
    threads: int | None,
    cache: bool,
) -> Images:
    tally = Tally(opened.name, on_bad_row)
    kept: list[_Row] = []
    for number, row in opened.rows():
        tally.rows += 1
        if isinstance(row, Problem):
            tally.refuse(number, row)
            continue
        stamp = row.content if isinstance(row.content, Path) else fingerprint([row.content]) if cache else ""
        kept.append(_Row(number, row.label, row.key, stamp))
    if not kept:
        raise ValueError(f"{opened.name}: every row was refused; {tally.report()}" if tally.rows else _empty(opened))

    def build(writer: PixelWriter) -> list[tuple[int, Problem]]:
        places = {row.number: place for place, row in enumerate(kept)}
        rows = ((number, row) for number, row in opened.rows() if number in places)
        items = (((places[number], row), row.content) for number, row in rows if isinstance(row, Picture))
        refused = []
        for (place, row), found in decode_all(items, how, threads=threads):
            if isinstance(found, Refused):
                problem = Problem(found.reason, f"{row.name} {found.detail}", opened.image_column)
                if on_bad_row == "error":
                    tally.refuse(kept[place].number, problem)
                refused.append((place, problem))
            else:
                writer.append(row.name, found)
        return refused

    built = _cached(opened, how, kept, build) if cache else stored_in_memory(opened.name, build)
    for place, problem in built.refused:
        tally.refuse(kept[place].number, problem)
    bad = {place for place, _ in built.refused}
    sound = [row for place, row in enumerate(kept) if place not in bad]
    if not sound:
        raise ValueError(f"{opened.name}: every row was refused; {tally.report()}")
    numbers = [row.number for row in sound]
    labels = [row.label for row in sound if row.label is not None]
    found = Found(opened.name, (opened.label_column or "label",), labels, numbers, opened.declared)
    places, keys = np.arange(len(sound)), [row.key for row in sound]
    return _settled(built.store, places, found, names, labelled, tally, keys)


def _empty(opened: Pictures) -> str:
    return f"{opened.name}: has a header and no rows"


def _cached(opened: Pictures, how: Decoding, kept: list[_Row], build: Any) -> Built:
    import PIL

    pieces = [Piece(str(row.stamp), "image", row.stamp) for row in kept if isinstance(row.stamp, Path)]
    inside = ["a file" if isinstance(row.stamp, Path) else row.stamp for row in kept]
    key = fingerprint([FORMAT, PIL.__version__, repr(how), str(len(kept)), *inside, content_fingerprint(pieces)])

    def build_of_settled(writer: PixelWriter) -> list[tuple[int, Problem]]:
        before = [stamps(piece) for piece in pieces]
        refused = build(writer)
        if [stamps(piece) for piece in pieces] != before:
            raise ValueError(f"{opened.name}: files changed while they were read; read them again")
        return refused

    return cached_store(key, opened.name, build_of_settled)


def _settled(
    store: ImageStore,
    places: Int[np.ndarray, " rows"],
    found: Found,
    names: Sequence[str] | None,
    labelled: bool | None,
    tally: Tally,
    keys: list[Any] | None,
) -> Images:
    if not len(places):
        raise ValueError(f"{found.source}: every row was refused; {tally.report()}")
    labels = None
    if found.values and not (labelled is None and names is None and len(set(found.values)) == 1):
        labels, names = OneClass().settle(found, names)
    return Images(
        store=store,
        places=places,
        labels=labels,
        names=tuple(names or ()) if labels is not None else (),
        report=tally.report(),
        source=found.source,
        rows=np.asarray(found.rows, np.int32),
        keys=keys,
    )


def split_images(images: Images, size: float | int, *, seed: int, stratify: bool = True) -> tuple[Images, Images]:
    """Cut images off, as `split` cuts rows of text: (the rest, those cut off), equal images on one side."""
    equal = [digest.tobytes().hex() for digest in images.store.digests[images.places]]
    positions = np.arange(len(images), dtype=np.int32)
    table = Table(equal, None, images.labels, images.names, Report(len(images)), images.source, positions)
    rest, held = split(table, size, seed=seed, stratify=stratify)
    return images.select(rest.rows), images.select(held.rows)


class ImageSplits(NamedTuple):
    """What a run trains on, chooses its best model on, and, if given, is tested on; `origin` says where the second is
    from."""

    train: Images
    evaluation: Images
    test: Images | None
    origin: str


def read_image_splits(
    train: Any,
    evaluation: Any = None,
    test: Any = None,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    names: Sequence[str] | None = None,
    fraction: float = 0.1,
    seed: int = 0,
    **options: Any,
) -> ImageSplits:
    """Read images to train, choose and test by; all have the size, the channels and the classes of the first.

    Args:
      train: a source as `read_images` takes it; of several splits, `train` is taken.
      evaluation: likewise, of several splits its validation split. None: the training source's validation split, or
        `fraction` of the training rows, of each class alike, where it has none.
      test: likewise, of several splits `test`.
      options: as `read_images` takes them.
    """
    found = image_split_names(train)
    chosen = "train" if len(found) > 1 else None
    rows = read_images(train, size=size, channels=channels, names=names, split=chosen, **options)
    same = {**options, "size": rows.size, "channels": rows.channels}
    if rows.labels is None:
        same["labelled"] = False
    else:
        same |= {"names": rows.names, "labelled": True}

    def other(source: Any, wanted: str | None) -> Images:
        return read_images(source, split=wanted, **same)

    tested = None if test is None else other(test, "test" if len(image_split_names(test)) > 1 else None)
    if evaluation is not None:
        held = other(evaluation, choose_evaluation_split(image_split_names(evaluation)))
        return ImageSplits(rows, held, tested, held.source)
    validation = choose_evaluation_split(found)
    if validation is not None:
        held = other(train, validation)
        return ImageSplits(rows, held, tested, held.source)
    rest, held = split_images(rows, fraction, seed=seed)
    return ImageSplits(rest, held, tested, f"{len(held)} images cut from {rows.source}, seed {seed}")


def fashion_mnist() -> tuple[Images, Images]:
    """Fashion-MNIST, 28 x 28 grey, 10 classes: 60,000 images to train on and 10,000 to test on.

    Source: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747; MIT. Raises AssetUnavailable where no index answers.
    """
    return read_images(FASHION, split="train"), read_images(FASHION, split="test")
