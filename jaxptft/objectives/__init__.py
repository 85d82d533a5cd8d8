"""What a model learns: losses over a model's apply, composed by `combine`."""

from jaxptft.objectives.classification import classification
from jaxptft.objectives.combine import combine, merge_params
from jaxptft.objectives.contract import Batch, Context, Mean, Model, Objective, Params, lift, slice_rng, total_loss
from jaxptft.objectives.coral import coral
from jaxptft.objectives.dann import dann, reversal_strength
from jaxptft.objectives.distillation import Match, distillation, match_attention, match_hidden, match_relations
from jaxptft.objectives.layer_map import LayerMap, last_layers, uniform_layers
from jaxptft.objectives.lora import LORA, init_lora, lora, lora_scale, merge_lora
from jaxptft.objectives.masked_lm import masked_lm
from jaxptft.objectives.masking import Masking, TokenTable, corrupt
from jaxptft.objectives.mixout import mix, mixout
from jaxptft.objectives.mmd import mmd
from jaxptft.objectives.multi_label import multi_label
from jaxptft.objectives.multiple_choice import multiple_choice
from jaxptft.objectives.next_token import next_token
from jaxptft.objectives.penalty import Penalty, elastic_weight_consolidation, l1, l2, l2_to_pretrained
from jaxptft.objectives.positions import gather_capacity, gather_positions
from jaxptft.objectives.question_answering import question_answering
from jaxptft.objectives.r_drop import r_drop
from jaxptft.objectives.regression import regression
from jaxptft.objectives.replaced_token import generator_params, replaced_token
from jaxptft.objectives.response import response
from jaxptft.objectives.sentence_pair import next_sentence, sentence_order
from jaxptft.objectives.sentence_pretraining import sentence_pretraining
from jaxptft.objectives.token_classification import token_classification
from jaxptft.objectives.transformed import transformed

__all__ = [
    "Batch",
    "Context",
    "LORA",
    "LayerMap",
    "Masking",
    "Match",
    "Mean",
    "Model",
    "Objective",
    "Params",
    "Penalty",
    "TokenTable",
    "classification",
    "combine",
    "coral",
    "corrupt",
    "dann",
    "distillation",
    "elastic_weight_consolidation",
    "gather_capacity",
    "gather_positions",
    "generator_params",
    "init_lora",
    "l1",
    "l2",
    "l2_to_pretrained",
    "last_layers",
    "lift",
    "lora",
    "lora_scale",
    "masked_lm",
    "match_attention",
    "match_hidden",
    "match_relations",
    "merge_lora",
    "merge_params",
    "mix",
    "mixout",
    "mmd",
    "multi_label",
    "multiple_choice",
    "next_sentence",
    "next_token",
    "question_answering",
    "r_drop",
    "regression",
    "replaced_token",
    "response",
    "reversal_strength",
    "sentence_order",
    "sentence_pretraining",
    "slice_rng",
    "token_classification",
    "total_loss",
    "transformed",
    "uniform_layers",
]
