"""Autoencoders: images are made into codes, and drawn again from them.

Rumelhart, Hinton and Williams 1986; Hinton and Salakhutdinov 2006, "Reducing the dimensionality of data with neural
networks". The denoising and the sparse one are made here too (`autoencoding`).

What draws gives logits of pixels, whose sigmoid is the image: its pixels lie between 0 and 1, as those of the images
have to (Kingma and Welling 2014, arXiv:1312.6114, appendix C.2, have it so for Gaussian pixels too).
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Context, Mean, Metrics, Model, Objective, Params, Terms, lift, slice_rng
from jaxptft.objectives.forward import forward, statistics_state
from jaxptft.objectives.views import Images, View, unchanged, view_images

Likelihood = Literal["gaussian", "bernoulli"]
Penalty = Callable[[Array, Batch, Context], tuple[Terms, Metrics]]


def autoencoder(
    encoder: Model,
    decoder: Model,
    *,
    likelihood: Likelihood = "gaussian",
    view: View = unchanged,
    plain: View = unchanged,
) -> Objective:
    """The error of the images drawn from the codes of the batch's, summed over pixels, averaged over valid images.

    `encoder.apply` gives codes [batch, size] of `batch["image"]`, and `decoder.apply` logits of pixels, of the images'
    shape, from codes in `batch["features"]`. The error is squared ("gaussian"), or the cross-entropy of each pixel
    ("bernoulli"). Images are seen through `view` in training and `plain` else, both from 0 to 1.

    Metrics: `autoencoder/pixel_error`, the squared error of a pixel. Predictions: `features`, the codes [batch, size].
    Raises ValueError on another likelihood, and in tracing where the decoder draws images of another shape.
    """
    return autoencoding("autoencoder", encoder, decoder, likelihood=likelihood, view=view, plain=plain)


def autoencoding(
    name: str,
    encoder: Model,
    decoder: Model,
    *,
    likelihood: Likelihood,
    view: View,
    plain: View,
    term: str | None = None,
    spoil: View | None = None,
    penalty: Penalty | None = None,
    coupled: bool = False,
) -> Objective:
    """An autoencoder that reads images through `spoil`, and whose codes have a `penalty`: terms and metrics of it.

    `term` names that of the error, `name` if None. `coupled` says that the penalty is one of the whole batch.
    """
    check_likelihood(likelihood)
    parts = (encoder, decoder)

    def codes_of(params: Params, batch: Batch, context: Context, images: Images, rng: PRNGKeyArray):
        return forward(encoder, params, {**batch, "image": images}, context, slice_rng(rng, batch))

    def init(rng, batch):
        below, above, viewing = jax.random.split(rng, 3)
        seen = {**batch, "image": view_images(view, viewing, batch)}
        params = encoder.init(below, seen)
        return {**params, **decoder.init(above, {**seen, "features": shaped(encoder, params, seen)})}

    def loss(params, batch, context):
        viewing, spoiling, below, above = jax.random.split(context.rng, 4)
        images, valid = view_images(view if context.train else plain, viewing, batch), batch["valid"]
        seen = images if spoil is None else view_images(spoil, spoiling, {**batch, "image": images})
        codes, state = codes_of(params, batch, context, seen, below)
        logits, state = drawn(decoder, params, codes, images, batch, context._replace(state=state), above)
        terms = {term or name: Mean(image_error(likelihood, logits, images, valid).sum(), valid.sum())}
        metrics = {f"{name}/pixel_error": pixel_error(jax.nn.sigmoid(logits), images, valid)}
        if spoil is not None:
            metrics[f"{name}/spoilt_error"] = pixel_error(seen, images, valid)
        if penalty is not None:
            more, measured = penalty(codes, batch, context)
            terms, metrics = terms | more, metrics | measured
        return terms, (metrics, state)

    def predict(params, batch, context):
        images = view_images(plain, context.rng, batch)
        return {"features": codes_of(params, batch, context, images, context.rng)[0]}

    return lift(
        loss,
        init=init,
        start=lambda params, batch: start_of(parts, params),
        predict=predict,
        coupled=coupled or batch_bound(parts),
    )


def check_likelihood(likelihood: str) -> None:
    """ValueError where it is none."""
    if likelihood not in get_args(Likelihood):
        raise ValueError(f"likelihood is {likelihood!r}; expected 'gaussian' or 'bernoulli'")


def batch_bound(parts: tuple[Model, ...]) -> bool:
    """Whether any of the models normalizes by the statistics of batches."""
    return any(getattr(part, "statistics", None) is not None for part in parts)


def start_of(parts: tuple[Model, ...], params: Params) -> dict[str, Any]:
    """What `start` holds for several models whose parameters are side by side."""
    held: dict[str, Any] = {}
    for part in parts:
        held |= statistics_state(part, params).get("statistics", {})
    return {"statistics": held} if held else {}


def shaped(encoder: Model, params: Params, batch: Batch) -> Float[Array, "batch size"]:
    """Zeros of the shape of the encoder's codes. Raises ValueError where these are not one vector an image."""
    shape = jax.eval_shape(lambda params: encoder.apply(params, batch, rng=None, train=False), params)
    if len(shape.shape) != 2:
        raise ValueError(f"the encoder gives an array of shape {shape.shape}; expected codes [batch, size]")
    return jnp.zeros(shape.shape, shape.dtype)


def drawn(
    decoder: Model, params: Params, codes: Array, images: Images, batch: Batch, context: Context, rng: PRNGKeyArray
) -> tuple[Images, Any]:
    """Logits of the pixels drawn from the codes, and the state. ValueError where they do not have the images' shape."""
    read = {**batch, "features": codes}
    logits, state = forward(decoder, params, read, context, slice_rng(rng, batch))
    if logits.shape != images.shape:
        raise ValueError(f"the decoder drew images of shape {logits.shape}; expected {images.shape}, the view's")
    return logits, state


def image_error(likelihood: Likelihood, logits: Images, images: Images, valid: Array) -> Float[Array, " batch"]:
    """The error of each image, summed over its pixels."""
    if likelihood == "bernoulli":
        return losses.image_cross_entropy(logits, images, valid=valid)
    return losses.image_squared_error(jax.nn.sigmoid(logits), images, valid=valid)


def pixel_error(images: Images, targets: Images, valid: Array) -> Mean:
    """The squared error of a pixel."""
    error = losses.image_squared_error(jax.lax.stop_gradient(images), targets, valid=valid)
    return Mean(error.sum(), valid.sum() * (targets.size // len(targets)))
