"""Which devices a run uses, and how they share its work."""

from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxptft import train
from jaxptft.objectives import Batch
from jaxptft.recipes.training_settings import LearningSettings

if TYPE_CHECKING:
    from jax.sharding import Mesh

_TOGETHER = 8  # steps a dispatch, where none are said
_BYTES = 2**26  # of batches in a dispatch, where none are said
_LONGEST = 2.0  # seconds of a dispatch, where none are said: a signal is heard after it


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
            f"steps_per_dispatch={config.steps_per_dispatch}": (config.steps_per_dispatch or 1) > 1,
        }
        for told, given in others.items():
            if given:
                raise ValueError(f"parallel is pmap, which does not go with {told}; leave it out")
    return train.make_mesh(devices[: config.devices], fsdp=config.fsdp)


def steps_together(config: LearningSettings, batch: Batch) -> tuple[int, float | None]:
    """How many steps, on batches like this one, a dispatch has at most, and how many seconds it may last."""
    if config.steps_per_dispatch is not None:
        return config.steps_per_dispatch, None
    if config.parallel == "pmap" or jax.process_count() > 1:
        return 1, None
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(batch))
    return int(np.clip(_BYTES // max(size, 1), 1, _TOGETHER)), _LONGEST
