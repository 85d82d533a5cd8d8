"""Extractive question answering: where in its row does the answer begin, and where does it end?"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Context, Mean, Model, Objective, Params, lift, slice_rng


def best_places(
    logits: Float[Array, "batch length"], allowed: Bool[Array, "batch length"], count: int
) -> tuple[Float[Array, "batch count"], Int[Array, "batch count"]]:
    """The highest logits at allowed places, and the places; 0 and -1 where a row has fewer than `count`."""
    kept = jnp.where(allowed, logits, -jnp.inf)
    values, places = jax.lax.top_k(kept, min(count, logits.shape[-1]))
    short = ((0, 0), (0, count - values.shape[-1]))
    values, places = jnp.pad(values, short, constant_values=-jnp.inf), jnp.pad(places, short)
    absent = values == -jnp.inf
    return jnp.where(absent, 0.0, values), jnp.where(absent, -1, places)


def answer_places(
    logits: Float[Array, "batch length 2"], batch: Batch
) -> tuple[Float[Array, "batch 2 length"], Bool[Array, "batch 2"]]:
    """Two distributions over the tokens of each row, where the answer starts and where it ends, and which count.

    Beyond the end of a row the logits are so low that the probability is exactly 0.
    """
    inside = batch["attention_mask"][:, None] > 0
    placed = jnp.where(inside, jnp.moveaxis(logits, -1, 1), -1e30)
    return placed, jnp.broadcast_to(batch["valid"][:, None], placed.shape[:2])


def question_answering(model: Model, *, n_best: int = 20, label_smoothing: float = 0.0) -> Objective:
    """The mean of the cross-entropies of the answer's start and end, averaged over valid windows.

    `model.apply` returns logits [batch, length, 2], of which those beyond the end of a row do not count.
    The batch holds what the model reads, `start` and `end` [batch] (0, the row's first token, where a window does not
    hold the answer), `context` bool [batch, length], `ids` and `valid` [batch].

    Metrics: `question_answering/window_accuracy`, the share of windows with both places right. Predictions, enough to
    decode answers from and of one size for rows of any length: the `n_best` highest `start_logits` and `end_logits` in
    the context with their `start_places` and `end_places` (-1: there is none), and `null`, the two logits of the row's
    first token together.
    """
    if n_best < 1:
        raise ValueError(f"n_best is {n_best}, expected at least 1")

    def logits_of(params: Params, batch: Batch, context: Context) -> tuple[Array, Array]:
        rng = slice_rng(context.rng, batch) if context.train else None
        logits = model.apply(params, batch, rng=rng, train=context.train)
        return logits[..., 0], logits[..., 1]

    def loss(params, batch, context):
        starts, ends = logits_of(params, batch, context)
        valid, inside = batch["valid"], batch["attention_mask"] > 0
        per_window = losses.span_cross_entropy(
            starts, ends, batch["start"], batch["end"], label_smoothing=label_smoothing, inside=inside, valid=valid
        )
        first, last = (
            jnp.where(inside, jax.lax.stop_gradient(logits), -jnp.inf).argmax(-1) for logits in (starts, ends)
        )
        right = (first == batch["start"]) & (last == batch["end"]) & valid
        return (
            {"question_answering": Mean(per_window.sum(), valid.sum())},
            {"question_answering/window_accuracy": Mean(right.sum(), valid.sum())},
        )

    def predict(params, batch, context):
        starts, ends = logits_of(params, batch, context)
        start_logits, start_places = best_places(starts, batch["context"], n_best)
        end_logits, end_places = best_places(ends, batch["context"], n_best)
        return {
            "start_logits": start_logits,
            "start_places": start_places,
            "end_logits": end_logits,
            "end_places": end_places,
            "null": starts[:, 0] + ends[:, 0],
        }

    return lift(loss, init=model.init, predict=predict)
