"""Which heads a source holds, told by its architecture and its tensors, and how many classes they tell apart."""

from collections.abc import Iterable, Mapping, Sequence
from reprlib import repr as shown
from typing import Any, Literal

from jaxptft.convert.rules import Config, Family, Rule

Heads = Literal["source"] | Sequence[str]
"""The heads that are asked for: "source", those of the source's architecture; or names, those of them it holds."""


def declared_heads(family: Family, fields: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The heads of the architecture that a config.json names: none for one unknown to the family, None for no name."""
    named = fields.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ValueError(f"config.json: architectures must be a list of names, got {shown(named)}")
    if not named:
        return None
    return next((family.architectures[name] for name in named if name in family.architectures), ())


def check_heads(family: Family, heads: Heads) -> None:
    """ValueError unless `heads` are "source" or names of heads that the family has."""
    if heads == "source":
        return
    known = ", ".join(family.heads)
    if isinstance(heads, str) or not isinstance(heads, Iterable):
        raise ValueError(f"heads must be 'source' or a tuple of names among {known}, got {heads!r}")
    for head in heads:
        if head not in family.heads:
            raise ValueError(f"family {family.name} has no head {head!r}: expected one of {known}")


def present_heads(
    family: Family, config: Config, names: Iterable[str], declared: tuple[str, ...] | None, heads: Heads
) -> tuple[str, ...]:
    """Those of `heads` that a source with tensors of the standard `names` holds, in the family's order.

    Two heads may share a name. The architecture tells them apart; where it is not named, the complete one is meant,
    and of two complete ones the first.
    """
    check_heads(family, heads)
    names = set(names)
    theirs = {head: {rule.hf_name for rule in table.rules(config, 1)} for head, table in family.heads.items()}
    asked = (family.heads if declared is None else declared) if heads == "source" else heads
    taken: list[str] = []
    for head in sorted(asked, key=lambda head: not theirs[head] <= names):
        contested = any(theirs[head] & theirs[other] for other in family.heads if other != head)
        told_apart = declared is None or head in declared or not contested
        if theirs[head] & names and told_apart and not any(theirs[head] & theirs[other] for other in taken):
            taken.append(head)
    return tuple(head for head in family.heads if head in taken)


def free_axes(family: Family, config: Config, head: str) -> list[tuple[Rule, int]]:
    """The rules of a head whose shapes follow the number of classes, each with the axis on which it does."""
    one, other = (family.heads[head].rules(config, classes) for classes in (1, 2))
    return [
        (rule, axis)
        for rule, wider in zip(one, other, strict=True)
        for axis, size in enumerate(rule.shape)
        if size != wider.shape[axis]
    ]


def head_rules(family: Family, config: Config, classes: Mapping[str, int]) -> list[Rule]:
    """The rules of the heads that `classes` gives the sizes of."""
    return [rule for head, size in classes.items() for rule in family.heads[head].rules(config, size)]


def find_architecture(family: Family, heads: Iterable[str]) -> str:
    """The class that export writes for a set of heads: the first that has just these, else the first that has more.

    Raises ValueError where the family has none.
    """
    heads = set(heads)
    for fits in (set.__eq__, set.__le__):
        for name, held in family.architectures.items():
            if fits(heads, set(held)):
                return name
    known = "; ".join(dict.fromkeys(" and ".join(held) for held in family.architectures.values() if held))
    raise ValueError(
        f"no architecture of family {family.name} has the heads {' and '.join(sorted(heads))} together: "
        f"leave some out of the parameters (it has {known})"
    )
