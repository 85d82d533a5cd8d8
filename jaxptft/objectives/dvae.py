"""A discrete variational autoencoder: images are drawn again from a grid of words, which all are to be used.

    loss = mean squared error of the pixels + kl_weight * mean over patches of KL(q(word | image) || uniform)

Ramesh et al. 2021, arXiv:2102.12092, section 2.1. A word cannot be chosen with a gradient, so in training each patch
has weights of all words instead (Jang et al. 2017, arXiv:1611.01144, equation 2; Maddison et al. 2017):

    softmax((logits + Gumbel noise) / temperature)

The lower the temperature, the nearer this is to one word; it falls as training goes on. Outside training a patch has
its likeliest word alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxptft import losses
from jaxptft.objectives.contract import Mean, Model, Objective, Params, lift
from jaxptft.objectives.views import Images, View, example_keys, unchanged, view_images


def annealed(steps: int, *, first: float = 1.0, last: float = 1 / 16) -> Callable[[Array | int], Float[Array, ""]]:
    """The temperature by step: from `first` it falls by the same factor each step, is `last` at `steps`, and stays.

    Jang et al. anneal by exp(-rate * step) too; the ends are those of Ramesh et al.

    Raises ValueError where `steps` is below 1, or the temperatures do not fall and stay above 0.

    >>> [round(float(annealed(10, last=0.25)(step)), 4) for step in (0, 5, 10, 99)]
    [1.0, 0.5, 0.25, 0.25]
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1")
    if not 0 < last <= first:
        raise ValueError(f"the temperature goes from {first} to {last}; expected it to fall, and stay above 0")

    def temperature(step):
        return jnp.float32(first) * jnp.power(last / first, jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0))

    return temperature


def gumbel_noise(rng: PRNGKeyArray, ids: Int[Array, " batch"], shape: tuple[int, ...]) -> Float[Array, "batch ..."]:
    """Gumbel noise of a `shape` for each example, by its id."""
    return jax.vmap(lambda key: jax.random.gumbel(key, shape))(example_keys(rng, ids))


def visual_words(model: Model, params: Params, images: Images) -> Int[Array, "batch patches"]:
    """The likeliest word of each patch of images as the model reads them, row by row of the grid."""
    logits = model.apply(params, {"image": images}, train=False)
    return logits.argmax(-1).reshape(len(images), -1)


def dvae(
    model: Model,
    *,
    temperature: Callable[[Array | int], Array],
    kl_weight: float = 1e-2,
    view: View = unchanged,
    plain: View = unchanged,
) -> Objective:
    """Both parts of the loss, each averaged over valid images.

    `model.apply` gives logits [batch, rows, columns, vocab] for a batch with `image`, and images for one with `words`,
    weights of the logits' shape; `models.dvae` makes one. `temperature` is a function of the step; the state holds
    where it is. The batch holds `image`, `ids`, `valid`; images are seen through `view` in training and `plain` else,
    and drawn as they are seen. The noise goes by the examples' ids.

    Metrics: `dvae/used`, the share of all words that a batch has as the likeliest of some patch, and `dvae/perplexity`,
    how many it has were they equally frequent. Predictions: `error` [batch], the squared error of a pixel, and `words`
    [batch, patches].
    Raises ValueError on a negative weight, and in tracing where the model draws images of another shape.
    """
    if not kl_weight >= 0:
        raise ValueError(f"kl_weight must be at least 0, got {kl_weight}")

    def init(rng, batch):
        return model.init(rng, {**batch, "image": view_images(view, rng, batch)})

    def passed(params, batch, context):
        """The logits of the words, and the mean squared error of each image."""
        viewing, sampling = jax.random.split(context.rng)
        images = view_images(view if context.train else plain, viewing, batch)
        logits = model.apply(params, {"image": images}, train=context.train)
        if context.train:
            noise = gumbel_noise(sampling, batch["ids"], logits.shape[1:])
            words = jax.nn.softmax((logits + noise) / context.state["temperature"])
        else:
            words = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])
        drawn = model.apply(params, {"words": words}, train=context.train)
        if drawn.shape != images.shape:
            raise ValueError(f"the model draws images of shape {drawn.shape[1:]}, and these have {images.shape[1:]}")
        return logits, jnp.square(drawn - images).mean(axis=(1, 2, 3))

    def loss(params, batch, context):
        valid = batch["valid"]
        logits, errors = passed(params, batch, context)
        divergence = losses.uniform_kl(logits)
        terms = {
            "dvae/reconstruction": Mean(jnp.where(valid, errors, 0.0).sum(), valid.sum()),
            "dvae/kl": Mean(kl_weight * jnp.where(valid, divergence, 0.0).sum(), valid.sum()),
        }
        counts = _counts(jax.lax.stop_gradient(logits), valid)
        counts = counts if context.axis_name is None else jax.lax.psum(counts, context.axis_name)
        share, one = counts / jnp.maximum(counts.sum(), 1), jnp.ones(())
        entropy = -(share * jnp.log(jnp.where(share > 0, share, 1.0))).sum()
        return terms, {"dvae/used": Mean((counts > 0).mean(), one), "dvae/perplexity": Mean(jnp.exp(entropy), one)}

    def predict(params, batch, context):
        logits, errors = passed(params, batch, context)
        return {"error": errors, "words": logits.argmax(-1).reshape(len(errors), -1)}

    return lift(
        loss,
        init=init,
        start=lambda params, batch: {"temperature": temperature(0)},
        prepare=lambda params, state, step: {**state, "temperature": temperature(step)},
        predict=predict,
    )


def _counts(logits: Float[Array, "batch rows columns vocab"], valid: Array) -> Float[Array, " vocab"]:
    """How often each word is the likeliest of a patch of a valid image."""
    words = logits.argmax(-1).reshape(len(valid), -1)
    weights = jnp.broadcast_to(valid[:, None], words.shape).astype(jnp.float32)
    return jnp.zeros(logits.shape[-1]).at[words.reshape(-1)].add(weights.reshape(-1))
