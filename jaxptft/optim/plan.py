"""One plan for what trains: path patterns -> frozen, or at what rate, with what decay and from which step on.

    {"backbone/embeddings/**": "frozen", "backbone/**": Rule(rate=0.5, unfreeze=100)}

The first match wins, and what no pattern matches trains as it would without a plan. Several plans hold together: what
one of them freezes stays frozen, rates multiply, the first decay that is given counts, and so does the latest step of
unfreezing. `timetable` settles that for the parameters at hand, and says which of them train at which step.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import jax
from jaxtyping import PyTree

from jaxptft.optim.patterns import by_pattern, mask, paths

NO_DECAY = ("**/bias", "**/norm/**", "**/*_norm/**", "**/*_scale/**")  # biases, norms and the scales of branches


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the parameters of one pattern train.

    `rate` multiplies the learning rate. `decay` stands in place of the optimizer's weight decay, where there is any:
    biases and norms have none. `unfreeze` is the step from which they train: a number of steps (int), or a fraction of
    the run (float, rounded up).

    Raises:
        ValueError: a number out of range.
    """

    rate: float = 1.0
    decay: float | None = None
    unfreeze: int | float = 0

    def __post_init__(self) -> None:
        for name in ("rate", "decay", "unfreeze"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"the {name} of a rule must be finite and at least 0, got {value}")


@dataclass(frozen=True)
class Plan:
    """Patterns and what becomes of what they match; `name` stands for the plan in error messages.

    Each rule must have an effect. Of a plan that is made for any model (`whole`) it is enough that one has.
    """

    rules: Mapping[str, Rule | Literal["frozen"]]
    name: str = "plan"
    whole: bool = False


@dataclass(frozen=True)
class Timetable:
    """What a plan comes to: by path, the rule of each parameter, its `unfreeze` in steps; None never trains.

    The `decay` of a rule is 0 where nothing decays, and None where it is the optimizer's.
    """

    rules: Mapping[str, Rule | None]
    structure: Any  # of the parameters, a PyTreeDef

    @cached_property
    def ever(self) -> PyTree[bool]:
        """True at each parameter that trains at any time."""
        return self.structure.unflatten([rule is not None for rule in self.rules.values()])

    @cached_property
    def stages(self) -> dict[int, PyTree[bool]]:
        """The step from which each stage lasts -> its trainable mask; the first is step 0."""
        begins = sorted({int(rule.unfreeze) for rule in self.rules.values() if rule})
        return {begin: self.mask(begin) for begin in begins}

    def mask(self, step: int) -> PyTree[bool]:
        """True at each parameter that trains at `step`."""
        return self.structure.unflatten([rule is not None and rule.unfreeze <= step for rule in self.rules.values()])

    def begin(self, path: str) -> int:
        """The step from which a parameter trains.

        Raises:
            ValueError: it never does.
        """
        rule = self.rules.get(path)
        if rule is None:
            raise ValueError(f"'{path}' does not train in this plan: partition by its masks")
        return int(rule.unfreeze)

    @property
    def fingerprint(self) -> str:
        """A SHA-256, in hexadecimal, equal for equal rules of equal paths."""
        rules = {path: rule and asdict(rule) for path, rule in self.rules.items()}
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _steps(unfreeze: int | float, steps: int | None) -> int:
    if isinstance(unfreeze, int):
        return unfreeze
    if steps is None:
        raise ValueError(
            "an unfreeze of type float is a fraction of the run, whose steps are not given: give steps, or an int"
        )
    return math.ceil(unfreeze * steps - 1e-9)  # 0.1 * 3 * 10 is a little more than 3


