"""What a model learns: losses over a model's apply, composed by `combine`."""

from jaxptft.objectives.classification import classification
from jaxptft.objectives.combine import combine, merge_params
from jaxptft.objectives.contract import Batch, Context, Mean, Objective, Params, lift, slice_rng, total_loss
from jaxptft.objectives.penalty import Penalty, l1, l2, l2_to_pretrained

__all__ = [
    "Batch",
    "Context",
    "Mean",
    "Objective",
    "Params",
    "Penalty",
    "classification",
    "combine",
    "l1",
    "l2",
    "l2_to_pretrained",
    "lift",
    "merge_params",
    "slice_rng",
    "total_loss",
]
