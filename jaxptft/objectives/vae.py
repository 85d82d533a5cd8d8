"""Variational autoencoders: a code is a Gaussian, which the images and the standard Gaussian pull at.

    loss = - E_z [log p(x | z)] + beta KL(q(z | x) || N(0, 1))        z = m + exp(s / 2) noise,  noise ~ N(0, 1)

Kingma and Welling 2014, arXiv:1312.6114, sections 2.3, 2.4 and 3; Higgins et al. 2017, "beta-VAE", for beta. With beta
1 the loss is the negative of a lower bound (elbo) of the images' log-likelihood.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxptft import losses
from jaxptft.objectives.autoencoder import (
    Likelihood,
    batch_bound,
    check_likelihood,
    drawn,
    pixel_error,
    shaped,
    start_of,
)
from jaxptft.objectives.contract import Batch, Context, Mean, Model, Objective, Params, lift, slice_rng
from jaxptft.objectives.forward import forward
from jaxptft.objectives.views import View, example_keys, unchanged, view_images

LIKELIHOOD = "likelihood"
"""The key in the parameters of the pixels' variance, where it is learnt: {"log_variance": [1]}."""

_EVEN = math.log(1 / 12)  # of the variance of numbers spread evenly from 0 to 1, where a learnt one starts


class Posterior(NamedTuple):
    """The Gaussian of each image's code."""

    mean: Float[Array, "batch latent"]
    log_variance: Float[Array, "batch latent"]


def example_noise(rng: PRNGKeyArray, ids: Int[Array, " batch"], size: int) -> Float[Array, "batch size"]:
    """Standard normal numbers for each example, by its id."""
    return jax.vmap(lambda key: jax.random.normal(key, (size,)))(example_keys(rng, ids))


def vae(
    encoder: Model,
    decoder: Model,
    *,
    latent_mean: Model,
    latent_log_variance: Model,
    beta: float = 1.0,
    likelihood: Likelihood = "bernoulli",
    learn_variance: bool = False,
    view: View = unchanged,
    plain: View = unchanged,
) -> Objective:
    """The negative log-likelihood of each image drawn from one sample of its code, plus `beta` times the divergence.

    `encoder.apply` gives vectors [batch, width] of `batch["image"]`; the two heads read them as `batch["features"]` and
    give [batch, latent]; `decoder.apply` gives logits of pixels from codes in `batch["features"]`. Both parts of the
    loss are summed (over pixels, over the code), in nats, and averaged over valid images. Pixels are Bernoulli, or
    Gaussian of variance 1, or with `learn_variance` of one variance that is learnt, a parameter under `likelihood`.
    (Of pixels from 0 to 1 a variance of 1 says little: unless `beta` is small, codes then come to say nothing.)
    Images are seen through `view` in training and `plain` else, both from 0 to 1. Codes are sampled by the examples'
    ids; evaluation samples too: with one key, always alike.

    Metrics: `vae/reconstruction` (the negative log-likelihood), `vae/kl`, `vae/elbo`, and `vae/pixel_error`.
    Predictions: `features` [batch, width], and `latent` [batch, latent], the means of the codes.
    Raises ValueError on a negative beta, another likelihood, a variance to be learnt of Bernoulli pixels, and in
    tracing where the decoder draws images of another shape.
    """
    check_likelihood(likelihood)
    if not beta >= 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    if learn_variance and likelihood != "gaussian":
        raise ValueError("learn_variance is for Gaussian pixels, and these are Bernoulli: leave it out")
    heads = (latent_mean, latent_log_variance)
    parts = (encoder, *heads, decoder)

    def init(rng, batch):
        viewing, below, *between, above = jax.random.split(rng, 5)
        seen = {**batch, "image": view_images(view, viewing, batch)}
        params = encoder.init(below, seen)
        read = {**seen, "features": shaped(encoder, params, seen)}
        for head, key in zip(heads, between, strict=True):
            params = {**params, **head.init(key, read)}
        code = _rows(jnp.zeros(jax.eval_shape(lambda params: latent_mean.apply(params, read), params).shape))
        params = {**params, **decoder.init(above, {**read, "features": code})}
        return {**params, LIKELIHOOD: {"log_variance": jnp.full((1,), _EVEN)}} if learn_variance else params

    def encode(params: Params, batch: Batch, images: Array, context: Context, rng: PRNGKeyArray):
        """Vectors, codes, and the state."""
        keys = jax.random.split(slice_rng(rng, batch), 3)
        vectors, state = forward(encoder, params, {**batch, "image": images}, context, keys[0])
        found = []
        for head, key in zip(heads, keys[1:], strict=True):
            rows, state = forward(head, params, {**batch, "features": vectors}, context._replace(state=state), key)
            found.append(_rows(rows))
        return vectors, Posterior(*found), state

    def loss(params, batch, context):
        viewing, sampling, below, above = jax.random.split(context.rng, 4)
        images, valid = view_images(view if context.train else plain, viewing, batch), batch["valid"]
        _, code, state = encode(params, batch, images, context, below)
        noise = example_noise(sampling, batch["ids"], code.mean.shape[1])
        sample = code.mean + jnp.exp(0.5 * code.log_variance) * noise
        logits, state = drawn(decoder, params, sample, images, batch, context._replace(state=state), above)
        if likelihood == "bernoulli":
            nll = losses.image_cross_entropy(logits, images, valid=valid)
        else:
            log_variance = params[LIKELIHOOD]["log_variance"][0] if learn_variance else 0.0
            nll = losses.image_gaussian_nll(jax.nn.sigmoid(logits), images, log_variance, valid=valid)
        kl = losses.gaussian_kl(*code, valid=valid)
        metrics = {
            "vae/reconstruction": Mean(nll.sum(), valid.sum()),
            "vae/kl": Mean(kl.sum(), valid.sum()),
            "vae/elbo": Mean(-(nll + kl).sum(), valid.sum()),
            "vae/pixel_error": pixel_error(jax.nn.sigmoid(logits), images, valid),
        }
        return {"vae": Mean((nll + beta * kl).sum(), valid.sum())}, (metrics, state)

    def predict(params, batch, context):
        images = view_images(plain, context.rng, batch)
        vectors, code, _ = encode(params, batch, images, context, context.rng)
        return {"features": vectors, "latent": code.mean}

    return lift(
        loss,
        init=init,
        start=lambda params, batch: start_of(parts, params),
        predict=predict,
        coupled=batch_bound(parts),
    )


def _rows(x: Array) -> Float[Array, "batch latent"]:
    """A head of one output gives [batch]."""
    return x.reshape(len(x), -1)
