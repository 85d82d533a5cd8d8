"""What a model learns: losses over a model's apply, composed by `combine`."""

from jaxptft.objectives.classification import classification
from jaxptft.objectives.combine import combine, merge_params
from jaxptft.objectives.contract import Batch, Context, Mean, Model, Objective, Params, lift, slice_rng, total_loss
from jaxptft.objectives.masked_lm import masked_lm
from jaxptft.objectives.masking import Masking, TokenTable, corrupt
from jaxptft.objectives.next_token import next_token
from jaxptft.objectives.penalty import Penalty, l1, l2, l2_to_pretrained
from jaxptft.objectives.positions import gather_capacity, gather_positions
from jaxptft.objectives.replaced_token import generator_params, replaced_token
from jaxptft.objectives.sentence_pair import next_sentence, sentence_order
from jaxptft.objectives.sentence_pretraining import sentence_pretraining

__all__ = [
    "Batch",
    "Context",
    "Masking",
    "Mean",
    "Model",
    "Objective",
    "Params",
    "Penalty",
    "TokenTable",
    "classification",
    "combine",
    "corrupt",
    "gather_capacity",
    "gather_positions",
    "generator_params",
    "l1",
    "l2",
    "l2_to_pretrained",
    "lift",
    "masked_lm",
    "merge_params",
    "next_sentence",
    "next_token",
    "replaced_token",
    "sentence_order",
    "sentence_pretraining",
    "slice_rng",
    "total_loss",
]
