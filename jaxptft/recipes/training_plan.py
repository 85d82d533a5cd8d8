"""What of a model trains in a run: the settings that have a say in it, settled as one timetable."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from jaxptft import optim
from jaxptft.objectives import Params
from jaxptft.recipes.training_settings import PlanSettings

STILL = ("/running_mean", "/running_var", "/fixed_positions")
"""Endings of the paths of parameters that no gradient reaches: running statistics, and tables that are given."""


def plans_of(
    settings: PlanSettings, params: Params, *, multipliers: Mapping[str, float], imported: Params | None = None
) -> list[optim.Plan]:
    """The plans that the settings stand for, but for `freeze`, whose words `optim.trainable_mask` reads."""
    rules: dict[str, Any] = {
        pattern: "frozen" if rule == "frozen" else optim.Rule(**dict(rule)) for pattern, rule in settings.plan.items()
    }
    plans = [optim.Plan(rules, "plan"), optim.multiplied(multipliers, name="optimizer.multipliers")]
    if settings.layer_decay is not None:
        plans.append(optim.layer_decay(params, settings.layer_decay))
    if settings.unfreeze.every is not None or settings.unfreeze.at:
        plans.append(optim.gradual_unfreezing(params, every=settings.unfreeze.every, at=settings.unfreeze.at))
    if settings.bitfit:
        plans.append(optim.bias_only(params, fresh=fresh_paths(params, imported) if imported else ()))
    return [_with_adapters(plan, params) for plan in plans]


def _with_adapters(plan: optim.Plan, params: Params) -> optim.Plan:
    """What a plan freezes, and all of one that is made for any model, for the adapters beside kernels as for these."""
    own = [path for path in optim.paths(params) if path.startswith("lora/")]
    free = {path for path in own if not any(optim.matches(pattern, path) for pattern in plan.rules)}
    acting = {}
    for pattern, rule in plan.rules.items():
        taken = {path for path in free if optim.matches(f"lora/{pattern}", path)}
        if taken and (plan.whole or rule == "frozen"):
            acting[f"lora/{pattern}"] = rule
            free -= taken
    return replace(plan, rules={**plan.rules, **acting})


def settle(
    settings: PlanSettings,
    params: Params,
    trainable: Any,
    *,
    multipliers: Mapping[str, float],
    steps: int | None,
    imported: Params | None = None,
) -> optim.Timetable:
    """The timetable of a run of so many steps; `trainable` marks what `freeze` leaves, and the task uses.

    `imported` holds what did not start afresh (default: everything). Raises ValueError, in one line, for whatever
    contradicts itself or has no effect.
    """
    plans = plans_of(settings, params, multipliers=multipliers, imported=imported)
    return optim.timetable(params, plans, trainable=trainable, steps=steps)


def piece_of(path: str) -> str:
    """The part of the model that a parameter belongs to: `backbone/layer_3`, or a head; `lora/` and it for adapters."""
    if path.startswith("lora/"):
        return f"lora/{piece_of(path.removeprefix('lora/'))}"
    names = path.split("/")
    return "/".join(names[:2]) if names[0] == "backbone" else names[0]


def unfrozen_at(table: optim.Timetable, begin: int) -> list[str]:
    """The pieces that train from step `begin` on, wholly or in part, and did not before."""
    found = [piece_of(path) for path, rule in table.rules.items() if rule is not None and rule.unfreeze == begin]
    return list(dict.fromkeys(found))


def count_trainable(params: Params, mask: Any) -> int:
    """How many parameters the mask marks; params may be shapes."""
    return sum(leaf.size for leaf, learns in zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True) if learns)


def fresh_paths(params: Params, imported: Params) -> list[str]:
    """The backbone's parameters that `imported` lacks, but for those that no gradient reaches."""
    known = set(optim.paths(imported))
    own = (path for path in optim.paths(params) if path.startswith("backbone/") and not path.endswith(STILL))
    return [path for path in own if path not in known]


def refuse_fresh(table: optim.Timetable, imported: Params) -> None:
    """ValueError where a parameter that was not imported, and so starts afresh, never trains."""
    known = set(optim.paths(imported))
    for path, rule in table.rules.items():
        if rule is None and path not in known and not path.endswith(STILL):
            raise ValueError(
                f"{path} is not in the imported model, so it starts afresh, and the plan would keep it there; "
                "let it train"
            )
