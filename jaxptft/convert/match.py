"""Pairing the tensors of a source with the rules of its family, and the account of what became of each.

Every tensor is accounted for: taken by a rule, kept as a buffer or as the copy of a parameter, known as another task's
head, allowed by the caller, or refused with its name. Nothing is guessed and nothing disappears.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from jaxptft.convert.heads import Heads, declared_heads, free_axes, head_rules, present_heads
from jaxptft.convert.manifest import Entry, Manifest
from jaxptft.convert.rules import Config, Family, Rule
from jaxptft.convert.wording import listed

FLOATING = ("float16", "bfloat16", "float32", "float64")


def standard_name(family: Family, name: str) -> str:
    """A tensor's name without the backbone's prefix and in today's spelling."""
    name = name.removeprefix(family.prefix)
    for old, new in family.spellings:
        if name.endswith(old):
            return name.removesuffix(old) + new
        if old.endswith(".") and name.startswith(old):
            return new + name.removeprefix(old)
    return name


def matches(patterns: Sequence[str], *names: str) -> bool:
    """Whether any of the names fits any of the fnmatch patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def match(
    family: Family,
    config: Config,
    tensors: Mapping[str, np.ndarray],
    *,
    fields: Mapping[str, Any],
    heads: Heads = "source",
    allow_unused: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
) -> tuple[Manifest, list[tuple[Rule, str]]]:
    """Pairs rules with tensors without touching a value; what is wrong is stated in `Manifest.problems`.

    `fields` are those of the source's config.json. The patterns are fnmatch over the source's names and the standard
    ones. Raises ValueError for `heads` the family does not have, and a config that asks for more than is there.
    """
    # Layers that share their parameters are stored once.
    stored = getattr(config, "layer_groups", None) or config.layers
    if stored > len(tensors):
        raise ValueError(f"the config asks for {stored} layers where the source holds {len(tensors)} tensors")
    names, problems = _standard_names(family, tensors)
    declared = declared_heads(family, fields)
    taken = present_heads(family, config, names, declared, heads)
    classes = {head: _classes(family, config, head, names, tensors) for head in taken}
    rules = family.backbone_rules(config) + head_rules(family, config, classes)
    pairs = [(rule, names[rule.hf_name]) for rule in rules if rule.hf_name in names]
    missing = [rule.hf_name for rule in rules if rule.hf_name not in names]

    copies = _copies(family, tensors, names)
    tied = any(family.heads[head].tied for head in taken)
    used = {rule.hf_name for rule, _ in pairs}
    kept, unused, unknown = [], [], []
    for standard, name in sorted(names.items()):
        if standard in used:
            continue
        of_another_head = matches(family.other_heads, standard) and not (tied and standard in family.tied)
        if matches(family.buffers, standard) or (name in copies and not of_another_head):
            kept.append(name)
        elif of_another_head or matches(allow_unused, standard, name):
            unused.append(name)
        elif standard in family.tied:
            unused.append(name)
            problems.append(
                f"tensor {name} differs from {names[family.tied[standard]]}, with which family {family.name} shares "
                f"its values: pass heads=() to take the backbone alone, or allow_unused=['{name}'] to leave it aside"
            )
        else:
            unknown.append(name)
    if tied and fields.get("tie_word_embeddings") is False:
        problems.append(
            f"config.json: tie_word_embeddings is False, but the head {', '.join(taken)} projects through the word "
            "table: pass heads=() to take the backbone alone"
        )
    if unknown:
        problems.append(
            f"{_count(unknown, 'tensor')} unknown to family {family.name}: {listed(unknown)}; "
            "pass allow_unused=[patterns] to leave such tensors aside"
        )
    dispensable = [*allow_missing, *_optional(family, taken if declared is None else declared)]
    refused = [name for name in missing if not matches(dispensable, name, family.prefix + name)]
    if refused:
        problems.append(
            f"{_count(refused, 'tensor')} of family {family.name} missing from the source: {listed(refused)}; "
            "pass allow_missing=[patterns] to initialise them yourself"
        )
    for rule, name in pairs:
        problems += _misfit(rule, name, tensors[name])

    def entries(chosen: Sequence[str]) -> tuple[Entry, ...]:
        return tuple(Entry(name, "", tensors[name].dtype.name, tensors[name].shape) for name in chosen)

    manifest = Manifest(
        family=family.name,
        heads=taken,
        classes=next((size for size in classes.values() if size), None),
        used=tuple(Entry(name, rule.flax_path, tensors[name].dtype.name, tensors[name].shape) for rule, name in pairs),
        kept=entries(kept),
        unused=entries(unused + unknown),
        missing=tuple(missing),
        tied=tuple(copies.items()),
        problems=tuple(problems),
    )
    return manifest, pairs


def _standard_names(family: Family, tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, str], list[str]]:
    """Standard name -> the source's, and what is wrong with them."""
    names: dict[str, str] = {}
    problems = []
    prefixed = any(name.startswith(family.prefix) for name in tensors)
    of_heads = {theirs: standard for standard, theirs in family.unprefixed.items()} if prefixed else {}
    for name in tensors:
        standard = of_heads.get(name) or standard_name(family, name)
        if standard in names:
            problems.append(f"tensors {names[standard]} and {name} are the same parameter: the source must hold one")
        names.setdefault(standard, name)
    # Of tensors that share their values, a file may hold either.
    for one, other in family.tied.items():
        if one in names and other not in names:
            names[other] = names.pop(one)
    return names, problems


def _optional(family: Family, heads: Sequence[str]) -> list[str]:
    """What an architecture with these heads may lack; a bare backbone lacks nothing."""
    needed = {pattern for head in heads for pattern in family.heads[head].needs}
    return [pattern for pattern in family.optional if pattern not in needed] if heads else []


def _classes(
    family: Family, config: Config, head: str, names: Mapping[str, str], tensors: Mapping[str, np.ndarray]
) -> int:
    if not family.heads[head].sized:
        return 0
    for rule, axis in free_axes(family, config, head):
        shape = tensors[names[rule.hf_name]].shape if rule.hf_name in names else ()
        if len(shape) > axis:
            return shape[axis]
    return 1


def _copies(family: Family, tensors: Mapping[str, np.ndarray], names: Mapping[str, str]) -> dict[str, str]:
    """The tensors that equal, byte for byte, the one they share their values with by design."""
    pairs = [(names[one], names[other]) for one, other in family.tied.items() if one in names and other in names]
    return {one: other for one, other in pairs if _same(tensors[one], tensors[other])}


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _misfit(rule: Rule, name: str, array: np.ndarray) -> list[str]:
    if array.shape != rule.shape:
        return [f"tensor {name} has shape {array.shape} where the config asks for {rule.shape}"]
    if array.dtype.name not in FLOATING:
        return [f"tensor {name} has dtype {array.dtype.name}, expected one of {', '.join(FLOATING)}"]
    return []


def _count(items: Sequence[str], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
