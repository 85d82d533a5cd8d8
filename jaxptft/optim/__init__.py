"""Optimization: path patterns, freezing, plans of what trains, schedules and AdamW. Plain optax in, plain optax out."""

from jaxptft.optim.adamw import adamw, clip_by_global_norm
from jaxptft.optim.freezing import freeze, frozen_prefix, head_only, top_layers, trainable_mask
from jaxptft.optim.patterns import by_pattern, mask, matches, paths
from jaxptft.optim.plan import NO_DECAY, Plan, Rule, Timetable, frozen, multiplied, timetable
from jaxptft.optim.plans import bias_only, gradual_unfreezing, layer_decay
from jaxptft.optim.pruning import Pruned, cubic_sparsity, magnitude_masks, pruned, zeros_by_path
from jaxptft.optim.schedules import KINDS, schedule
from jaxptft.optim.split_tree import merge, partition
from jaxptft.optim.staged import by_stage, clip_by_group, plan_adamw

__all__ = [
    "KINDS",
    "NO_DECAY",
    "Plan",
    "Pruned",
    "Rule",
    "Timetable",
    "adamw",
    "bias_only",
    "by_pattern",
    "by_stage",
    "clip_by_global_norm",
    "clip_by_group",
    "cubic_sparsity",
    "freeze",
    "frozen",
    "frozen_prefix",
    "gradual_unfreezing",
    "head_only",
    "layer_decay",
    "magnitude_masks",
    "mask",
    "matches",
    "merge",
    "multiplied",
    "partition",
    "paths",
    "plan_adamw",
    "pruned",
    "schedule",
    "timetable",
    "top_layers",
    "trainable_mask",
    "zeros_by_path",
]
