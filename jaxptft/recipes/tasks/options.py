"""Values of a Config that a task has no use for: refused, rather than read past."""

from collections.abc import Sequence
from typing import Any


def refuse_options(config: Any, names: Sequence[str], *, task: str) -> None:
    """Raise ValueError where one of these values of the config is not its default."""
    for name in names:
        default = type(config).model_fields[name].get_default(call_default_factory=True)
        if getattr(config, name) != default:
            raise ValueError(f"{name} is {getattr(config, name)!r}, and {task} has no use for it; leave it out")
