"""The one engine that reads a family's table, forwards to import and backwards to export."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy by name)
import numpy as np

from jaxptft.convert.checkpoint import Extras
from jaxptft.convert.heads import Heads, find_architecture, free_axes, head_rules
from jaxptft.convert.manifest import Manifest
from jaxptft.convert.match import match, matches, standard_name
from jaxptft.convert.rules import Config, Family, Rule
from jaxptft.convert.wording import listed
from jaxptft.models import Params

_SHOWN = 8  # problems in one message


def import_tensors(
    family: Family,
    config: Config,
    tensors: Mapping[str, np.ndarray],
    *,
    fields: Mapping[str, Any],
    heads: Heads = "source",
    allow_unused: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
) -> tuple[Params, Extras, Manifest]:
    """Parameters in float32, what export needs to restore the source, and the account.

    Where a tensor needs no other digits its parameter is a view of it: devices take views as fast as copies.
    `fields` are those of the source's config.json. Raises ValueError naming unknown, missing, misshapen, unsuitably
    typed, doubled and wrongly untied tensors.
    """
    manifest, pairs = match(
        family,
        config,
        tensors,
        fields=fields,
        heads=heads,
        allow_unused=allow_unused,
        allow_missing=allow_missing,
    )
    if manifest.problems:
        # A width that is not the tensors' is wrong of every one of them.
        more = len(manifest.problems) - _SHOWN
        ends = [f"and {more} more problems, which inspect lists"] if more > 0 else []
        raise ValueError("; ".join([*manifest.problems[:_SHOWN], *ends]))
    params: Params = {}
    for rule, name in pairs:
        *parents, leaf = rule.flax_path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = rule.layout.to_flax(_to_float32(name, tensors[name]))
    spelt = {name: rule.hf_name for rule, name in pairs}
    extras = Extras(
        names={rule.hf_name: name for rule, name in pairs},
        dtypes={rule.hf_name: tensors[name].dtype.name for rule, name in pairs},
        tensors={entry.hf_name: tensors[entry.hf_name] for entry in (*manifest.kept, *manifest.unused)},
        absent=manifest.missing,
        tied={one: spelt.get(other, standard_name(family, other)) for one, other in manifest.tied},
        fields=dict(fields),
        heads=manifest.heads,
    )
    return params, extras, manifest


def export_tensors(
    family: Family, config: Config, params: Params, extras: Extras, *, dtype: str | None = None
) -> dict[str, np.ndarray]:
    """The tensors of `params` under Hugging Face's names; of an unmodified import, the source's own bytes.

    Names, dtypes and unused tensors are the source's while its heads are unchanged. With other heads the names are the
    standard ones, and other tasks' heads stay behind. `dtype` overrides the remembered dtypes (new tensors: float32).

    Raises ValueError for a parameter no rule takes, heads that no architecture has together, an absent or misshapen
    parameter, and one that overflows its dtype.
    """
    heads = heads_of(family, params)
    pairs = fitted(family, config, params, absent=extras.absent)
    same_heads = extras.restores(heads)
    if not same_heads:
        find_architecture(family, heads)
    backbone = {rule.hf_name for rule in family.backbone_rules(config)}
    prefixed = any(name.startswith(family.prefix) for name in extras.names.values()) if same_heads else bool(heads)
    tensors: dict[str, np.ndarray] = {}
    for rule, array in pairs:
        prefix = family.prefix if prefixed and rule.hf_name in backbone else ""
        usual = prefix + family.unprefixed.get(rule.hf_name, rule.hf_name)
        name = extras.names.get(rule.hf_name, usual) if same_heads else usual
        target = dtype or extras.dtypes.get(rule.hf_name, "float32")
        tensors[name] = np.ascontiguousarray(_to_dtype(rule.flax_path, array, target))
    for name, array in extras.tensors.items():
        standard = standard_name(family, name)
        if same_heads:
            # A tied tensor follows the one it shares its values with, which may have been trained since.
            source = tensors.get(extras.names.get(extras.tied.get(name, ""), ""))
            tensors[name] = array if source is None else source
        elif matches(family.buffers, standard):
            tensors[(family.prefix if prefixed else "") + standard] = array
    if not extras.names:
        for name, array in family.new_buffers(config).items():
            tensors.setdefault((family.prefix if prefixed else "") + name, array)
    return tensors


def fitted(
    family: Family, config: Config, params: Params, *, absent: Sequence[str] = ()
) -> list[tuple[Rule, np.ndarray]]:
    """The rules of `params`, each with its parameter as Hugging Face lays it out, which costs no copy.

    `absent` are the standard names of tensors that may lack. Raises ValueError for a parameter no rule takes, one that
    lacks, and one whose shape is not what the config asks for.
    """
    leaves = flatten(params)
    heads = heads_of(family, params)
    stored = getattr(config, "layer_groups", None) or config.layers
    if stored > len(leaves):
        raise ValueError(f"the config asks for {stored} layers where there are {len(leaves)} parameters")
    rules = family.backbone_rules(config) + head_rules(family, config, sizes_of(family, config, heads, leaves))
    strangers = sorted(leaves.keys() - {rule.flax_path for rule in rules})
    if strangers:
        raise ValueError(f"no rule of family {family.name} takes parameter {listed(strangers)}: leave it out to export")
    needed = [pattern for head in heads for pattern in family.heads[head].needs]
    pairs = []
    for rule in rules:
        if rule.flax_path not in leaves:
            dispensable = heads and matches(family.optional, rule.hf_name) and not matches(needed, rule.hf_name)
            if dispensable or rule.hf_name in absent:
                continue
            raise ValueError(f"parameter {rule.flax_path} is missing: family {family.name} needs it for {rule.hf_name}")
        array = rule.layout.to_hf(leaves[rule.flax_path])
        if array.shape != rule.shape:
            raise ValueError(
                f"parameter {rule.flax_path} has shape {leaves[rule.flax_path].shape}, "
                f"which makes {rule.hf_name} {array.shape} where the config asks for {rule.shape}"
            )
        pairs.append((rule, array))
    return pairs


def heads_of(family: Family, params: Params) -> tuple[str, ...]:
    """The family's heads that a tree of parameters holds."""
    return tuple(head for head in family.heads if head in params)


