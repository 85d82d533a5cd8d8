"""What a model learns: losses over a model's apply, composed by `combine`."""

from jaxptft.objectives.autoencoder import autoencoder
from jaxptft.objectives.beit import beit
from jaxptft.objectives.block_masking import Blocks, block_masks, plan_blocks
from jaxptft.objectives.byol import byol
from jaxptft.objectives.classification import classification
from jaxptft.objectives.combine import combine, merge_params
from jaxptft.objectives.contract import (
    Batch,
    Context,
    Mean,
    Model,
    Objective,
    Params,
    lift,
    slice_rng,
    total_loss,
    with_statistics,
)
from jaxptft.objectives.coral import coral
from jaxptft.objectives.dann import dann, reversal_strength
from jaxptft.objectives.denoising import denoising, gaussian_noise, masking_noise, salt_and_pepper_noise
from jaxptft.objectives.distillation import Match, distillation, match_attention, match_hidden, match_relations
from jaxptft.objectives.drawing import (
    draw_images,
    interpolate_codes,
    interpolate_images,
    reconstruct_images,
    sample_images,
)
from jaxptft.objectives.dvae import annealed, dvae, gumbel_noise, visual_words
from jaxptft.objectives.ema import cosine_decay, ema
from jaxptft.objectives.forward import forward, statistics_state
from jaxptft.objectives.gan import gan
from jaxptft.objectives.layer_map import LayerMap, last_layers, uniform_layers
from jaxptft.objectives.lora import LORA, init_lora, lora, lora_scale, merge_lora
from jaxptft.objectives.mae import Reconstruction, Visible, mae, patch_noise, reconstruct, visible_patches
from jaxptft.objectives.masked_lm import masked_lm
from jaxptft.objectives.masking import Masking, TokenTable, corrupt
from jaxptft.objectives.mixout import mix, mixout
from jaxptft.objectives.mmd import mmd
from jaxptft.objectives.moco import enqueue, moco_v2, moco_v3
from jaxptft.objectives.multi_label import multi_label
from jaxptft.objectives.multiple_choice import multiple_choice
from jaxptft.objectives.next_token import next_token
from jaxptft.objectives.patch_position import patch_position
from jaxptft.objectives.penalty import Penalty, elastic_weight_consolidation, l1, l2, l2_to_pretrained
from jaxptft.objectives.positions import gather_capacity, gather_positions, shared_rows
from jaxptft.objectives.question_answering import answer_places, question_answering
from jaxptft.objectives.r_drop import r_drop
from jaxptft.objectives.regression import regression
from jaxptft.objectives.replaced_token import generator_params, replaced_token
from jaxptft.objectives.response import response, response_tokens
from jaxptft.objectives.rotation import rotation
from jaxptft.objectives.seen_through import seen_through
from jaxptft.objectives.sentence_pair import next_sentence, sentence_order
from jaxptft.objectives.sentence_pretraining import sentence_pretraining
from jaxptft.objectives.simclr import simclr
from jaxptft.objectives.sparse import sparse
from jaxptft.objectives.token_classification import token_classification
from jaxptft.objectives.transformed import transformed
from jaxptft.objectives.vae import example_noise, vae
from jaxptft.objectives.views import example_keys, two_views, unchanged, view_images

__all__ = [
    "Batch",
    "Blocks",
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
    "Reconstruction",
    "TokenTable",
    "Visible",
    "annealed",
    "answer_places",
    "autoencoder",
    "beit",
    "block_masks",
    "byol",
    "classification",
    "combine",
    "coral",
    "corrupt",
    "cosine_decay",
    "dann",
    "denoising",
    "distillation",
    "draw_images",
    "dvae",
    "elastic_weight_consolidation",
    "ema",
    "enqueue",
    "example_keys",
    "example_noise",
    "forward",
    "gan",
    "gather_capacity",
    "gather_positions",
    "shared_rows",
    "gaussian_noise",
    "generator_params",
    "gumbel_noise",
    "init_lora",
    "interpolate_codes",
    "interpolate_images",
    "l1",
    "l2",
    "l2_to_pretrained",
    "last_layers",
    "lift",
    "lora",
    "lora_scale",
    "mae",
    "masked_lm",
    "masking_noise",
    "match_attention",
    "match_hidden",
    "match_relations",
    "merge_lora",
    "merge_params",
    "mix",
    "mixout",
    "mmd",
    "moco_v2",
    "moco_v3",
    "multi_label",
    "multiple_choice",
    "next_sentence",
    "next_token",
    "patch_noise",
    "patch_position",
    "plan_blocks",
    "question_answering",
    "r_drop",
    "reconstruct",
    "reconstruct_images",
    "regression",
    "replaced_token",
    "response",
    "response_tokens",
    "reversal_strength",
    "rotation",
    "salt_and_pepper_noise",
    "sample_images",
    "seen_through",
    "sentence_order",
    "sentence_pretraining",
    "simclr",
    "slice_rng",
    "sparse",
    "statistics_state",
    "token_classification",
    "total_loss",
    "transformed",
    "two_views",
    "unchanged",
    "uniform_layers",
    "vae",
    "view_images",
    "visible_patches",
    "visual_words",
    "with_statistics",
]
