"""How a run computes its model, which is none of the model's own: in what dtype, with what dropout, layers run how."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from jaxptft.recipes.training_settings import LAYER_RUN, LearningSettings


def dropouts_of(config: Any) -> list[str]:
    """The names of a model's dropout rates."""
    # None stands for another field's rate, True and False for whether a place drops at all.
    ending = [field.name for field in fields(config) if field.name.endswith("dropout")]
    values = {name: getattr(config, name) for name in ending}
    return [name for name, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)]


def computed_with(config: Any, *, dtype: str, dropout: float | None = None) -> Any:
    """A model's config with another dtype to compute in and, where `dropout` is given, with that rate everywhere."""
    return replace(config, dtype=dtype, **({} if dropout is None else dict.fromkeys(dropouts_of(config), dropout)))


def computed_as(architecture: Any, config: LearningSettings, say: Callable[[str], None]) -> Any:
    """A model's config as the run's settings have it computed; says how its layers run where that is not as usual.

    Raises ValueError for layers that cannot run so.
    """
    asked = {name: getattr(config, name) for name in LAYER_RUN}
    chosen = {name: value for name, value in asked.items() if value != type(config).model_fields[name].default}
    known = {field.name for field in fields(architecture)}
    for name in chosen:
        if name not in known:
            kind = type(architecture).__name__.removesuffix("Config")
            raise ValueError(f"{name} is for transformers, and the model is of kind {kind}; leave it out")
    if chosen:
        ways = ["scanned"] * config.scan_layers + [f"remat {config.remat}"] * (config.remat != "none")
        say(f"layers: {', '.join(ways)}")
    return replace(computed_with(architecture, dtype=config.dtype, dropout=config.dropout), **chosen)
