"""A class for each labelled token: entities, parts of speech."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Context, Mean, Model, Objective, Params, lift, slice_rng

UNCOUNTED = -100


def labelled(batch: Batch) -> Bool[Array, "batch length"]:
    """Which tokens count: those with a label, in rows of which an example is valid."""
    valid = jnp.asarray(batch["valid"])
    return (batch["labels"] != UNCOUNTED) & valid.reshape(len(valid), -1).any(axis=1, keepdims=True)


def token_classification(
    model: Model,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    width: int | None = None,
) -> Objective:
    """Softmax cross-entropy over classes, averaged over labelled tokens (weighted by class where weights are given).

    `model.apply` returns logits [batch, length, classes].
    The batch holds what the model reads, `labels` [batch, length] integers (-100 at tokens that do not count), `ids`
    [batch], and `valid` [batch] (False for rows that only fill the batch); packed rows hold `ids` and `valid` [batch,
    segments], and are learnt from, not predicted for. Metrics:
    `token_classification/token_accuracy`. Predictions: `tags` [batch, width] integers, the most probable class of each
    token, and `scores` [batch, width], its probability.

    Args:
      width: how long predictions are made, so that batches of several lengths have one; 0 where there is no token.
        Default: the batch's length.
    """
    weights = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)

    def logits_of(params: Params, batch: Batch, context: Context):
        rng = slice_rng(context.rng, batch) if context.train else None
        return model.apply(params, batch, rng=rng, train=context.train)

    def loss(params, batch, context):
        logits = logits_of(params, batch, context)
        label = batch["labels"]
        counts = labelled(batch)
        per_token = losses.cross_entropy(
            logits, label, label_smoothing=label_smoothing, class_weights=weights, valid=counts
        )
        counted = losses.cross_entropy_weights(label, class_weights=weights, valid=counts)
        right = (jax.lax.stop_gradient(logits).argmax(-1) == label) & counts
        return (
            {"token_classification": Mean(per_token.sum(), counted.sum())},
            {"token_classification/token_accuracy": Mean(right.sum(), counts.sum())},
        )

    def predict(params, batch, context):
        if "segment_ids" in batch:
            raise ValueError("token_classification predicts the tags of one text a row, but the rows are packed")
        logits = logits_of(params, batch, context).astype(jnp.float32)
        length = logits.shape[1]
        if width is not None and width < length:
            raise ValueError(f"width is {width}, and a batch has {length} tokens; expected as many at least")
        pad = ((0, 0), (0, (width or length) - length))
        scores = jax.nn.softmax(logits, axis=-1).max(-1)
        return {"tags": jnp.pad(logits.argmax(-1).astype(jnp.int32), pad), "scores": jnp.pad(scores, pad)}

    return lift(loss, init=model.init, predict=predict)
