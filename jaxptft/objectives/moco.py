"""Momentum contrast: queries are to find the keys that a slowly moving copy of the network gives for the other view.

Version 2 keeps the keys of earlier batches in a queue as negatives (He et al. 2020, arXiv:1911.05722, section 3; Chen
et al. 2020, arXiv:2003.04297). Version 3 has no queue but a predictor, and takes the keys of the other rows of the
batch (Chen, Xie and He 2021, arXiv:2104.02057, section 3 and algorithm 1).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxptft import losses
from jaxptft.objectives.contract import Mean, Model, Objective, lift
from jaxptft.objectives.crosswise import crosswise
from jaxptft.objectives.ema import check_decay, move_target, read_target, start_target
from jaxptft.objectives.forward import forward, statistics_state
from jaxptft.objectives.view_pairs import (
    Views,
    check_temperature,
    everyone,
    features_of,
    pass_keys,
    shaped_batch,
    view_pair,
)
from jaxptft.objectives.views import View, unchanged


def moco_v2(
    model: Model,
    *,
    encoder: Model,
    views: Views,
    queue: int = 65536,
    decay: float = 0.999,
    temperature: float = 0.2,
    plain: View = unchanged,
    seed: int = 0,
) -> Objective:
    """InfoNCE of the first view's projection against its key, of the second view, and those in the queue.

    `model.apply` returns projections [rows, width], those of `models.stack(encoder, projector)`; keys are those of its
    moving average, whose decay stays what it is. `views` and `plain` are as in `simclr`. The state holds the `target`,
    the `queue` [queue, width] of keys of length 1, random at first, by `seed`, and the `pointer` to its oldest; each
    step of training enters the keys of its valid rows, in the order of the batch, behind having been scored.

    A model with batch norm normalizes over the whole batch on all devices, keys like queries. The paper's shuffling of
    keys between devices (section 3.3) is not done: in small batches the statistics may give the own key away.

    Predictions: `features` as in `simclr`. Metrics: `moco/accuracy`, how often the own key is the nearest.
    Raises ValueError on a temperature that is not positive, a decay outside [0, 1], and a queue that holds less than a
    batch.
    """
    check_decay(decay)
    check_temperature(temperature)
    if queue < 1:
        raise ValueError(f"queue is {queue}; expected room for at least one batch of keys")

    def start(params, batch):
        seen = shaped_batch(views, plain, batch)
        keys = jax.eval_shape(lambda params: model.apply(params, seen), params)
        _check_room(queue, len(keys))
        rows = jax.random.normal(jax.random.key(seed), (queue, keys.shape[1]), jnp.float32)
        state = {"target": start_target(model, params, seen), "queue": losses.unit_rows(rows)}
        return {**state, "pointer": jnp.zeros((), jnp.int32), **statistics_state(model, params)}

    def prepare(params, state, step):
        return {**state, "target": move_target(model, state["target"], params, decay)}

    def loss(params, batch, context):
        viewing, dropout = jax.random.split(context.rng)
        first, second = view_pair(views, plain, viewing, batch)
        for_query, for_key = pass_keys(dropout, batch, context, 2)
        valid, known = batch["valid"], context.state["queue"]
        queries, state = forward(model, params, first, context, for_query)
        keys, target = read_target(model, context.state["target"], second, context, for_key)
        logits, own = losses.info_nce_logits(queries, keys, negatives=known, temperature=temperature, valid=valid)
        per_row = losses.cross_entropy(logits, own, valid=valid)
        right = (jax.lax.stop_gradient(logits).argmax(-1) == own) & valid
        if context.train:
            whole = everyone(keys, valid, context.axis_name)
            known, pointer = enqueue(known, context.state["pointer"], whole.rows, whole.valid)
            state = {**state, "target": target, "queue": known, "pointer": pointer}
        return {"moco": Mean(per_row.sum(), valid.sum())}, ({"moco/accuracy": Mean(right.sum(), valid.sum())}, state)

    return lift(
        loss,
        init=lambda rng, batch: model.init(rng, shaped_batch(views, plain, batch)),
        start=start,
        prepare=prepare,
        predict=features_of(encoder, plain),
        coupled=True,
    )


def enqueue(
    queue: Float[Array, "queue width"],
    pointer: Int[Array, ""],
    keys: Float[Array, "rows width"],
    valid: Bool[Array, " rows"],
) -> tuple[Float[Array, "queue width"], Int[Array, ""]]:
    """The valid keys, at length 1, in the places of the oldest, in order; and where the next one goes.

    The queue is a ring: a batch may end at its beginning, and rows that only fill a batch take no place.

    Raises ValueError where the queue holds fewer than `keys`.
    """
    _check_room(len(queue), len(keys))
    places = (pointer + jnp.cumsum(valid) - 1) % len(queue)
    entered = queue.at[jnp.where(valid, places, len(queue))].set(losses.unit_rows(keys, valid), mode="drop")
    return entered, ((pointer + valid.sum()) % len(queue)).astype(jnp.int32)


def moco_v3(
    model: Model,
    *,
    target: Model,
    encoder: Model,
    views: Views,
    steps: int,
    decay: float = 0.99,
    temperature: float = 0.2,
    plain: View = unchanged,
) -> Objective:
    """Symmetric InfoNCE: the queries of each view against the keys of the other, those of the whole batch.

    `model` is `models.stack(target, predictor)`, and `target`, whose moving average gives the keys, is
    `models.stack(encoder, projector)`. The decay grows from `decay` to 1 over `steps` optimizer steps (`cosine_decay`).
    `views` and `plain` are as in `simclr`. Each view goes through the networks by itself, and so has its own batch
    statistics. The state holds the `target`.

    Predictions: `features` as in `simclr`. Metrics: `moco/accuracy`, how often the own key is the nearest, of both.
    Raises ValueError on a temperature that is not positive, a decay outside [0, 1], or fewer than one step.
    """
    check_temperature(temperature)

    def compare(queries, keys, valid, axis_name):
        keys = [everyone(found, valid, axis_name) for found in keys]
        options = {
            "temperature": temperature,
            "valid": valid,
            "keys_valid": keys[0].valid,
            "first": keys[0].first,
        }
        per_row = losses.symmetric_info_nce(tuple(queries), (keys[0].rows, keys[1].rows), **options)
        right = jnp.zeros(())
        for asked, answers in zip(jax.lax.stop_gradient(queries), reversed(keys), strict=True):
            logits, own = losses.info_nce_logits(asked, answers.rows, **options)
            right += ((logits.argmax(-1) == own) & valid).sum()
        return {"moco": Mean(per_row.sum(), valid.sum())}, {"moco/accuracy": Mean(right, 2 * valid.sum())}

    return crosswise(compare, model, target=target, encoder=encoder, views=views, steps=steps, decay=decay, plain=plain)


def _check_room(queue: int, rows: int) -> None:
    if queue < rows:
        raise ValueError(f"a queue of {queue} keys is smaller than the batch of {rows} rows; make it at least as large")
