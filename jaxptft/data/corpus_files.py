"""What a corpus is made of: from what a user types to files and data sets, and a fingerprint of their bytes."""

import contextlib
import glob
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxptft.data.cache import cache_folder, file_sha256, fingerprint
from jaxptft.data.readers import DELIMITERS, PARQUET
from jaxptft.data.sources import HUB_NAME, from_hub, why_absent

TEXT = (".txt", ".text", ".md", ".rst")
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*TEXT, *JSON_LINES, *PARQUET)
SETTLED_SECONDS = 2.0  # a file younger than this may change again without its times telling


class Piece(NamedTuple):
    """One file, one folder saved by `datasets`, or one data set of the hub."""

    name: str
    kind: Literal["text", "json", "parquet", "saved", "hub", "image"]
    path: Path | None = None
    gzip: bool = False
    hub: Any = None  # a `datasets` builder


def find_pieces(sources: Any, suffixes: Sequence[str] = ()) -> list[Piece]:
    """The pieces that sources name, in their order, the files of a folder or a glob by name; each file once.

    Args:
      sources: one or several of: a file, a folder (searched through and through), a glob, a name on the hub.
      suffixes: of text files in folders, besides those known. A file that is named itself is text unless its suffix
        says JSONL or Parquet.

    Raises:
      FileNotFoundError: there is no such file or folder, or a glob matches none.
      ValueError: a folder holds no file with a known suffix, or a file is a table.
    """
    single = isinstance(sources, (str, os.PathLike))
    for suffix in suffixes:
        if not suffix.startswith("."):
            raise ValueError(f"suffix {suffix!r} must begin with a full stop: {'.' + suffix!r}")
    pieces: list[Piece] = []
    seen: set[Path] = set()
    for source in [sources] if single else list(sources):
        if not isinstance(source, (str, os.PathLike)):
            raise TypeError(f"corpus source is {type(source).__name__}, expected a path, a glob or a hub name")
        for piece in _pieces_of(source, tuple(suffixes)):
            place = piece.path.resolve() if piece.path is not None else Path(f"hub:{piece.name}")
            if place not in seen:
                seen.add(place)
                pieces.append(piece)
    if not pieces:
        raise ValueError("the corpus names no source; give files, folders, globs or hub names")
    return pieces


def _pieces_of(source: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Iterator[Piece]:
    name = os.fspath(source)
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            yield Piece(name, "saved", path)
        else:
            yield from _folder(path, suffixes)
    elif path.is_file():
        yield _file(path)
    elif glob.has_magic(name):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            raise FileNotFoundError(f"{name}: no file matches")
        yield from map(_file, found)
    elif isinstance(source, os.PathLike) or _suffix(path) in (*SUFFIXES, *suffixes) or not HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"{name}: {why_absent(path)}")
    else:
        from datasets import load_dataset_builder

        yield Piece(name, "hub", hub=from_hub(name, load_dataset_builder))


def _suffix(path: Path) -> str:
    """The suffix that tells the kind: that before .gz, where there is one."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _file(path: Path) -> Piece:
    suffix, gzip = _suffix(path), path.suffix.lower() == ".gz"
    if suffix in DELIMITERS:
        raise ValueError(f"{path}: is a table; a corpus is text, JSONL (.jsonl) or Parquet (.parquet)")
    if suffix in (*JSON_LINES, ".json"):
        return Piece(str(path), "json", path, gzip)
    return Piece(str(path), "parquet" if suffix in PARQUET and not gzip else "text", path, gzip)


def _folder(path: Path, suffixes: tuple[str, ...]) -> Iterator[Piece]:
    found, others = [], set()
    for file in path.rglob("*"):
        if any(part.startswith(".") for part in file.relative_to(path).parts) or not file.is_file():
            continue
        if _suffix(file) in (*SUFFIXES, *suffixes):
            found.append(file)
        else:
            others.add(_suffix(file) or "none")
    if not found:
        seen = f"suffixes found: {', '.join(sorted(others))}" if others else "it is empty"
        raise ValueError(f"{path}: holds no file that ends in {', '.join((*SUFFIXES, *suffixes))} ({seen})")
    yield from map(_file, sorted(found, key=lambda file: file.relative_to(path).parts))


def content_fingerprint(pieces: Iterable[Piece]) -> str:
    """SHA-256 of the pieces' kinds and bytes, in order; where they lie does not matter.

    It is kept with the files' sizes and times, so that files which have not been touched need not be read again.
    """
    pieces = list(pieces)
    stamp = fingerprint(["stamp 1", *(part for piece in pieces for part in stamps(piece))])
    known = cache_folder() / "corpora" / "known" / stamp
    with contextlib.suppress(OSError):
        if len(content := known.read_text()) == 64:
            return content
    newest = max((max(file.stat().st_mtime, file.stat().st_ctime) for file in _files(pieces)), default=0.0)
    settled = time.time() - newest > SETTLED_SECONDS
    content = fingerprint(["corpus 1", *(part for piece in pieces for part in _content(piece))])
    if settled:
        with contextlib.suppress(OSError):
            known.parent.mkdir(parents=True, exist_ok=True)
            fresh = known.with_name(f".{stamp}-{os.getpid()}")
            fresh.write_text(content)
            fresh.replace(known)
    return content


def stamps(piece: Piece) -> list[str]:
    """What changes, all but certainly, when a piece does: the size and the times of each file, a data set's version."""
    parts = [piece.kind, str(piece.gzip), *_hub_version(piece)]
    for file in _files([piece]):
        facts = file.stat()
        parts += [str(file.resolve()), str(facts.st_size), str(facts.st_mtime_ns), str(facts.st_ctime_ns)]
    return parts


def _content(piece: Piece) -> list[str]:
    return [piece.kind, str(piece.gzip), *_hub_version(piece), *(file_sha256(file) for file in _files([piece]))]


def _files(pieces: Iterable[Piece]) -> Iterator[Path]:
    for piece in pieces:
        if piece.kind == "saved" and piece.path is not None:
            yield from sorted(file for file in piece.path.rglob("*") if file.is_file())
        elif piece.path is not None:
            yield piece.path


def _hub_version(piece: Piece) -> list[str]:
    """The name, the configuration, the commit and the files, whose addresses hold the commit too."""
    if piece.hub is None:
        return []
    return [piece.name, str(piece.hub.config_id), str(piece.hub.hash), str(piece.hub.config.data_files)]
