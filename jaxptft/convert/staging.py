"""Folders that appear whole or not at all, and the files of tokenizer and images that travel along."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "preprocessor_config.json",
)
_OWN_MARKS = ("config.json", "jaxptft.json", "adapter_config.json")


def tokenizer_files(folder: str | Path) -> tuple[Path, ...]:
    """The files of a folder that make up its tokenizer, or say how its images are prepared."""
    return tuple(Path(folder) / name for name in TOKENIZER_FILES if (Path(folder) / name).is_file())


@contextmanager
def new_folder(folder: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A staging folder beside `folder` that takes its place once the block ends well, and is removed otherwise.

    Raises FileExistsError where `folder` is a file or not empty, unless `overwrite` and it holds a model.
    """
    target = Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if not overwrite:
            raise FileExistsError(f"{target} exists and is not empty: choose another folder or pass overwrite=True")
        if not target.is_dir() or not any((target / mark).is_file() for mark in _OWN_MARKS):
            raise FileExistsError(f"{target} holds no model, so it is not overwritten: choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        staging = Path(temporary) / "new"
        staging.mkdir()
        yield staging
        if target.exists():
            target.rename(Path(temporary) / "old")
        try:
            staging.rename(target)
        except OSError:
            if (Path(temporary) / "old").exists():
                (Path(temporary) / "old").rename(target)
            raise
