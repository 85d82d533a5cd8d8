"""Views of images: what an objective's model reads of a batch, drawn for every example by its id.

A view is `(key, image) -> image` for one example, [height, width, channels] in and float32 [height', width', channels]
out; `jaxptft.augment` makes them. The key is the objective's folded with the example's id, never with its place in the
batch: devices, micro-steps, padding rows and the order of a batch change no view.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from jaxptft.objectives.contract import Batch

View = Callable[[PRNGKeyArray, Array], Array]
Images = Float[Array, "batch height width channels"]


def example_keys(rng: PRNGKeyArray, ids: Int[Array, " batch"]) -> Shaped[PRNGKeyArray, " batch"]:
    """A key for every example: `rng` folded with its id."""
    typed = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
    if typed and rng.dtype != jax.random.key(0, impl="threefry2x32").dtype:
        # Under vmap other kinds of keys draw by the place in the batch.
        rng = jax.random.wrap_key_data(jax.random.bits(rng, (2,)), impl="threefry2x32")
    return jax.vmap(lambda example: jax.random.fold_in(rng, example))(jnp.asarray(ids).astype(jnp.uint32))


def unchanged(key: PRNGKeyArray, image: Array) -> Array:
    """The view that changes nothing: uint8 from 0 to 255 as float32 from 0 to 1, floats as they are."""
    image = jnp.asarray(image)
    if image.dtype == jnp.uint8:
        return image.astype(jnp.float32) / 255.0
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(f"an image is {image.dtype}; expected uint8 from 0 to 255, or floats")
    return image.astype(jnp.float32)


def view_images(view: View, rng: PRNGKeyArray, batch: Batch) -> Images:
    """The view of every image of the batch, under `rng` folded with its id.

    Raises KeyError on a batch without `image`, ValueError where it is not [batch, height, width, channels], or where
    the view gives anything but floats [height, width, channels].
    """
    if "image" not in batch:
        raise KeyError(f"the batch has {sorted(batch)} but no 'image'; give it images [batch, height, width, channels]")
    images = jnp.asarray(batch["image"])
    if images.ndim != 4:
        raise ValueError(f"the images have shape {images.shape}; expected [batch, height, width, channels]")
    seen = jax.vmap(view)(example_keys(rng, batch["ids"]), images)
    if seen.ndim != 4 or not jnp.issubdtype(seen.dtype, jnp.floating):
        shape = seen.shape[1:]
        raise ValueError(f"the view gave {seen.dtype} of shape {shape}; expected float32 [height, width, channels]")
    return seen


def two_views(views: View | Sequence[View], rng: PRNGKeyArray, batch: Batch) -> tuple[Images, Images]:
    """Two independent views of every image: by one view drawn twice, or by each of a pair.

    Raises ValueError on a sequence of other than two views, or views of different shapes, and as `view_images` does.
    """
    pair = (views, views) if callable(views) else tuple(views)
    if len(pair) != 2:
        raise ValueError(f"got {len(pair)} views; expected one, to be drawn twice, or two")
    first, second = (view_images(view, key, batch) for view, key in zip(pair, jax.random.split(rng), strict=True))
    if first.shape != second.shape:
        raise ValueError(f"the two views have shapes {first.shape[1:]} and {second.shape[1:]}; give both the same size")
    return first, second
