"""What SimCLR, MoCo and BYOL share: two views of each example, and rows of this device among those of all."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxptft.objectives.contract import Batch, Context, Model, Params, slice_rng
from jaxptft.objectives.forward import forward
from jaxptft.objectives.views import View, two_views, view_images

Views = View | Sequence[View] | None


class Everyone(NamedTuple):
    """The rows of all devices, which of them count, and the number of this device's first."""

    rows: Float[Array, "rows width"]
    valid: Bool[Array, " rows"]
    first: int | Int[Array, ""]


def check_temperature(temperature: float) -> float:
    """`temperature` itself. Raises ValueError where it is not positive."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return temperature


def view_pair(views: Views, plain: View, rng: PRNGKeyArray, batch: Batch) -> tuple[Batch, Batch]:
    """The batch twice, each time with other views of its images; without `views` as `plain_batch` gives it."""
    if views is None:
        seen = plain_batch(plain, batch)
        return seen, seen
    first, second = two_views(views, rng, batch)
    return {**batch, "image": first}, {**batch, "image": second}


def plain_batch(plain: View, batch: Batch) -> Batch:
    """The batch as a model reads it outside training: its images, if any, through `plain`."""
    return {**batch, "image": view_images(plain, jax.random.key(0), batch)} if "image" in batch else batch


def shaped_batch(views: Views, plain: View, batch: Batch) -> Batch:
    """A batch of the shapes that the model reads in training, for its `init`."""
    seen, _ = jax.eval_shape(lambda batch: view_pair(views, plain, jax.random.key(0), batch), batch)
    return {**batch, "image": jnp.zeros(seen["image"].shape)} if "image" in batch else batch


def pass_keys(rng: PRNGKeyArray, batch: Batch, context: Context, passes: int) -> Sequence[PRNGKeyArray | None]:
    """A key of dropout for each of several passes; None outside training."""
    return list(jax.random.split(slice_rng(rng, batch), passes)) if context.train else [None] * passes


def everyone(rows: Array, valid: Array, axis_name: str | None) -> Everyone:
    """The rows of all devices of a mapped axis, in the order of the whole batch.

    The transpose sums what the devices derive from a row, so that the gradient is exact too.
    """
    if axis_name is None:
        return Everyone(rows, valid, 0)
    whole = [jax.lax.all_gather(leaf, axis_name, tiled=True) for leaf in (rows, valid)]
    return Everyone(whole[0], whole[1], jax.lax.axis_index(axis_name) * len(rows))


def features_of(encoder: Model, plain: View) -> Callable[[Params, Batch, Context], dict[str, Array]]:
    """An objective's `predict`: {"features": what the encoder gives for each example as it is}."""

    def predict(params: Params, batch: Batch, context: Context) -> dict[str, Array]:
        (rng,) = pass_keys(context.rng, batch, context, 1)
        return {"features": forward(encoder, params, plain_batch(plain, batch), context, rng)[0]}

    return predict
