"""Which way up is it? Images turned by 0, 90, 180 and 270 degrees (Gidaris et al. 2018, arXiv:1803.07728)."""

import jax
import jax.numpy as jnp

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Context, Mean, Model, Objective, Params, lift, slice_rng
from jaxptft.objectives.forward import forward, statistics_state
from jaxptft.objectives.views import Images, View, unchanged, view_images

ROTATIONS = 4


def turned(images: Images) -> Images:
    """Every image four times in a row: as it is, then turned counterclockwise by 90, 180 and 270 degrees.

    Raises ValueError where the images are not square.
    """
    _, height, width, _ = images.shape
    if height != width:
        raise ValueError(
            f"the images are {height} x {width}; rotations need squares: give a view that crops or resizes"
        )
    # The rows of an image stay neighbours, so that a batch divided over devices stays where it is.
    copies = jnp.stack([jnp.rot90(images, quarter, axes=(1, 2)) for quarter in range(ROTATIONS)], axis=1)
    return copies.reshape(-1, *images.shape[1:])


def rotation(model: Model, *, view: View | None = None, plain: View | None = None) -> Objective:
    """Softmax cross-entropy over the four rotations of each image, averaged over all rotations of the valid images.

    `model.apply` reads `image` and returns logits [rows, 4]. The batch holds `image`, `ids`, `valid`. Images are seen
    through `view` in training and `plain` else; by default both change nothing. All four rotations of an image are of
    one view.

    Metrics: `rotation/accuracy`. Predictions: `logits` [batch, 4 rotations, 4 classes].
    Raises ValueError where views are not square or the model has other than four classes.
    """

    def rows_of(rng, batch: Batch, train: bool) -> Batch:
        seen = (view if train else plain) or unchanged
        rows = {name: jnp.repeat(jnp.asarray(batch[name]), ROTATIONS) for name in ("ids", "valid")}
        return {"image": turned(view_images(seen, rng, batch)), **rows}

    def logits_of(params: Params, batch: Batch, context: Context):
        viewing, dropout = jax.random.split(context.rng)
        rows = rows_of(viewing, batch, context.train)
        logits, state = forward(model, params, rows, context, slice_rng(dropout, batch) if context.train else None)
        if logits.shape != (len(rows["ids"]), ROTATIONS):
            raise ValueError(
                f"the model gave logits of shape {logits.shape}; expected {(len(rows['ids']), ROTATIONS)}, "
                "four classes: build it with classes=4"
            )
        return logits, rows["valid"], state

    def loss(params, batch, context):
        logits, valid, state = logits_of(params, batch, context)
        label = jnp.arange(len(valid)) % ROTATIONS
        per_row = losses.cross_entropy(logits, label, valid=valid)
        right = (jax.lax.stop_gradient(logits).argmax(-1) == label) & valid
        return (
            {"rotation": Mean(per_row.sum(), valid.sum())},
            ({"rotation/accuracy": Mean(right.sum(), valid.sum())}, state),
        )

    def predict(params, batch, context):
        return {"logits": logits_of(params, batch, context)[0].reshape(-1, ROTATIONS, ROTATIONS)}

    return lift(
        loss,
        init=lambda rng, batch: model.init(rng, rows_of(rng, batch, True)),
        start=lambda params, batch: statistics_state(model, params),
        predict=predict,
        coupled=getattr(model, "statistics", None) is not None,
    )
