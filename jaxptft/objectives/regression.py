"""Regression: one number for each example."""

import jax.numpy as jnp

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Context, Mean, Model, Objective, Params, lift, slice_rng


def regression(model: Model) -> Objective:
    """Mean squared error over valid examples; no factor 1/2.

    `model.apply` returns [batch, 1]. The batch holds what the model reads, `label` [batch] numbers, `ids` [batch], and
    `valid` [batch]; optionally `weight` [batch], what each row counts in the mean. Predictions: `logits` [batch, 1],
    the numbers themselves.

    Raises ValueError where the model gives more than one number an example.
    """

    def outputs_of(params: Params, batch: Batch, context: Context):
        rng = slice_rng(context.rng, batch) if context.train else None
        outputs = model.apply(params, batch, rng=rng, train=context.train)
        if outputs.shape != (*batch["ids"].shape, 1):
            raise ValueError(f"the model gave outputs of shape {outputs.shape}; expected (batch, 1): one number each")
        return outputs

    def loss(params, batch, context):
        valid = batch["valid"]
        # Selecting before the square keeps NaN of rows that do not count out of the gradient.
        predictions = jnp.where(valid, outputs_of(params, batch, context)[..., 0], 0.0)
        targets = jnp.where(valid, batch["label"], 0.0)
        errors = losses.mean_squared_error(predictions.reshape(-1), targets.reshape(-1)).reshape(valid.shape)
        counted = jnp.where(valid, batch["weight"], 0.0) if "weight" in batch else valid.astype(errors.dtype)
        return {"regression": Mean((errors * counted).sum(), counted.sum())}

    def predict(params, batch, context):
        return {"logits": outputs_of(params, batch, context)}

    return lift(loss, init=model.init, predict=predict)
