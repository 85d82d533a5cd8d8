"""Single-label classification of whole examples."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Context, Mean, Model, Objective, Params, lift, slice_rng
from jaxptft.objectives.forward import forward, statistics_state


def classification(
    model: Model,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Objective:
    """Softmax cross-entropy over classes, averaged over valid examples (weighted by class where weights are given).

    `model.apply` returns logits [batch, classes].
    The batch holds what the model reads, `label` [batch] integers, `ids` [batch], and `valid` [batch] (False for rows
    that only fill the batch); optionally `weight` [batch], what each row counts in the mean (importance weighting).
    Where several texts share a row, all of these are [batch, segments], and logits [batch, segments, classes].
    Metrics: `classification/accuracy`. Predictions: `logits` [batch, classes].
    """
    weights = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)

    def logits_of(params: Params, batch: Batch, context: Context):
        rng = slice_rng(context.rng, batch) if context.train else None
        return forward(model, params, batch, context, rng)

    def loss(params, batch, context):
        logits, state = logits_of(params, batch, context)
        valid, label = batch["valid"], batch["label"]
        per_example = losses.cross_entropy(
            logits, label, label_smoothing=label_smoothing, class_weights=weights, valid=valid
        )
        counted = losses.cross_entropy_weights(label, class_weights=weights, valid=valid)
        if "weight" in batch:
            row_weight = jnp.where(valid, batch["weight"], 0.0)
            per_example, counted = per_example * row_weight, counted * row_weight
        right = (jax.lax.stop_gradient(logits).argmax(-1) == label) & valid
        return (
            {"classification": Mean(per_example.sum(), counted.sum())},
            ({"classification/accuracy": Mean(right.sum(), valid.sum())}, state),
        )

    def predict(params, batch, context):
        return {"logits": logits_of(params, batch, context)[0]}

    return lift(
        loss,
        init=model.init,
        start=lambda params, batch: statistics_state(model, params),
        predict=predict,
        coupled=getattr(model, "statistics", None) is not None,
    )
