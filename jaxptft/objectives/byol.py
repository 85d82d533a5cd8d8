"""BYOL: from one view of an example predict what a slowly moving copy of the network projects the other one to.

Grill et al. 2020, arXiv:2006.07733, section 3.1, equation 2 and algorithm 1. There are no negatives.
"""

import jax.numpy as jnp

from jaxptft import losses
from jaxptft.objectives.contract import Mean, Model, Objective
from jaxptft.objectives.crosswise import crosswise
from jaxptft.objectives.view_pairs import Views, everyone
from jaxptft.objectives.views import View, unchanged


def byol(
    model: Model,
    *,
    target: Model,
    encoder: Model,
    views: Views,
    steps: int,
    decay: float = 0.996,
    plain: View = unchanged,
) -> Objective:
    """The squared distance of prediction and target at length 1, both ways and added, averaged over valid rows.

    `model` is `models.stack(target, predictor)`, and `target`, whose moving average is predicted, is
    `models.stack(encoder, projector)`. The decay grows from `decay` to 1 over `steps` optimizer steps (`cosine_decay`).
    `views` and `plain` are as in `simclr`. Each view goes through the networks by itself, and so has its own batch
    statistics, the target's being in training as well. The state holds the `target`.

    A step that is skipped because it is not finite leaves the target where it was.

    Predictions: `features` as in `simclr`. Metrics: `byol/uniformity`, of what the target projects the first views of
    one batch to: near 0 all fall on one point (Wang and Isola 2020, arXiv:2005.10242).
    Raises ValueError on a decay outside [0, 1], or fewer than one step.
    """

    def compare(predictions, targets, valid, axis_name):
        per_row = losses.normalized_squared_error(predictions[0], targets[1], valid=valid)
        per_row += losses.normalized_squared_error(predictions[1], targets[0], valid=valid)
        whole = everyone(targets[0], valid, axis_name)
        metrics = {"byol/uniformity": Mean(losses.uniformity(whole.rows, whole.valid), jnp.ones(()))}
        return {"byol": Mean(per_row.sum(), valid.sum())}, metrics

    return crosswise(compare, model, target=target, encoder=encoder, views=views, steps=steps, decay=decay, plain=plain)
