"""Sparse autoencoders: of a code that may be long, few units are active for any one image.

"kl" holds each unit's mean activity over the batch near a small rate (Ng 2011, "Sparse autoencoder", CS294A lecture
notes, section 3); "l1" adds the sum of absolute values of each code to its error.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxptft import losses
from jaxptft.objectives.autoencoder import Likelihood, autoencoding
from jaxptft.objectives.contract import Mean, Model, Objective
from jaxptft.objectives.views import View, unchanged


def sparse(
    encoder: Model,
    decoder: Model,
    *,
    sparsity: Literal["kl", "l1"] = "kl",
    weight: float = 1.0,
    activity: float = 0.05,
    likelihood: Likelihood = "gaussian",
    view: View = unchanged,
    plain: View = unchanged,
) -> Objective:
    """As `autoencoder`, with `weight` times a penalty on the codes.

    For "kl" codes lie between 0 and 1 (an encoder that ends in a sigmoid), and each unit's mean over the valid rows of
    the whole batch, on all devices, is to be `activity`; codes of another kind make the loss NaN.

    Terms: `sparse/reconstruction`, and `sparse/penalty` with `weight` in it. Metrics: `sparse/pixel_error`, and
    `sparse/activity`, the mean absolute value of the codes. Predictions: `features`, the codes.
    Raises ValueError on another kind of sparsity, a negative weight, an activity outside (0, 1), and as `autoencoder`.
    """
    if sparsity not in ("kl", "l1"):
        raise ValueError(f"sparsity is {sparsity!r}; expected 'kl' or 'l1'")
    if not weight >= 0:
        raise ValueError(f"the weight of sparsity must be at least 0, got {weight}")
    if not 0 < activity < 1:
        raise ValueError(f"activity is {activity!r}; expected how often a unit shall be active, between 0 and 1")

    def penalty(codes, batch, context):
        valid = batch["valid"]
        sums = jnp.where(valid[:, None], jnp.asarray(codes, jnp.float32), 0.0)
        size = jnp.abs(jax.lax.stop_gradient(sums)).sum()
        metrics = {"sparse/activity": Mean(size, valid.sum() * codes.shape[1])}
        if sparsity == "l1":
            each = losses.activity_l1(codes, valid=valid)
            return {"sparse/penalty": Mean(weight * each.sum(), valid.sum())}, metrics
        total, count = sums.sum(axis=0), valid.sum()
        if context.axis_name is not None:
            total, count = jax.lax.psum((total, count), context.axis_name)
        held = losses.activity_kl(total / jnp.maximum(count, 1), activity)
        # Every device has the same number, and a batch without rows none.
        return {"sparse/penalty": Mean(weight * jnp.where(count > 0, held, 0.0), jnp.ones(()))}, metrics

    options = {"likelihood": likelihood, "view": view, "plain": plain}
    return autoencoding(
        "sparse",
        encoder,
        decoder,
        term="sparse/reconstruction",
        penalty=penalty,
        coupled=sparsity == "kl",
        **options,
    )
