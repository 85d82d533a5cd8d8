"""Where images come from: folders, tables of paths, image columns of data sets, IDX files, and two by name.

A source is either `Pictures`, rows that each name or hold an image file which is yet to be decoded, or `Arrays`, whose
pixels are at hand.

- A folder: `CLASS/**/*.png` has a class for each of its folders; images that lie in it directly have none. Folders
  called train, validation (or dev, val, ...) and test are its splits; with train and one more of these, others are too.
- A table (.csv, .tsv, .jsonl, .parquet): a column of paths, from the table's own folder unless they are absolute; `..`
  leads out of it. In Parquet, and in data sets, also of files' bytes, as `datasets` keeps images.
- IDX files: a folder with `train-images-idx3-ubyte.gz`, `t10k-...` and their labels, or one file of images.
- `sklearn:digits`: 1,797 digits of 8 x 8 pixels, values 0 to 16 stretched to 0 to 255; the last 360, most of them by
  other writers, are its split `test`. `apt:fashion-mnist`: see `fashion_mnist`.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from jaxptft.data import readers, sources
from jaxptft.data.columns import LABEL
from jaxptft.data.idx import IdxPair, idx_pair, idx_pairs, is_idx, read_idx_pair
from jaxptft.data.image_files import SUFFIXES
from jaxptft.data.labels import label_name
from jaxptft.data.readers import Source
from jaxptft.data.split import EVALUATION_SPLITS
from jaxptft.data.tables import check_key
from jaxptft.data.validate import Problem, Refused, check_string, shown

IMAGE = (
    "image", "img", "picture", "photo", "path", "file", "filename", "file_name", "filepath", "file_path", "image_path",
    "image_file",
)  # fmt: skip
DIGITS, FASHION = "sklearn:digits", "apt:fashion-mnist"
DIGITS_TEST = 360  # rows, the last
_FOLDER_SPLITS = ("train", *EVALUATION_SPLITS, "test")


@dataclass(frozen=True)
class ImageColumns:
    """Names of columns. None: tell it from the names found. "": the source has none. `id` is never guessed."""

    image: str | None = None
    label: str | None = None
    id: str | None = None


class Picture(NamedTuple):
    """One row: what messages call its file, the file or the bytes of one, its class, and what it is known by."""

    name: str
    content: Path | bytes
    label: str | None
    key: Any


@dataclass(frozen=True)
class Pictures:
    """Rows with image files. `rows()` starts anew each time, and holds the bytes of few of them at once."""

    name: str
    rows: Callable[[], Iterator[tuple[int, Picture | Problem]]]
    image_column: str | None  # None: a folder's
    label_column: str | None  # None: there are no classes
    declared: tuple[str, ...] | None = None  # the classes, where the source declares them


@dataclass(frozen=True)
class Arrays:
    """Images that need no decoding, 1 or 3 channels."""

    name: str
    pixels: UInt8[np.ndarray, "rows height width channels"] = field(repr=False)
    labels: Shaped[np.ndarray, " rows"] | None = field(repr=False)  # whole numbers, or class names
    declared: tuple[str, ...] | None = None


def image_split_names(source: Any) -> tuple[str, ...]:
    """The splits of a source of images that has several; nothing for one that has not."""
    if isinstance(source, str) and source in (DIGITS, FASHION):
        return ("train", "test")
    path = _path(source)
    if path is not None and path.is_dir() and not _is_saved(path):
        pairs = idx_pairs(path)
        return tuple(pairs if len(pairs) > 1 else ()) if pairs else tuple(_folder_splits(path))
    if path is not None and path.is_file():
        return ()
    return sources.split_names(source)


def open_images(
    source: Any, split: str | None = None, *, columns: ImageColumns | None = None, labelled: bool | None = None
) -> Pictures | Arrays:
    """Open a source; nothing is decoded.

    Raises:
      FileNotFoundError: there is no such source.
      ValueError: it holds no images, its columns cannot be told or it has none, or the split is not there or must be
        chosen.
    """
    columns = columns or ImageColumns()
    if isinstance(source, str) and source in (DIGITS, FASHION):
        _refuse_columns(source, columns)
        return _digits(split) if source == DIGITS else _fashion(split)
    path = _path(source)
    if path is not None and path.is_dir() and not _is_saved(path):
        _refuse_columns(str(path), columns)
        if pairs := idx_pairs(path):
            return _idx(pairs[_choose(str(path), tuple(pairs), split)], f"{path}[{split}]" if split else str(path))
        folders = _folder_splits(path)
        if folders:
            chosen = _choose(str(path), tuple(folders), split)
            return _folder(folders[chosen], f"{path}[{chosen}]", labelled)
        _refuse_split(str(path), split)
        return _folder(path, str(path), labelled)
    if path is not None and path.is_file():
        if is_idx(path):
            _refuse_split(str(path), split)
            _refuse_columns(str(path), columns)
            return _idx(idx_pair(path), str(path))
        if path.suffix.lower() not in readers.SUFFIXES:
            what = "is one image" if path.suffix.lower() in SUFFIXES else f"has suffix {path.suffix!r}"
            raise ValueError(
                f"{path}: {what}; expected a folder of images, a table ({', '.join(readers.SUFFIXES)}) of their paths, "
                "or a file called ...-images-idx3-ubyte"
            )
    return _table(sources.open_source(source, split), path, columns, labelled)


def _path(source: Any) -> Path | None:
    return Path(source).expanduser() if isinstance(source, (str, os.PathLike)) else None


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _choose(name: str, splits: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(splits) == 1:
        return splits[0]
    listing = ", ".join(map(repr, splits))
    if wanted is None:
        raise ValueError(f"{name}: has several splits; choose one of {listing}")
    if wanted not in splits:
        raise ValueError(f"{name}: there is no split {wanted!r}; splits found: {listing}")
    return wanted


def _refuse_split(name: str, split: str | None) -> None:
    if split is not None:
        raise ValueError(f"{name}: has no splits, and split {split!r} was asked of it")


def _refuse_columns(name: str, columns: ImageColumns) -> None:
    asked = [(role, column) for role, column in vars(columns).items() if column is not None]
    if asked:
        role, column = asked[0]
        raise ValueError(f"{name}: has no columns, and {column!r} was given as the one of the {role}; leave it out")


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folder_splits(folder: Path) -> dict[str, Path]:
    """Its folders with images, where they are splits: all are called so, or train and one more; no image lies beside.

    One folder alone, which may well be of pictures of trains, is a split where it has folders of classes.
    """
    entries = _visible(folder)
    if any(path.suffix.lower() in SUFFIXES for path in entries if path.is_file()):
        return {}
    known = {path.name for path in entries if path.is_dir()} & set(_FOLDER_SPLITS)
    if not known:
        return {}
    found = {path.name: path for path in entries if path.is_dir() and _holds_image(path)}
    others = set(found) - known
    if (others and not ("train" in known and len(known) > 1)) or not found:
        return {}
    if len(found) == 1 and not any(path.is_dir() for path in _visible(*found.values())):
        return {}
    order = {name: place for place, name in enumerate(_FOLDER_SPLITS)}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def _holds_image(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in folder.rglob("*"))


def _folder(folder: Path, name: str, labelled: bool | None) -> Pictures:
    direct: list[Path] = []
    classes: list[tuple[str, Path]] = []
    others: set[str] = set()

    def sort(files: list[Path], of: Callable[[Path], None]) -> None:
        for file in files:
            if file.suffix.lower() in SUFFIXES:
                of(file)
            else:
                others.add(file.suffix.lower() or "none")

    for entry in _visible(folder):
        if entry.is_dir():
            inside = (path for path in sorted(entry.rglob("*")) if path.is_file())
            sort(
                [path for path in inside if not any(part.startswith(".") for part in path.relative_to(entry).parts)],
                lambda file, own=entry.name: classes.append((own, file)),
            )
        elif entry.is_file():
            sort([entry], direct.append)
    if not direct and not classes:
        seen = f"suffixes found: {', '.join(sorted(others))}" if others else "it is empty"
        raise ValueError(f"{name}: holds no image, no file that ends in {', '.join(SUFFIXES)} ({seen})")
    if direct and classes and labelled is not False:
        raise ValueError(
            f"{name}: images lie both in it ({direct[0].name}) and in folders of it ({classes[0][0]}); give each class "
            "a folder, or read it without labels"
        )
    if direct and labelled:
        raise ValueError(f"{name}: {direct[0].name} lies in no folder that names its class, and labels are needed")
    if labelled is None and len({label for label, _ in classes}) == 1:
        labelled = False  # one folder of pictures
    files = [(None, file) for file in direct] + classes
    with_labels = bool(classes) and labelled is not False

    def rows() -> Iterator[tuple[int, Picture | Problem]]:
        for number, (label, file) in enumerate(files, start=1):
            relative = file.relative_to(folder).as_posix()
            try:
                check_string(relative)
                own = label_name(label) if with_labels else None
                yield number, Picture(relative, file, own, relative)
            except Refused as refused:
                yield number, Problem(refused.reason, f"{relative!r}: the name {refused.detail}")

    return Pictures(name, rows, None, "folder" if with_labels else None)


def _table(source: Source, path: Path | None, chosen: ImageColumns, labelled: bool | None) -> Pictures:
    image = _one(source, "image", chosen.image, source.images or IMAGE, True)
    assert image is not None
    label = None
    if labelled is not False:
        label = _one(source, "label", chosen.label, [name for name in LABEL if name != image], bool(labelled))
    key = _one(source, "id", chosen.id, (), False)
    declared = source.class_names.get(label) if label else None
    base = path.parent if path is not None and path.is_file() else Path()
    text = path is not None and path.is_file() and _holds_text(path, image)
    wanted = [name for name in (image, label, key) if name]

    def row(values: list[Any], number: int) -> Picture | Problem:
        column = image
        try:
            name, content = _content(values[0], base, text=text)
            column = label
            own = label_name(values[1], declared) if label else None
            column = key
            known = check_key(values[-1]) if key else name
            return Picture(name or f"the image of row {number}", content, own, known or number)
        except Refused as refused:
            return Problem(refused.reason, refused.detail, column)

    def rows() -> Iterator[tuple[int, Picture | Problem]]:
        for number, values in source.rows(wanted):
            yield number, values if isinstance(values, Problem) else row(values, number)

    return Pictures(source.name, rows, image, label, declared)


def _one(source: Source, role: str, name: str | None, known: Sequence[str], needed: bool) -> str | None:
    listing = f"columns found: {', '.join(map(repr, source.columns)) or 'none'}"
    repeated = [column for column in source.columns if source.columns.count(column) > 1]
    if repeated:
        raise ValueError(f"{source.name}: column {repeated[0]!r} appears twice; {listing}")
    if name:
        if name not in source.columns:
            raise ValueError(f"{source.name}: there is no column {name!r} for the {role}; {listing}")
        return name
    if name == "":
        if needed:
            raise ValueError(f"{source.name}: the {role} needs a column; {listing}")
        return None
    options = [column for column in source.columns if column in known or column.strip().lower() in known]
    if len(options) > 1:
        several = ", ".join(map(repr, options))
        raise ValueError(f"{source.name}: several columns could be the {role} ({several}); choose one; {listing}")
    if not options and needed:
        raise ValueError(f"{source.name}: no column could be the {role}; choose one; {listing}")
    return options[0] if options else None


def _holds_text(path: Path, column: str) -> bool:
    """Whether a column holds text: the reader of Parquet gives text as bytes, as which an image's bytes come too."""
    if path.suffix.lower() not in readers.PARQUET:
        return True
    import pyarrow
    import pyarrow.parquet as parquet

    kind = parquet.read_schema(path).field(column).type
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _content(value: Any, base: Path, *, text: bool) -> tuple[str, Path | bytes]:
    """What one value says of its image: a name ("" where it says none), and a file or the bytes of one."""
    name = ""
    if isinstance(value, Mapping) and {"bytes", "path"} & set(value):
        inside, name = value.get("bytes"), value.get("path") or ""
        if inside is not None:
            return name, bytes(inside)
        value = name or None
    if value is None or (isinstance(value, (str, bytes)) and not value):
        raise Refused("missing value", "has no image")
    if isinstance(value, bytes):
        if not text:
            return name, value
        value = value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        kind = type(value).__name__
        raise Refused("wrong type", f"is {shown(value)} ({kind}), expected the path or the bytes of an image file")
    check_string(value)
    if "://" in value:
        raise Refused("wrong type", f"is {shown(value)}, an address; expected the path of a file")
    path = base / value
    try:
        found, there = path.is_file(), path.exists()
    except OSError as error:
        raise Refused("unreadable file", f"{shown(value)} cannot be opened ({error.strerror})") from None
    if not found:
        what = "is no file" if there else "is not there"
        raise Refused("no such file", f"{path} {what}; paths are taken from the folder {str(base)!r}")
    return value, path


def _idx(pair: IdxPair, name: str) -> Arrays:
    pixels, labels = read_idx_pair(pair)
    return Arrays(name, pixels[..., None], labels)


def _digits(split: str | None) -> Arrays:
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
    rows = slice(None)
    if split is not None:
        cut = len(pixels) - DIGITS_TEST
        rows = slice(cut) if _choose(DIGITS, ("train", "test"), split) == "train" else slice(cut, None)
    return Arrays(f"{DIGITS}[{split}]" if split else DIGITS, pixels[rows], found.target[rows].astype(np.int64))


def _fashion(split: str | None) -> Arrays:
    from jaxptft.data.raw_images import FASHION_CLASSES, fashion_folder

    split = _choose(FASHION, ("train", "test"), split)
    found = _idx(idx_pairs(fashion_folder())[split], f"{FASHION}[{split}]")
    return Arrays(found.name, found.pixels, found.labels, FASHION_CLASSES)
