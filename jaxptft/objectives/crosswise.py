"""What BYOL and MoCo v3 share: both views go through the network and its moving average, and are compared crosswise."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array, Bool

from jaxptft.objectives.contract import Metrics, Model, Objective, Terms, lift
from jaxptft.objectives.ema import check_decay, check_steps, cosine_decay, move_target, read_target, start_target
from jaxptft.objectives.forward import forward, statistics_state
from jaxptft.objectives.view_pairs import Views, features_of, pass_keys, shaped_batch, view_pair
from jaxptft.objectives.views import View

Compare = Callable[[Sequence[Array], Sequence[Array], Bool[Array, " rows"], str | None], tuple[Terms, Metrics]]
"""From predictions and targets of the first and the second view, valid rows and the axis: terms and metrics."""


def crosswise(
    compare: Compare,
    model: Model,
    *,
    target: Model,
    encoder: Model,
    views: Views,
    steps: int,
    decay: float,
    plain: View,
) -> Objective:
    """An objective whose state holds the `target`, a moving average of what `target` reads of the parameters.

    Its decay grows from `decay` to 1 over `steps` optimizer steps (`cosine_decay`). Each view goes through the networks
    by itself, and so has its own batch statistics. Raises ValueError on a decay outside [0, 1], or fewer than one step.
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
        state: Any = context.state
        slow = context.state["target"]
        predictions, targets = [], []
        for number, seen in enumerate(view_pair(views, plain, viewing, batch)):
            found, state = forward(model, params, seen, context._replace(state=state), rngs[number])
            predictions.append(found)
            found, slow = read_target(target, slow, seen, context, rngs[2 + number])
            targets.append(found)
        terms, metrics = compare(predictions, targets, batch["valid"], context.axis_name)
        return terms, (metrics, {**state, "target": slow} if context.train else state)

    return lift(
        loss,
        init=lambda rng, batch: model.init(rng, shaped_batch(views, plain, batch)),
        start=start,
        prepare=prepare,
        predict=features_of(encoder, plain),
        coupled=True,
    )
