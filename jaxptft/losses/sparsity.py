"""What keeps most units of a code silent: a rate of activity to be met, or the sum of what is active."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxptft.losses.reconstruction import flat_pair

_LEAST = 1e-6  # of activity: where a unit is silent or active throughout, the divergence is large, and not infinite


def activity_kl(activity: Float[Array, " units"], target: float) -> Float[Array, ""]:
    """The divergence of Bernoulli variables of mean `target` from those of mean `activity`, summed over units, in nats.

        sum r log(r / a) + (1 - r) log((1 - r) / (1 - a))

    `activity` are means over a whole sample of units between 0 and 1; within 1e-6 of either bound it counts as the
    bound's neighbour. An activity outside gives NaN: the units are of another kind. Source: Ng 2011, "Sparse
    autoencoder", CS294A lecture notes, section 3.

    Raises:
        ValueError: `target` is not between 0 and 1, or `activity` is not one number a unit.

    >>> round(float(activity_kl(jnp.array([0.05, 0.5]), 0.05)), 4)  # log 2 less the entropy of 0.05
    0.4946
    """
    if not 0.0 < target < 1.0:
        raise ValueError(f"the target activity is {target!r}; expected a share of the time between 0 and 1")
    activity = jnp.asarray(activity)
    if activity.ndim != 1 or not jnp.issubdtype(activity.dtype, jnp.floating):
        raise ValueError(f"activity is {activity.dtype} of shape {activity.shape}; expected floats, one for each unit")
    activity = activity.astype(jnp.float32)
    a = jnp.clip(activity, _LEAST, 1.0 - _LEAST)
    divergence = target * jnp.log(target / a) + (1.0 - target) * jnp.log((1.0 - target) / (1.0 - a))
    return jnp.where((activity >= 0.0) & (activity <= 1.0), divergence, jnp.nan).sum()


def activity_l1(
    codes: Float[Array, "batch units"], *, valid: Bool[Array, " batch"] | None = None
) -> Float[Array, " batch"]:
    """The sum of absolute values of each row, in float32. Rows that are not valid give 0, and no gradient.

    Raises:
        ValueError: codes that are not floating, or `valid` that is not bool of one for each row.

    >>> activity_l1(jnp.array([[1.0, -2.0], [0.0, 0.5]])).tolist()
    [3.0, 0.5]
    """
    codes, _ = flat_pair("codes", codes, codes, valid)
    return jnp.abs(codes).sum(axis=1)
