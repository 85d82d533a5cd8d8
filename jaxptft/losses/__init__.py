"""Losses: arrays in, arrays out. One value per example or position, unreduced; penalties return a scalar."""

from jaxptft.losses.cross_entropy import cross_entropy, cross_entropy_weights
from jaxptft.losses.distillation import distillation_kl
from jaxptft.losses.masked_tokens import masked_token_cross_entropy
from jaxptft.losses.next_token import next_token_cross_entropy, next_tokens
from jaxptft.losses.penalties import l1, l2, l2_to_pretrained
from jaxptft.losses.regression import mean_squared_error
from jaxptft.losses.replaced_token import replaced_token_cross_entropy

__all__ = [
    "cross_entropy",
    "cross_entropy_weights",
    "distillation_kl",
    "l1",
    "l2",
    "l2_to_pretrained",
    "masked_token_cross_entropy",
    "mean_squared_error",
    "next_token_cross_entropy",
    "next_tokens",
    "replaced_token_cross_entropy",
]
