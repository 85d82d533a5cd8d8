"""Losses: arrays in, arrays out. One value per example or position, unreduced; penalties return a scalar."""

from jaxptft.losses.binary_cross_entropy import binary_cross_entropy
from jaxptft.losses.contrastive import (
    info_nce,
    info_nce_logits,
    normalized_squared_error,
    nt_xent,
    nt_xent_logits,
    symmetric_info_nce,
    uniformity,
    unit_rows,
)
from jaxptft.losses.coral import coral, covariance
from jaxptft.losses.cross_entropy import cross_entropy, cross_entropy_weights
from jaxptft.losses.distillation import distillation_kl
from jaxptft.losses.domain import domain_cross_entropy, reverse_gradient
from jaxptft.losses.gan import gan_discriminator, gan_generator
from jaxptft.losses.layer_matching import attention_kl, attention_mse, hidden_cosine, hidden_mse, relation_kl
from jaxptft.losses.masked_tokens import masked_token_cross_entropy
from jaxptft.losses.mmd import MULTIPLES, linear_mmd, median_squared_distance, squared_mmd
from jaxptft.losses.next_token import next_token_cross_entropy, next_tokens
from jaxptft.losses.patches import masked_patch_error, normalise_patches, patch_moments, patchify, unpatchify
from jaxptft.losses.penalties import elastic_weight, l1, l2, l2_to_pretrained
from jaxptft.losses.reconstruction import image_cross_entropy, image_gaussian_nll, image_squared_error
from jaxptft.losses.regression import mean_squared_error
from jaxptft.losses.replaced_token import replaced_token_cross_entropy
from jaxptft.losses.similarity import linear_cka
from jaxptft.losses.spans import span_cross_entropy
from jaxptft.losses.sparsity import activity_kl, activity_l1
from jaxptft.losses.symmetric_kl import symmetric_kl
from jaxptft.losses.uniform_kl import uniform_kl
from jaxptft.losses.vae import gaussian_kl

__all__ = [
    "MULTIPLES",
    "activity_kl",
    "activity_l1",
    "attention_kl",
    "attention_mse",
    "binary_cross_entropy",
    "coral",
    "covariance",
    "cross_entropy",
    "cross_entropy_weights",
    "distillation_kl",
    "domain_cross_entropy",
    "elastic_weight",
    "gan_discriminator",
    "gan_generator",
    "gaussian_kl",
    "hidden_cosine",
    "hidden_mse",
    "image_cross_entropy",
    "image_gaussian_nll",
    "image_squared_error",
    "info_nce",
    "info_nce_logits",
    "l1",
    "l2",
    "l2_to_pretrained",
    "linear_cka",
    "linear_mmd",
    "masked_patch_error",
    "masked_token_cross_entropy",
    "mean_squared_error",
    "median_squared_distance",
    "next_token_cross_entropy",
    "next_tokens",
    "normalise_patches",
    "normalized_squared_error",
    "nt_xent",
    "nt_xent_logits",
    "patch_moments",
    "patchify",
    "relation_kl",
    "replaced_token_cross_entropy",
    "reverse_gradient",
    "span_cross_entropy",
    "squared_mmd",
    "symmetric_info_nce",
    "symmetric_kl",
    "uniform_kl",
    "uniformity",
    "unit_rows",
    "unpatchify",
]
