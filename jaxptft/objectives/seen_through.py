"""Any objective on images that are seen through a view: changed at random in training, plainly normalised else."""

import zlib

import jax

from jaxptft.objectives.contract import Batch, Context, Objective
from jaxptft.objectives.views import View, unchanged, view_images

_SCOPE = zlib.crc32(b"seen_through")


def seen_through(objective: Objective, *, view: View = unchanged, plain: View = unchanged) -> Objective:
    """`objective` on `view` of `batch["image"]` in training, drawn by each example's id, and on `plain` else."""

    def seen(batch: Batch, context: Context) -> Batch:
        rng = jax.random.fold_in(context.rng, _SCOPE)
        return {**batch, "image": view_images(view if context.train else plain, rng, batch)}

    def at_rest(batch: Batch) -> Batch:
        return {**batch, "image": view_images(plain, jax.random.key(0), batch)}

    return objective._replace(
        init=lambda rng, batch: objective.init(rng, at_rest(batch)),
        start=lambda params, batch: objective.start(params, at_rest(batch)),
        loss=lambda params, batch, context: objective.loss(params, seen(batch, context), context),
        predict=lambda params, batch, context: objective.predict(params, seen(batch, context), context),
    )