def timetable(
    params: PyTree,
    plans: Plan | Sequence[Plan],
    *,
    trainable: PyTree[bool] | None = None,
    steps: int | None = None,
    no_decay: str | Sequence[str] = NO_DECAY,
) -> Timetable:
    """The plans settled for these parameters.

    `trainable` marks what may train at all (default: everything). `steps` is the length of the run, of which `unfreeze`
    may be a fraction. `no_decay` patterns may match nothing.

    Raises:
        ValueError: a pattern is malformed, matches nothing, or only what stays frozen, does not decay, or is unfrozen
            after the run; or nothing trains, or nothing at step 0.

    >>> params = {"backbone": {"bias": 0, "kernel": 0}, "classifier": {"bias": 0}}
    >>> table = timetable(params, Plan({"backbone/kernel": "frozen", "backbone/**": Rule(rate=0.5, unfreeze=3)}))
    >>> {step: paths(jax.tree.map(lambda learns: learns or None, mask)) for step, mask in table.stages.items()}
    {0: ['classifier/bias'], 3: ['backbone/bias', 'classifier/bias']}
    """
    plans = [plans] if isinstance(plans, Plan) else list(plans)
    names, structure = paths(params), jax.tree.structure(params)
    may = [True] * len(names) if trainable is None else [bool(learns) for learns in jax.tree.leaves(trainable)]
    if len(may) != len(names):
        raise ValueError(f"trainable has {len(may)} leaves where params has {len(names)}: give a mask of params")
    exempt = jax.tree.leaves(mask(params, no_decay, strict=False))
    chosen = []  # by plan: the pattern that each parameter falls to, or ""
    for plan in plans:
        chosen.append(jax.tree.leaves(by_pattern(params, {pattern: pattern for pattern in plan.rules}, default="")))
        for pattern, rule in plan.rules.items():
            if rule != "frozen" and not isinstance(rule, Rule):
                raise TypeError(f"{plan.name}: '{pattern}' must be 'frozen' or a Rule, got {rule!r}")

    settled: dict[str, Rule | None] = {}
    for index, name in enumerate(names):
        found = [plan.rules[own[index]] for plan, own in zip(plans, chosen, strict=True) if own[index]]
        rules = [rule for rule in found if isinstance(rule, Rule)]
        if not may[index] or len(rules) < len(found):
            settled[name] = None
            continue
        decay = 0.0 if exempt[index] else next((rule.decay for rule in rules if rule.decay is not None), None)
        begin = max((_steps(rule.unfreeze, steps) for rule in rules), default=0)
        settled[name] = Rule(rate=math.prod(rule.rate for rule in rules), decay=decay, unfreeze=begin)

    _refuse_idle(plans, chosen, list(settled.values()), exempt, steps)
    begins = [rule.unfreeze for rule in settled.values() if rule is not None]
    if not begins:
        raise ValueError("the plan leaves nothing to train: freeze less, or add a head")
    if min(begins) > 0:
        raise ValueError(f"nothing trains before step {min(begins)}: let something train from step 0")
    return Timetable(settled, structure)


def _refuse_idle(
    plans: Sequence[Plan],
    chosen: Sequence[Sequence[str]],
    settled: Sequence[Rule | None],
    exempt: Sequence[bool],
    steps: int | None,
) -> None:
    """ValueError for the rule, or the whole plan, that changes nothing."""
    for plan, own in zip(plans, chosen, strict=True):
        acting = [pattern for pattern, rule in zip(own, settled, strict=True) if pattern and rule is not None]
        wanted = [pattern for pattern, rule in plan.rules.items() if isinstance(rule, Rule)]
        if plan.whole:
            if wanted and not acting:
                raise ValueError(f"{plan.name} changes nothing: all that it is about stays frozen; leave it out")
            begins = [_steps(rule.unfreeze, steps) for rule in map(plan.rules.get, acting) if isinstance(rule, Rule)]
            if steps is not None and begins and min(begins) >= steps:
                raise ValueError(
                    f"{plan.name} changes nothing: it begins at step {min(begins)}, after the last of {steps} steps"
                )
            continue
        for pattern in wanted:
            rule = plan.rules[pattern]
            assert isinstance(rule, Rule)
            if pattern not in acting:
                raise ValueError(f"{plan.name}: all that '{pattern}' matches stays frozen; leave it out")
            if steps is not None and _steps(rule.unfreeze, steps) >= steps:
                raise ValueError(
                    f"{plan.name}: '{pattern}' is unfrozen at step {_steps(rule.unfreeze, steps)}, after the last of "
                    f"{steps} steps; choose an earlier one, or 'frozen'"
                )
            decaying = [not held for name, held in zip(own, exempt, strict=True) if name == pattern]
            if rule.decay and not any(decaying):
                raise ValueError(f"{plan.name}: '{pattern}' matches biases and norms alone, which have no weight decay")


def frozen(patterns: Sequence[str], *, name: str = "freeze") -> Plan:
    """A plan that freezes what the patterns match, as `head_only` and `top_layers` give them.

    >>> frozen(("backbone/**",)).rules
    {'backbone/**': 'frozen'}
    """
    return Plan(dict.fromkeys(patterns, "frozen"), name)


def multiplied(multipliers: Mapping[str, float], *, name: str = "multipliers") -> Plan:
    """A plan that multiplies the learning rate of what the patterns match.

    >>> multiplied({"backbone/**": 0.5}).rules["backbone/**"].rate
    0.5
    """
    try:
        return Plan({pattern: Rule(rate=factor) for pattern, factor in multipliers.items()}, name)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
