"""BYOL: from one view of an example predict what a slowly moving copy of the network projects the other one to.

Grill et al. 2020, arXiv:2006.07733, section 3.1, equation 2 and algorithm 1. There are no negatives.
"""

import jax
import jax.numpy as jnp

from jaxptft import losses
from jaxptft.objectives.contract import Mean, Model, Objective, lift
from jaxptft.objectives.ema import check_decay, check_steps, cosine_decay, move_target, read_target, start_target
from jaxptft.objectives.forward import forward, statistics_state
from jaxptft.objectives.view_pairs import Views, everyone, features_of, pass_keys, shaped_batch, view_pair
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
    check_decay(decay)
    check_steps(steps)

    def start(params, batch):
        seen = shaped_batch(views, plain, batch)
        return {"target": start_target(target, params, seen), **statistics_state(model, params)}

    def prepare(params, state, step):
        now = cosine_decay(step - 1, base=decay, steps=steps)  # of the step that made these params
        return {**state, "target": move_target(target, state["target"], params, now)}

    def loss(params, batch, context):
        viewing, dropout = jax.random.split(context.rng)
        rngs = pass_keys(dropout, batch, context, 4)
        valid, state, slow = batch["valid"], context.state, context.state["target"]
        predictions, targets = [], []
        for number, seen in enumerate(view_pair(views, plain, viewing, batch)):
            found, state = forward(model, params, seen, context._replace(state=state), rngs[number])
            predictions.append(found)
            found, slow = read_target(target, slow, seen, context, rngs[2 + number])
            targets.append(found)
        per_row = losses.normalized_squared_error(predictions[0], targets[1], valid=valid)
        per_row += losses.normalized_squared_error(predictions[1], targets[0], valid=valid)
        whole = everyone(targets[0], valid, context.axis_name)
        metrics = {"byol/uniformity": Mean(losses.uniformity(whole.rows, whole.valid), jnp.ones(()))}
        if context.train:
            state = {**state, "target": slow}
        return {"byol": Mean(per_row.sum(), valid.sum())}, (metrics, state)

    return lift(
        loss,
        init=lambda rng, batch: model.init(rng, shaped_batch(views, plain, batch)),
        start=start,
        prepare=prepare,
        predict=features_of(encoder, plain),
        coupled=True,
    )
