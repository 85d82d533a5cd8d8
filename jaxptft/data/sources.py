"""From what a user types to rows: a file by its suffix, a folder saved by `datasets`, or a name on the hub."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxptft.data import readers
from jaxptft.data.readers import Source, first_line

# "glue/sst2", "imdb", "owner/name", "owner/name/config"
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*){0,2}")


def load(source: Any) -> tuple[str, Any]:
    """The source's name, and what it is: a Path to a file, a `datasets.Dataset`, or a mapping of splits to these.

    Args:
      source: a path, a hub name, or an object that is one of these already.

    Raises:
      FileNotFoundError: there is no such file, and no such data set on the hub.
      ValueError: the suffix is unknown, or the folder was not saved by `datasets`.
    """
    if not isinstance(source, (str, os.PathLike)):
        if isinstance(source, Mapping) or hasattr(source, "column_names"):
            return "the data set given", source
        raise TypeError(f"data source is {type(source).__name__}, expected a path, a hub name or a datasets.Dataset")
    name = os.fspath(source)
    path = Path(name).expanduser()
    if path.is_dir():
        return name, _load_folder(path)
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix not in readers.SUFFIXES:
            raise ValueError(f"{name}: suffix {suffix!r} is not known; expected one of {', '.join(readers.SUFFIXES)}")
        return name, path
    if isinstance(source, os.PathLike) or suffix in readers.SUFFIXES or not HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"{name}: {why_absent(path)}")
    return name, _load_hub(name)


def why_absent(path: Path) -> str:
    """What is told of a path that is neither a file nor a folder."""
    if path.exists():
        return "is no ordinary file; rows are read more than once, so save what a pipe gives to a file"
    return "there is no such file or folder"


def split_names(source: Any) -> tuple[str, ...]:
    """The splits of a data set that has several; nothing for a file or a single split."""
    found = load(source)[1]
    return tuple(found) if isinstance(found, Mapping) else ()


def open_source(source: Any, split: str | None = None) -> Source:
    """Open a source's rows.

    Args:
      source: what `load` takes, or a Source, which is given back.
      split: which split of a data set that has several.

    Raises:
      ValueError: the split is not there, or must be chosen; names those there are.
    """
    if isinstance(source, Source):
        return source
    name, found = load(source)
    if isinstance(found, Mapping):
        splits = ", ".join(map(repr, found)) or "none"
        if split is None and len(found) == 1:
            split = next(iter(found))
        if split is None:
            raise ValueError(f"{name}: has several splits; choose one of {splits}")
        if split not in found:
            raise ValueError(f"{name}: there is no split {split!r}; splits found: {splits}")
        return readers.open_dataset(found[split], f"{name}[{split}]")
    if split is not None:
        raise ValueError(f"{name}: has no splits, and split {split!r} was asked of it")
    if not isinstance(found, Path):
        return readers.open_dataset(found, name)
    suffix = found.suffix.lower()
    if suffix in readers.DELIMITERS:
        return readers.open_delimited(found, readers.DELIMITERS[suffix])
    return readers.open_json_lines(found) if suffix in readers.JSON_LINES else readers.open_parquet(found)


def _load_folder(path: Path) -> Any:
    if not (path / "dataset_dict.json").is_file() and not (path / "state.json").is_file():
        raise ValueError(f"{path}: is not a folder saved by datasets' save_to_disk, and no file was named in it")
    from datasets import load_from_disk

    try:
        return load_from_disk(str(path))
    except Exception as error:  # damaged folders fail in many ways: JSON, Arrow, missing keys, missing files
        raise ValueError(f"{path}: the data set saved here cannot be read ({first_line(error)})") from None


def _load_hub(name: str) -> Any:
    from datasets import load_dataset

    return from_hub(name, load_dataset)


def from_hub(name: str, load: Callable[[str, str | None], Any]) -> Any:
    """What `load` makes of the data set and the configuration that a name such as `glue/sst2` may mean.

    Raises:
      FileNotFoundError: there is no such data set.
      ValueError: it cannot be read, or a configuration must be chosen.
      ConnectionError: the hub does not answer.
    """
    from datasets.exceptions import DatasetNotFoundError

    parts = name.split("/")
    # "a/b" is configuration b of data set a (glue/sst2), or data set b of owner a.
    asked: list[tuple[str, str | None]] = [(name, None)]
    if len(parts) == 2:
        asked.insert(0, (parts[0], parts[1]))
    elif len(parts) == 3:
        asked = [("/".join(parts[:2]), parts[2])]
    reason = ""
    for data_set, configuration in asked:
        try:
            return load(data_set, configuration)
        except (DatasetNotFoundError, FileNotFoundError) as error:
            reason = first_line(error)
        except ValueError as error:  # it is there, and has no such configuration, or is not rows of columns
            raise ValueError(f"{name}: the hub's data set cannot be read ({first_line(error)})") from None
        except Exception as error:  # the hub and the network fail in many ways
            raise ConnectionError(
                f"{name}: no file here has this name, and the hub gives none ({first_line(error)})"
            ) from None
    raise FileNotFoundError(f"{name}: neither a file or folder here nor a data set on the hub ({reason})")
