"""A model in memory between two folders: its config and parameters, and what export needs to give back its source."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxptft.convert.families import find_family
from jaxptft.convert.manifest import Manifest
from jaxptft.convert.rules import Config
from jaxptft.models import Params


@dataclass(frozen=True)
class Extras:
    """What a source held beside parameters.

    names: standard name -> the source's spelling. dtypes: standard name -> the source's dtype. tensors: the source's
    tensors that became no parameter, by the source's names. absent: standard names the source lacked and was allowed
    to. tied: a tensor of `tensors` -> the standard name of the parameter it equals by design. fields: its
    config.json. heads: the heads it was imported with.
    """

    names: dict[str, str] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    tied: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    heads: tuple[str, ...] = ()

    def restores(self, heads: Iterable[str]) -> bool:
        """Whether a model with these heads is of the source's kind, and so gets back what else the source held."""
        return bool(self.names) and set(heads) == set(self.heads)


@dataclass(frozen=True)
class Checkpoint:
    """A converted model.

    params: {"backbone": ..., and a key for each head}, float32. labels: the names of the classes in order, None without
    a head that tells classes apart. extras, manifest, tokenizer_files: of the folder it was read from, empty for a
    model made from nothing (`new_checkpoint`).
    """

    family: str
    config: Config
    params: Params
    labels: list[str] | None = None
    extras: Extras = field(default_factory=Extras)
    manifest: Manifest | None = None
    tokenizer_files: tuple[Path, ...] = ()


def new_checkpoint(config: Config, *, family: str, fields: Mapping[str, Any] | None = None) -> Checkpoint:
    """A checkpoint for a model made from nothing; `save(folder, checkpoint, params=...)` writes all of it.

    `family` is a `model_type`; `fields` are further ones for the config.json (the ids of special tokens, say).

    Raises ValueError for an unknown family, and a config that no config.json of the family can express.
    """
    written = find_family(family).write_config(config, {} if fields is None else fields)
    return Checkpoint(family=family, config=config, params={}, extras=Extras(fields=written))
