"""Multi-label classification: for each example and label, does it apply?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Context, Mean, Model, Objective, Params, lift, slice_rng


def multi_label(model: Model, *, positive_weights: Sequence[float] | None = None) -> Objective:
    """Binary cross-entropy, averaged over the labels of valid examples.

    `model.apply` returns logits [batch, labels]. The batch holds what the model reads, `label` [batch, labels] of 0 and
    1, `ids` [batch], and `valid` [batch]; optionally `weight` [batch], what each row counts in the mean.
    `positive_weights`: for each label, what an example that has it weighs against one that has not. Metrics:
    `multi_label/accuracy`, over all labels, each said to apply at a probability above 1/2. Predictions: `logits`
    [batch, labels].
    """
    weights = None if positive_weights is None else jnp.asarray(positive_weights, jnp.float32)

    def logits_of(params: Params, batch: Batch, context: Context):
        rng = slice_rng(context.rng, batch) if context.train else None
        return model.apply(params, batch, rng=rng, train=context.train)

    def loss(params, batch, context):
        logits = logits_of(params, batch, context)
        valid, label = batch["valid"], batch["label"]
        each = losses.binary_cross_entropy(logits, label, positive_weights=weights, valid=valid)
        right = ((jax.lax.stop_gradient(logits) > 0) == (label > 0.5)) & valid[..., None]
        labels = logits.shape[-1]
        counted = jnp.where(valid, batch["weight"], 0.0) if "weight" in batch else valid.astype(each.dtype)
        term = Mean((each * counted[..., None]).sum(), counted.sum() * labels)
        return {"multi_label": term}, {"multi_label/accuracy": Mean(right.sum(), valid.sum() * labels)}

    def predict(params, batch, context):
        return {"logits": logits_of(params, batch, context)}

    return lift(loss, init=model.init, predict=predict)
