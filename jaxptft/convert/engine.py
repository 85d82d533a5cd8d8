"""The one engine that reads a family's table, forwards to import and backwards to export.

Every tensor of a source is accounted for: taken by a rule, kept as a buffer, known as another task's head,
allowed by the caller, or refused with its name. Nothing is guessed and nothing disappears.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy by name)
import numpy as np

from jaxptft.convert.checkpoint import Extras
from jaxptft.convert.manifest import Entry, Manifest
from jaxptft.convert.rules import Config, Family, Rule
from jaxptft.models import Params

_FLOATING = ("float16", "bfloat16", "float32", "float64")


def standard_name(family: Family, name: str) -> str:
    """A tensor's name without the backbone's prefix and in today's spelling."""
    name = name.removeprefix(family.prefix)
    for old, new in family.spellings:
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def match(
    family: Family,
    config: Config,
    tensors: Mapping[str, np.ndarray],
    *,
    head: str | None,
    allow_unused: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
) -> tuple[Manifest, list[tuple[Rule, str]]]:
    """Pairs rules with tensors without touching a value; what is wrong is stated in `Manifest.problems`.

    `head` "classification" takes the head where the source has one; None leaves it aside. Patterns are fnmatch over
    the source's names and the standard ones.
    """
    if config.layers > len(tensors):
        raise ValueError(f"the config asks for {config.layers} layers where the source holds {len(tensors)} tensors")
    names: dict[str, str] = {}
    problems = []
    for name in tensors:
        standard = standard_name(family, name)
        if standard in names:
            problems.append(f"tensors {names[standard]} and {name} are the same parameter: the source must hold one")
        names.setdefault(standard, name)
    classes = _classes(family, config, tensors, names) if head else None
    rules = family.backbone_rules(config) + (family.head_rules(config, classes) if classes else [])

    pairs, missing = [], []
    for rule in rules:
        if rule.hf_name in names:
            pairs.append((rule, names[rule.hf_name]))
        else:
            missing.append(rule.hf_name)
    taken = {rule.hf_name for rule, _ in pairs}
    kept, unused, unknown = [], [], []
    for standard, name in sorted(names.items()):
        if standard in taken:
            continue
        if _matches(family.buffers, standard):
            kept.append(name)
        elif _matches(family.other_heads, standard) or _matches(allow_unused, standard, name):
            unused.append(name)
        else:
            unknown.append(name)
    if unknown:
        problems.append(
            f"{_count(unknown, 'tensor')} unknown to family {family.name}: {_listed(unknown)}; "
            "pass allow_unused=[patterns] to leave such tensors aside"
        )
    refused = [name for name in missing if not _matches(allow_missing, name, family.prefix + name)]
    if refused:
        problems.append(
            f"{_count(refused, 'tensor')} of family {family.name} missing from the source: {_listed(refused)}; "
            "pass allow_missing=[patterns] to initialise them yourself"
        )
    for rule, name in pairs:
        problems += _misfit(rule, name, tensors[name])

    def entries(chosen: Sequence[str]) -> tuple[Entry, ...]:
        return tuple(Entry(name, "", tensors[name].dtype.name, tensors[name].shape) for name in chosen)

    manifest = Manifest(
        family=family.name,
        head=head if classes else None,
        classes=classes,
        used=tuple(Entry(name, rule.flax_path, tensors[name].dtype.name, tensors[name].shape) for rule, name in pairs),
        kept=entries(kept),
        unused=entries(unused + unknown),
        missing=tuple(missing),
        tied=tuple(_tied(family, tensors, names)),
        problems=tuple(problems),
    )
    return manifest, pairs


def import_tensors(
    family: Family,
    config: Config,
    tensors: Mapping[str, np.ndarray],
    *,
    head: str | None = "classification",
    fields: Mapping[str, Any] | None = None,
    allow_unused: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
) -> tuple[Params, Extras, Manifest]:
    """Parameters in float32, what export needs to restore the source, and the account.

    Raises ValueError naming unknown, missing, misshapen, unsuitably typed and doubled tensors.
    """
    manifest, pairs = match(family, config, tensors, head=head, allow_unused=allow_unused, allow_missing=allow_missing)
    if manifest.problems:
        raise ValueError("; ".join(manifest.problems))
    params: Params = {}
    for rule, name in pairs:
        *parents, leaf = rule.flax_path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = np.ascontiguousarray(rule.layout.to_flax(_to_float32(name, tensors[name])))
    extras = Extras(
        names={rule.hf_name: name for rule, name in pairs},
        dtypes={rule.hf_name: tensors[name].dtype.name for rule, name in pairs},
        tensors={entry.hf_name: tensors[entry.hf_name] for entry in (*manifest.kept, *manifest.unused)},
        absent=manifest.missing,
        tied={one: standard_name(family, other) for one, other in manifest.tied},
        fields=dict(fields or {}),
        head=manifest.head,
    )
    return params, extras, manifest


