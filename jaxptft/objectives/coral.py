"""Domain adaptation by correlation alignment (Sun and Saenko 2016, arXiv:1607.01719)."""

import jax.numpy as jnp

from jaxptft import losses
from jaxptft.objectives.contract import Mean, Model, Objective, lift
from jaxptft.objectives.two_domains import features_of


def coral(features: Model, *, source: str = "task", target: str = "target") -> Objective:
    """`losses.coral` between the features of the valid rows of `batch[source]` and of `batch[target]`.

    `features.apply` returns [rows, width]; labels are not read. Split by a mapped axis, the rows of all devices are
    gathered first. Raises KeyError on a batch that lacks a domain.
    """

    def loss(params, batch, context):
        ours, theirs = features_of(features, params, batch, context, (source, target), whole=True)
        masks = {"source_valid": ours.valid, "target_valid": theirs.valid}
        return {"coral": Mean(losses.coral(ours.features, theirs.features, **masks), jnp.ones(()))}

    return lift(loss, init=lambda rng, batch: features.init(rng, batch[source]), coupled=True)
