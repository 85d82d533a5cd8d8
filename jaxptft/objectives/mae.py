"""Masked autoencoding of images: most patches hidden, their pixels drawn from the others.

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", arXiv:2111.06377, section 3. The encoder computes
the visible patches only; which they are is drawn for each image by its id.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Mean, Model, Objective, Params, lift, slice_rng
from jaxptft.objectives.views import Images, View, example_keys, unchanged, view_images


class Visible(NamedTuple):
    """Which patches of each image are seen."""

    keep: Int[Array, "batch seen"]  # the patches that are seen, in the order in which the encoder reads them
    restore: Int[Array, "batch patches"]  # each patch's place in that order, the unseen ones behind

    @property
    def masked(self) -> Bool[Array, "batch patches"]:
        """Which patches are hidden."""
        return self.restore >= self.keep.shape[1]


def patch_noise(rng: PRNGKeyArray, ids: Int[Array, " batch"], patches: int) -> Float[Array, "batch patches"]:
    """Uniform numbers for the patches of each image, by its id."""
    return jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(example_keys(rng, ids))


def visible_patches(noise: Float[Array, "batch patches"], mask_ratio: float) -> Visible:
    """The patches of least noise are seen, `patches * (1 - mask_ratio)` of them, rounded down.

    Raises ValueError where none would be seen, or none hidden.
    """
    patches = noise.shape[1]
    seen = int(patches * (1 - mask_ratio))
    if not 0 < seen < patches:
        raise ValueError(
            f"mask_ratio {mask_ratio} leaves {seen} of {patches} patches visible; expected some, and some hidden: "
            "change it, or give smaller patches"
        )
    shuffle = jnp.argsort(noise, axis=1)
    return Visible(shuffle[:, :seen], jnp.argsort(shuffle, axis=1))


def mae(
    model: Model,
    *,
    patch_size: int | tuple[int, int],
    mask_ratio: float = 0.75,
    normalise: bool = True,
    view: View = unchanged,
    plain: View = unchanged,
) -> Objective:
    """Mean squared error over the pixels of the hidden patches, averaged over valid images.

    `model.apply` draws all patches [batch, patches, pixels] from `image`, `keep` and `restore`, as a masked autoencoder
    of `models.build` for "pretraining" does; `patch_size` is its, in pixels, height and width where they differ. Each
    image hides `mask_ratio` of its patches. With `normalise` the target is the pixels normalised in each patch: to
    draw 0 then gives an error of nearly 1. The batch holds `image`, `ids` and `valid`; `view` makes of it what is
    learnt from, and `plain` what is evaluated on. Evaluation hides patches as well: with one key, always the same.

    Predictions: `error` [batch], each image's own. Raises ValueError for a `mask_ratio` outside (0, 1) or a patch size
    below 1, and in tracing for images that patches do not divide.
    """
    patch = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    if len(patch) != 2 or min(patch) < 1:
        raise ValueError(f"patch_size is {patch_size!r}; expected an integer of at least 1, or height and width")
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio is {mask_ratio!r}; expected a share of the patches, between 0 and 1")

    def init(rng: PRNGKeyArray, batch: Batch) -> Params:
        return model.init(rng, {**batch, "image": view_images(view, rng, batch)})

    def errors(params, batch, context):
        seen_rng, mask_rng, dropout = jax.random.split(context.rng, 3)
        images = view_images(view if context.train else plain, seen_rng, batch)
        targets = losses.patchify(images, patch)
        visible = visible_patches(patch_noise(mask_rng, batch["ids"], targets.shape[1]), mask_ratio)
        shown = {**batch, "image": images, "keep": visible.keep, "restore": visible.restore}
        rng = slice_rng(dropout, batch) if context.train else None
        drawn = model.apply(params, shown, rng=rng, train=context.train)
        wanted = losses.normalise_patches(targets) if normalise else targets
        return losses.masked_patch_error(drawn, wanted, visible.masked)

    def loss(params, batch, context):
        valid = batch["valid"]
        return {"mae": Mean(jnp.where(valid, errors(params, batch, context), 0.0).sum(), valid.sum())}

    def predict(params, batch, context):
        return {"error": errors(params, batch, context)}

    return lift(loss, init=init, predict=predict)


class Reconstruction(NamedTuple):
    """Pictures of what a masked autoencoder does, in the pixels of the images it was given."""

    masked: Images  # the hidden patches grey: 0, the mean of normalised images
    drawn: Images  # every patch as the model draws it
    completed: Images  # the visible patches as they are, the hidden ones as they are drawn


def reconstruct(
    model: Model,
    params: Params,
    images: Images,
    visible: Visible,
    *,
    patch_size: int | tuple[int, int],
    normalise: bool,
) -> Reconstruction:
    """What the model makes of images (float32, as it reads them) of which it sees some patches.

    Of a model that was trained with `normalise` each patch gets back its own mean and deviation, which it does not
    know: the pictures show structure, and no brightness that was predicted. Source: the paper's figures 2 to 4.
    """
    patch = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    _, height, width, _ = images.shape
    pixels = losses.patchify(images, patch)
    drawn = model.apply(params, {"image": images, "keep": visible.keep, "restore": visible.restore})
    if normalise:
        mean, deviation = losses.patch_moments(pixels)
        drawn = drawn * deviation + mean
    masked = visible.masked[..., None]
    made = (jnp.where(masked, 0.0, pixels), drawn, jnp.where(masked, drawn, pixels))
    return Reconstruction(*(losses.unpatchify(patches, patch, (height, width)) for patches in made))
