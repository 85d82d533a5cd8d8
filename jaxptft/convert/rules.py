"""What a family of checkpoints is to the converter: a table of rules, and the names it treats apart.

A rule pairs a tensor's name in Hugging Face's files with a path in our parameters and a layout, which is a pair of
inverse functions. Read forwards the table imports, read backwards it exports; there is no second table to keep in step.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Config = Any
"""The frozen config of a family's architecture, from `models`; it counts its layers in `layers`."""


class Layout(NamedTuple):
    """Two functions on numpy arrays, each the other's inverse."""

    name: str
    to_flax: Callable[[np.ndarray], np.ndarray]
    to_hf: Callable[[np.ndarray], np.ndarray]


IDENTITY = Layout("identity", lambda array: array, lambda array: array)
TRANSPOSE = Layout("transpose", lambda array: array.T, lambda array: array.T)
CONVOLUTION = Layout(
    "convolution", lambda array: array.transpose(2, 3, 1, 0), lambda array: array.transpose(3, 2, 0, 1)
)
"""[outputs, inputs, height, width] <-> [height, width, inputs, outputs]."""
ONLY_ROW = Layout("only row", lambda array: array[0], lambda array: array[None])
"""[1, ...] <-> [...]."""


class Rule(NamedTuple):
    """One tensor: its standard Hugging Face name, our slash path, the layout, and its shape in Hugging Face's file."""

    hf_name: str
    flax_path: str
    layout: Layout
    shape: tuple[int, ...]


def table(theirs: str, ours: str, rows: int, width: int) -> list[Rule]:
    """An embedding table."""
    return [Rule(f"{theirs}.weight", f"{ours}/embedding", IDENTITY, (rows, width))]


def dense(theirs: str, ours: str, inputs: int, outputs: int, *, bias: bool = True) -> list[Rule]:
    """A `torch.nn.Linear`, which holds the transpose of our kernel."""
    rules = [Rule(f"{theirs}.weight", f"{ours}/kernel", TRANSPOSE, (outputs, inputs))]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}/bias", IDENTITY, (outputs,))] if bias else rules


def norm(theirs: str, ours: str, width: int, *, bias: bool = True) -> list[Rule]:
    """A layer normalization, with or without a bias."""
    rules = [Rule(f"{theirs}.weight", f"{ours}/scale", IDENTITY, (width,))]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}/bias", IDENTITY, (width,))] if bias else rules


class Head(NamedTuple):
    """What stands on a backbone for one task.

    `rules` takes the config and the number of classes, which is 0 where the head has no free size (not `sized`).
    `needs` are those of the family's optional backbone tensors (patterns) that the head reads. `tied` heads project
    onto the vocabulary through the word table.
    """

    rules: Callable[[Config, int], list[Rule]]
    sized: bool = False
    needs: tuple[str, ...] = ()
    tied: bool = False


class Family(NamedTuple):
    """All the converter knows of one `model_type`.

    Names in the tables are without `prefix`, which checkpoints with a head carry and bare backbones do not.
    `heads` are by their key in our parameters. `architectures` gives the keys of the heads that each of Hugging Face's
    classes has, () for the bare backbone; export writes the first that has the heads at hand and no other, else the
    first that has them. `optional` are patterns of backbone tensors that an architecture lacks where none of its heads
    needs them. `buffers`, `other_heads` are fnmatch patterns too: tensors without parameters (kept and written back),
    and the names of heads, known to belong to another task where no head at hand takes them (left aside, stated in the
    manifest). `spellings` are other endings of names, or beginnings where they end in a dot. `tied` maps a name to the
    name it shares its values with; a source may hold either or both. `new_buffers` are those that a model made from
    nothing is written with, by their standard names: transformers misses them otherwise. `unprefixed` maps the standard
    name of a head's tensor to the one it has in files whose backbone has, behind the prefix, a tensor of that name too.
    """

    name: str
    config: type
    prefix: str
    backbone_rules: Callable[[Config], list[Rule]]
    heads: Mapping[str, Head]
    architectures: Mapping[str, tuple[str, ...]]
    read_config: Callable[..., Config]
    write_config: Callable[[Config, Mapping[str, Any]], dict[str, Any]]
    optional: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    other_heads: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    unprefixed: Mapping[str, str] = {}
    tied: Mapping[str, str] = {}
    new_buffers: Callable[[Config], Mapping[str, np.ndarray]] = lambda config: {}
