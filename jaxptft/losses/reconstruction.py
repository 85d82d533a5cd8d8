"""How far drawn images are from real ones: one number an image, summed over its pixels and channels.

    squared error    sum (x - t)^2
    Bernoulli        - sum (t log sigmoid(l) + (1 - t) log sigmoid(-l))             pixels from 0 to 1, from logits l
    Gaussian         sum ((x - t)^2 / exp(s) + s + log 2 pi) / 2                    s the log of the variance

The last two are negative log-likelihoods, in nats (Kingma and Welling 2014, arXiv:1312.6114, appendix C).
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxptft.losses.binary_cross_entropy import binary_cross_entropy

Images = Float[Array, "batch *pixels"]


def image_squared_error(
    images: Images, targets: Images, *, valid: Bool[Array, " batch"] | None = None
) -> Float[Array, " batch"]:
    """The squared error of each image, in float32; no factor 1/2. Rows that are not valid give 0, and no gradient.

    Raises:
        ValueError: images and targets of different shapes, images that are not floating, or `valid` that is not bool of
            one for each row.

    >>> image_squared_error(jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0, 4.0], [3.0, 1.0]])).tolist()
    [4.0, 10.0]
    """
    images, targets = flat_pair("images", images, targets, valid)
    return jnp.square(images - targets).sum(axis=1)


def image_cross_entropy(
    logits: Images, targets: Images, *, valid: Bool[Array, " batch"] | None = None
) -> Float[Array, " batch"]:
    """The negative log-likelihood of each image under independent Bernoulli pixels, in nats; as above otherwise.

    Targets between 0 and 1 count in part: what then is no likelihood still has its least value at them.

    >>> [round(value, 4) for value in image_cross_entropy(jnp.zeros((1, 3)), jnp.array([[0.0, 1.0, 0.5]])).tolist()]
    [2.0794]
    """
    logits, targets = flat_pair("logits", logits, targets, valid)
    return binary_cross_entropy(logits, targets, valid=valid).sum(axis=1)


def image_gaussian_nll(
    means: Images,
    targets: Images,
    log_variance: float | Float[Array, ""] = 0.0,
    *,
    valid: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """The negative log-likelihood of each image under Gaussian pixels of one variance, in nats; as above otherwise.

    >>> [round(value, 4) for value in image_gaussian_nll(jnp.zeros((1, 1)), jnp.ones((1, 1))).tolist()]
    [1.4189]
    """
    error = image_squared_error(means, targets, valid=valid)
    pixels = math.prod(jnp.shape(means)[1:])
    nll = 0.5 * (error * jnp.exp(-log_variance) + pixels * (log_variance + math.log(2 * math.pi)))
    return nll if valid is None else jnp.where(valid, nll, 0.0)


def flat_pair(name: str, drawn: Array, targets: Array, valid: Array | None) -> tuple[Array, Array]:
    """Both as float32 [batch, numbers], rows that are not valid cleared: so NaN in them stays out of the gradient."""
    drawn, targets = jnp.asarray(drawn), jnp.asarray(targets)
    if drawn.ndim < 2 or drawn.shape != targets.shape:
        raise ValueError(f"{name} have shape {drawn.shape} and targets {targets.shape}; expected one, the batch first")
    if not jnp.issubdtype(drawn.dtype, jnp.floating):
        raise ValueError(f"{name} hold {drawn.dtype}; expected floats")
    pair = [jnp.asarray(rows, jnp.float32).reshape(len(rows), -1) for rows in (drawn, targets)]
    if valid is not None:
        valid = jnp.asarray(valid)
        if valid.dtype != jnp.bool_ or valid.shape != drawn.shape[:1]:
            raise ValueError(f"valid must be bool of shape {drawn.shape[:1]}, got {valid.dtype} of {valid.shape}")
        pair = [jnp.where(valid[:, None], rows, 0.0) for rows in pair]
    return pair[0], pair[1]
