"""Adversarial networks: one draws images from noise, the other tells them from real ones.

Goodfellow et al. 2014, arXiv:1406.2661, equation 1 and section 3. Both learn in one step from one loss with two
stops: the discriminator's term sees the drawn images as constants, and the generator's term the discriminator. Give
each its own clipping (`optim.plan_adamw(clip_apart=("generator/**",))`). The discriminator's features are what
transfers (Radford et al. 2016, arXiv:1511.06434, section 5.1).
"""

import jax
import jax.numpy as jnp

from jaxptft import losses
from jaxptft.objectives.autoencoder import batch_bound, start_of
from jaxptft.objectives.contract import Context, Mean, Model, Objective, Params, lift, slice_rng
from jaxptft.objectives.forward import forward
from jaxptft.objectives.vae import example_noise
from jaxptft.objectives.views import View, unchanged, view_images


def gan(
    discriminator: Model,
    generator: Model,
    *,
    encoder: Model,
    noise: int,
    view: View = unchanged,
    plain: View = unchanged,
) -> Objective:
    """The losses of both, `losses.gan_discriminator` and the non-saturating `losses.gan_generator`, over valid rows.

    `discriminator.apply` gives a logit [batch] of `batch["image"]`, above 0 for a real one, and `generator.apply`
    logits of pixels from `batch["noise"]` [batch, noise], standard normal numbers drawn by the example's id (in
    training anew in each step; in evaluation, with one key, always alike). Parameters are side by side, the generator's
    under keys of its own. For each image one is drawn. Batch norms see real and drawn images apart. Images are seen
    through `view` in training and `plain` else, both from 0 to 1.

    Terms: `gan/discriminator`, `gan/generator`. Metrics: `gan/real_accuracy`, `gan/drawn_accuracy`, how often the
    discriminator is right. Predictions: `features`, of `encoder` (the discriminator without its head) for the images.
    Raises ValueError where `noise` is below 1, and in tracing on logits or drawn images of another shape.
    """
    if noise < 1:
        raise ValueError(f"noise is {noise}; expected at least 1 number to draw an image from")
    parts = (discriminator, generator)

    def init(rng, batch):
        judging, drawing, viewing = jax.random.split(rng, 3)
        seen = {**batch, "image": view_images(view, viewing, batch)}
        params = discriminator.init(judging, seen)
        more = generator.init(drawing, {**batch, "noise": jnp.zeros((len(batch["ids"]), noise))})
        if shared := sorted(params.keys() & more.keys()):
            raise ValueError(
                f"discriminator and generator both keep parameters under {shared[0]!r}; give one another key"
            )
        return {**params, **more}

    def loss(params, batch, context):
        viewing, drawing, *dropout = jax.random.split(context.rng, 5)
        rngs = [slice_rng(key, batch) for key in dropout]
        images, valid = view_images(view if context.train else plain, viewing, batch), batch["valid"]
        numbers = example_noise(drawing, batch["ids"], noise)
        logits, state = forward(generator, params, {**batch, "noise": numbers}, context, rngs[0])
        if logits.shape != images.shape:
            raise ValueError(f"the generator drew images of shape {logits.shape}; expected {images.shape}, the view's")
        made, frozen = jax.nn.sigmoid(logits), jax.lax.stop_gradient(params)

        def judged(params: Params, images, state, rng):
            seen: Context = context._replace(state=state)
            found, state = forward(discriminator, params, {**batch, "image": images}, seen, rng)
            if found.shape != valid.shape:
                raise ValueError(f"the discriminator gave logits of shape {found.shape}; expected {valid.shape}")
            return found, state

        real, state = judged(params, images, state, rngs[1])
        drawn, renewed = judged(params, jax.lax.stop_gradient(made), state, rngs[2])
        seen_through, _ = judged(frozen, made, state, rngs[2])
        terms = {
            "gan/discriminator": Mean(losses.gan_discriminator(real, drawn, valid=valid).sum(), valid.sum()),
            "gan/generator": Mean(losses.gan_generator(seen_through, valid=valid).sum(), valid.sum()),
        }
        metrics = {
            "gan/real_accuracy": Mean(((real > 0) & valid).sum(), valid.sum()),
            "gan/drawn_accuracy": Mean(((drawn < 0) & valid).sum(), valid.sum()),
        }
        return terms, (metrics, renewed)

    def predict(params, batch, context):
        seen = {**batch, "image": view_images(plain, context.rng, batch)}
        return {"features": forward(encoder, params, seen, context, slice_rng(context.rng, batch))[0]}

    return lift(
        loss,
        init=init,
        start=lambda params, batch: start_of(parts, params),
        predict=predict,
        coupled=batch_bound(parts),
    )
