"""What a family of checkpoints is to the converter: a table of rules, and the names it treats apart.

A rule pairs a tensor's name in Hugging Face's files with a path in our parameters and a layout, which is a pair of
inverse functions. Read forwards the table imports, read backwards it exports; there is no second table to keep in step.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxptft.models import BertConfig

Config = BertConfig
"""The configs of the families at hand; another family widens this union."""


class Layout(NamedTuple):
    """Two functions on numpy arrays, each the other's inverse."""

    name: str
    to_flax: Callable[[np.ndarray], np.ndarray]
    to_hf: Callable[[np.ndarray], np.ndarray]


IDENTITY = Layout("identity", lambda array: array, lambda array: array)
TRANSPOSE = Layout("transpose", lambda array: array.T, lambda array: array.T)


class Rule(NamedTuple):
    """One tensor: its standard Hugging Face name, our slash path, the layout, and its shape in Hugging Face's file."""

    hf_name: str
    flax_path: str
    layout: Layout
    shape: tuple[int, ...]


class Family(NamedTuple):
    """All the converter knows of one `model_type`.

    Names in the tables are without `prefix`, which checkpoints with a head carry and bare backbones do not.
    `buffers`, `other_heads` are fnmatch patterns over such names: tensors without parameters (kept and written back)
    and the heads of other tasks (kept aside, stated in the manifest). `spellings` are older endings of names.
    `tied` maps a name to the name it shares its values with. `architectures` are those with no head and with ours.
    """

    name: str
    config: type[Config]
    prefix: str
    backbone_rules: Callable[[Config], list[Rule]]
    head_rules: Callable[[Config, int], list[Rule]]
    buffers: tuple[str, ...]
    other_heads: tuple[str, ...]
    spellings: tuple[tuple[str, str], ...]
    tied: Mapping[str, str]
    architectures: Mapping[str | None, str]
    read_config: Callable[..., Config]
    write_config: Callable[[Config, Mapping[str, Any]], dict[str, Any]]
