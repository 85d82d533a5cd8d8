"""Domain adaptation by maximum mean discrepancy: the two domains' features are drawn together.

Long et al. 2015, arXiv:1502.02791, section 3, with the estimators of Gretton et al. 2012.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from jaxptft import losses
from jaxptft.objectives.contract import Mean, Model, Objective, lift
from jaxptft.objectives.two_domains import features_of


def mmd(
    features: Model,
    *,
    source: str = "task",
    target: str = "target",
    kernel: str = "rbf",
    squared_bandwidth: float | None = None,
    multiples: Sequence[float] = losses.MULTIPLES,
    unbiased: bool = True,
) -> Objective:
    """MMD^2 between the features of the valid rows of `batch[source]` and of `batch[target]`.

    `features.apply` returns [rows, width]; labels are not read. Unbiased, the term may be negative: where the domains
    are alike its mean over batches is 0. `kernel` is "rbf", whose options are those of
    `losses.squared_mmd`, or "linear". Split by a mapped axis, the rows of all devices are gathered first.

    Raises ValueError on another kernel, and KeyError on a batch that lacks a domain.
    """
    if kernel not in ("rbf", "linear"):
        raise ValueError(f"kernel is {kernel!r}; expected 'rbf' or 'linear'")

    def loss(params, batch, context):
        ours, theirs = features_of(features, params, batch, context, (source, target), whole=True)
        valid = {"source_valid": ours.valid, "target_valid": theirs.valid, "unbiased": unbiased}
        if kernel == "linear":
            value = losses.linear_mmd(ours.features, theirs.features, **valid)
        else:
            options = {"squared_bandwidth": squared_bandwidth, "multiples": multiples}
            value = losses.squared_mmd(ours.features, theirs.features, **valid, **options)
        return {"mmd": Mean(value, jnp.ones(()))}

    return lift(loss, init=lambda rng, batch: features.init(rng, batch[source]), coupled=True)