def export_tensors(
    family: Family, config: Config, params: Params, extras: Extras, *, dtype: str | None = None
) -> dict[str, np.ndarray]:
    """The tensors of `params` under Hugging Face's names; of an unmodified import, the source's own bytes.

    Names, dtypes and unused tensors are the source's while its head is unchanged. With another head the names are the
    standard ones, and other tasks' heads stay behind. `dtype` overrides the remembered dtypes (new tensors: float32).

    Raises ValueError for a parameter no rule takes, an absent or misshapen one, and one that overflows its dtype.
    """
    leaves = _flatten(params)
    head = "classification" if "classifier" in params else None
    same_head = bool(extras.names) and head == extras.head
    classes = leaves["classifier/bias"].shape[0] if "classifier/bias" in leaves else 1
    rules = family.backbone_rules(config) + (family.head_rules(config, classes) if head else [])
    strangers = sorted(leaves.keys() - {rule.flax_path for rule in rules})
    if strangers:
        raise ValueError(
            f"no rule of family {family.name} takes parameter {_listed(strangers)}: leave it out to export"
        )
    backbone = {rule.hf_name for rule in family.backbone_rules(config)}
    prefixed = any(name.startswith(family.prefix) for name in extras.names.values()) if same_head else head is not None
    tensors: dict[str, np.ndarray] = {}
    for rule in rules:
        if rule.flax_path not in leaves:
            if rule.hf_name in extras.absent:
                continue
            raise ValueError(f"parameter {rule.flax_path} is missing: family {family.name} needs it for {rule.hf_name}")
        array = rule.layout.to_hf(leaves[rule.flax_path])
        if array.shape != rule.shape:
            raise ValueError(
                f"parameter {rule.flax_path} has shape {leaves[rule.flax_path].shape}, "
                f"which makes {rule.hf_name} {array.shape} where the config asks for {rule.shape}"
            )
        prefix = family.prefix if prefixed and rule.hf_name in backbone else ""
        name = extras.names.get(rule.hf_name, prefix + rule.hf_name) if same_head else prefix + rule.hf_name
        target = dtype or extras.dtypes.get(rule.hf_name, "float32")
        tensors[name] = np.ascontiguousarray(_to_dtype(rule.flax_path, array, target))
    for name, array in extras.tensors.items():
        standard = standard_name(family, name)
        if same_head:
            # A tied tensor follows the one it shares its values with, which may have been trained since.
            source = tensors.get(extras.names.get(extras.tied.get(name, ""), ""))
            tensors[name] = array if source is None else source
        elif _matches(family.buffers, standard):
            tensors[(family.prefix if prefixed else "") + standard] = array
    return tensors


def complete(params: Params, fresh: Params) -> Params:
    """`params` with the leaves it lacks taken from `fresh`: a new head, a pooler the source did not have."""
    merged = dict(params)
    for name, value in fresh.items():
        if name not in merged:
            merged[name] = value
        elif isinstance(value, Mapping) and isinstance(merged[name], Mapping):
            merged[name] = complete(dict(merged[name]), dict(value))
    return merged


def _classes(family: Family, config: Config, tensors: Mapping[str, np.ndarray], names: Mapping[str, str]) -> int | None:
    for rule in family.head_rules(config, 1):
        if rule.hf_name in names and tensors[names[rule.hf_name]].ndim:
            return tensors[names[rule.hf_name]].shape[0]
    return None


def _misfit(rule: Rule, name: str, array: np.ndarray) -> list[str]:
    if array.shape != rule.shape:
        return [f"tensor {name} has shape {array.shape} where the config asks for {rule.shape}"]
    if array.dtype.name not in _FLOATING:
        return [f"tensor {name} has dtype {array.dtype.name}, expected one of {', '.join(_FLOATING)}"]
    return []


def _tied(family: Family, tensors: Mapping[str, np.ndarray], names: Mapping[str, str]) -> list[tuple[str, str]]:
    pairs = [(names[one], names[other]) for one, other in family.tied.items() if one in names and other in names]
    return [(one, other) for one, other in pairs if _same(tensors[one], tensors[other])]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


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


def _flatten(tree: Mapping[str, Any], parents: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    leaves: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        path = (*parents, name)
        leaves |= _flatten(value, path) if isinstance(value, Mapping) else {"/".join(path): np.asarray(value)}
    return leaves


def _matches(patterns: Sequence[str], *names: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _count(items: Sequence[str], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
