"""The two losses of adversarial networks, from logits l that are above 0 for images taken to be real.

    discriminator    - log sigmoid(l(real)) - log sigmoid(-l(drawn))
    generator        - log sigmoid(l(drawn))

Goodfellow et al. 2014, arXiv:1406.2661: equation 1, and section 3 for the generator's, which does not saturate where
the discriminator sees through it, as log sigmoid(-l) does.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Logits = Float[Array, " batch"]


def gan_discriminator(real: Logits, drawn: Logits, *, valid: Bool[Array, " batch"] | None = None) -> Logits:
    """The loss of each pair of an image and a drawn one, in nats: 2 log 2 for a discriminator that cannot tell.

    Rows that are not valid give 0, and no gradient.

    Raises:
        ValueError: logits that are not floating [batch], of different shapes, or `valid` that is not bool of one for
            each row.

    >>> round(float(gan_discriminator(jnp.zeros(1), jnp.zeros(1))[0]), 4)
    1.3863
    """
    real, drawn = _checked(real, valid), _checked(drawn, valid)
    if real.shape != drawn.shape:
        raise ValueError(
            f"the logits of real and drawn images have shapes {real.shape} and {drawn.shape}; expected one"
        )
    return _cleared(jax.nn.softplus(-real) + jax.nn.softplus(drawn), valid)


def gan_generator(drawn: Logits, *, valid: Bool[Array, " batch"] | None = None) -> Logits:
    """The loss of each drawn image, in nats; as above otherwise.

    >>> round(float(gan_generator(jnp.zeros(1))[0]), 4)
    0.6931
    """
    return _cleared(jax.nn.softplus(-_checked(drawn, valid)), valid)


def _checked(logits: Array, valid: Array | None) -> Array:
    logits = jnp.asarray(logits)
    if logits.ndim != 1 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits are {logits.dtype} of shape {logits.shape}; expected floats, one for each image")
    if valid is not None:
        valid = jnp.asarray(valid)
        if valid.dtype != jnp.bool_ or valid.shape != logits.shape:
            raise ValueError(f"valid must be bool of shape {logits.shape}, got {valid.dtype} of {valid.shape}")
    return _cleared(logits.astype(jnp.float32), valid)


def _cleared(rows: Array, valid: Array | None) -> Array:
    return rows if valid is None else jnp.where(valid, rows, 0.0)
