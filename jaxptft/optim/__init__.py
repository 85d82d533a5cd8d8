"""Optimization: path patterns, freezing, learning-rate schedules and AdamW. Plain optax in, plain optax out."""

from jaxptft.optim.adamw import adamw
from jaxptft.optim.freezing import freeze, frozen_prefix, head_only, top_layers, trainable_mask
from jaxptft.optim.patterns import by_pattern, mask, matches, paths
from jaxptft.optim.schedules import KINDS, schedule
from jaxptft.optim.split_tree import merge, partition

__all__ = [
    "KINDS",
    "adamw",
    "by_pattern",
    "freeze",
    "frozen_prefix",
    "head_only",
    "mask",
    "matches",
    "merge",
    "partition",
    "paths",
    "schedule",
    "top_layers",
    "trainable_mask",
]
