"""Images as patches: the pixels a masked autoencoder draws, and how far it is from them on the patches it did not see.

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", arXiv:2111.06377, section 3.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# As in the released code, so that patches of one colour stay finite.
_EPSILON = 1e-6


def patchify(
    images: Float[Array, "batch height width channels"], patch: tuple[int, int]
) -> Float[Array, "batch patches pixels"]:
    """Each patch's pixels in one row, (row, column, channel); patches row by row. `patch` is height and width.

    Raises:
        ValueError: the images are not [batch, height, width, channels], or patches do not divide them.

    >>> patchify(jnp.arange(8.0).reshape(1, 2, 4, 1), (2, 2)).tolist()
    [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]
    """
    tall, wide = patch
    if images.ndim != 4 or images.shape[1] % tall or images.shape[2] % wide:
        raise ValueError(
            f"images have shape {images.shape}; expected [batch, height, width, channels] in whole patches of "
            f"{tall} x {wide}"
        )
    batch, height, width, channels = images.shape
    blocks = images.reshape(batch, height // tall, tall, width // wide, wide, channels).swapaxes(2, 3)
    return blocks.reshape(batch, height // tall * (width // wide), tall * wide * channels)


def unpatchify(
    patches: Float[Array, "batch patches pixels"], patch: tuple[int, int], image: tuple[int, int]
) -> Float[Array, "batch height width channels"]:
    """The images that `patchify` makes these of; `image` is their height and width.

    Raises:
        ValueError: the patches are not those of such images.
    """
    (tall, wide), (height, width) = patch, image
    rows, columns = height // tall, width // wide
    if patches.ndim != 3 or patches.shape[1] != rows * columns or patches.shape[2] % (tall * wide):
        raise ValueError(
            f"patches have shape {patches.shape}; expected [batch, {rows * columns}, {tall * wide} x channels] for "
            f"images of {height} x {width} in patches of {tall} x {wide}"
        )
    blocks = patches.reshape(len(patches), rows, columns, tall, wide, -1).swapaxes(2, 3)
    return blocks.reshape(len(patches), rows * tall, columns * wide, -1)


def normalise_patches(patches: Float[Array, "batch patches pixels"]) -> Float[Array, "batch patches pixels"]:
    """Each patch with mean 0 and variance 1 (unbiased), section 4.1's better target.

    >>> normalise_patches(jnp.array([[[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]])).round(3).tolist()
    [[[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]]
    """
    mean, deviation = patch_moments(patches)
    return (patches - mean) / deviation


def patch_moments(
    patches: Float[Array, "batch patches pixels"],
) -> tuple[Float[Array, "batch patches 1"], Float[Array, "batch patches 1"]]:
    """The mean of each patch, and the deviation it is normalised by."""
    mean = patches.mean(axis=-1, keepdims=True)
    return mean, jnp.sqrt(patches.var(axis=-1, ddof=1, keepdims=True) + _EPSILON)


def masked_patch_error(
    predictions: Float[Array, "batch patches pixels"],
    targets: Float[Array, "batch patches pixels"],
    masked: Bool[Array, "batch patches"],
) -> Float[Array, " batch"]:
    """Mean squared error over the pixels of each image's masked patches; 0 for one without any.

    Raises:
        ValueError: shapes differ.

    >>> predictions, targets = jnp.array([[[1.0, 1.0], [2.0, 4.0]]]), jnp.zeros((1, 2, 2))
    >>> masked_patch_error(predictions, targets, jnp.array([[False, True]])).tolist()
    [10.0]
    """
    if predictions.shape != targets.shape or masked.shape != targets.shape[:2]:
        raise ValueError(
            "predictions and targets must have one shape [batch, patches, pixels] and masked its first two axes, "
            f"got {predictions.shape}, {targets.shape} and {masked.shape}"
        )
    errors = jnp.square(predictions.astype(jnp.float32) - targets).mean(axis=-1)
    return jnp.where(masked, errors, 0.0).sum(axis=1) / jnp.maximum(masked.sum(axis=1), 1)