def complete(params: Params, fresh: Params) -> Params:
    """`params` with the leaves it lacks taken from `fresh`: a new head, a pooler the source did not have."""
    merged = dict(params)
    for name, value in fresh.items():
        if name not in merged:
            merged[name] = value
        elif isinstance(value, Mapping) and isinstance(merged[name], Mapping):
            merged[name] = complete(dict(merged[name]), dict(value))
    return merged


def sizes_of(family: Family, config: Config, heads: Sequence[str], leaves: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The number of classes of each head, 0 where it is not free, from the shapes of its parameters."""
    sizes = {}
    for head in heads:
        sizes[head] = 1 if family.heads[head].sized else 0
        for rule, axis in free_axes(family, config, head) if sizes[head] else ():
            if rule.flax_path in leaves and leaves[rule.flax_path].ndim == len(rule.shape):
                sizes[head] = rule.layout.to_hf(leaves[rule.flax_path]).shape[axis]
    return sizes


def _to_float32(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.float64:
        return array.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if not np.array_equal(narrow.astype(np.float64), array, equal_nan=True):
        raise ValueError(f"tensor {name} is float64 and would lose digits as float32: convert it to float32 first")
    return narrow


def _to_dtype(path: str, array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = array.astype(np.dtype(dtype), copy=False)
    if cast.dtype.itemsize < array.dtype.itemsize and np.isinf(cast).sum() > np.isinf(array).sum():
        raise ValueError(f"parameter {path} overflows {dtype}: export with dtype='float32'")
    return cast


def flatten(tree: Mapping[str, Any], parents: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The leaves of a tree by their slash paths."""
    leaves: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        path = (*parents, name)
        leaves |= flatten(value, path) if isinstance(value, Mapping) else {"/".join(path): np.asarray(value)}
    return leaves
