"""Which devices a run uses, and how they share its work."""

from typing import TYPE_CHECKING

import jax

from jaxptft import train
from jaxptft.recipes.training_settings import LearningSettings

if TYPE_CHECKING:
    from jax.sharding import Mesh


def choose_mesh(config: LearningSettings) -> "Mesh":
    """The devices that a run uses, of all its processes; ValueError where the machine or the values do not allow it."""
    devices, processes = jax.devices(), jax.process_count()
    if config.devices is not None and processes > 1:
        raise ValueError(f"devices is {config.devices}, but {processes} processes use all of theirs; leave it out")
    if config.devices is not None and config.devices > len(devices):
        raise ValueError(f"devices is {config.devices}, but this machine shows {len(devices)}")
    if config.parallel == "pmap":
        others = {
            f"{processes} processes": processes > 1,
            f"fsdp={config.fsdp}": config.fsdp > 1,
            f"steps_per_dispatch={config.steps_per_dispatch}": config.steps_per_dispatch > 1,
        }
        for told, given in others.items():
            if given:
                raise ValueError(f"parallel is pmap, which does not go with {told}; leave it out")
    return train.make_mesh(devices[: config.devices], fsdp=config.fsdp)
