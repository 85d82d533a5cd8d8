"""The divergence of a diagonal Gaussian from the standard one, in closed form.

    KL(N(m, exp(s)) || N(0, 1)) = sum (m^2 + exp(s) - 1 - s) / 2

Kingma and Welling 2014, arXiv:1312.6114, appendix B.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxptft.losses.reconstruction import flat_pair


def gaussian_kl(
    mean: Float[Array, "batch latent"],
    log_variance: Float[Array, "batch latent"],
    *,
    valid: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """The divergence of each row, in nats, in float32. Rows that are not valid give 0, and no gradient.

    Raises:
        ValueError: the two have different shapes, a mean that is not floating, or `valid` that is not bool of one for
            each row.

    >>> gaussian_kl(jnp.array([[0.0, 0.0], [2.0, 1.0]]), jnp.zeros((2, 2))).tolist()
    [0.0, 2.5]
    """
    mean, log_variance = flat_pair("means", mean, log_variance, valid)
    return 0.5 * (jnp.square(mean) + (jnp.expm1(log_variance) - log_variance)).sum(axis=1)
