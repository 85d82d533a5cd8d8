"""A model in memory between two folders: its config and parameters, and what export needs to give back its source."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxptft.convert.manifest import Manifest
from jaxptft.convert.rules import Config
from jaxptft.models import Params


@dataclass(frozen=True)
class Extras:
    """What a source held beside parameters.

    names: standard name -> the source's spelling. dtypes: standard name -> the source's dtype. tensors: the source's
    tensors that became no parameter, by the source's names. absent: standard names the source lacked and was allowed
    to. tied: a tensor of `tensors` -> the standard name of the parameter it equals by design. fields: its
    config.json. head: the head it was imported with.
    """

    names: dict[str, str] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    tied: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    head: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A converted model.

    params: {"backbone": ..., "classifier": ... where there is a head}, float32. labels: the names of the classes in
    order, None without a head. extras, manifest, tokenizer_files: of the folder it was read from, empty for a model
    made from nothing.
    """

    family: str
    config: Config
    params: Params
    labels: list[str] | None = None
    extras: Extras = field(default_factory=Extras)
    manifest: Manifest | None = None
    tokenizer_files: tuple[Path, ...] = ()
