"""Causal language modelling: every token predicted from those before it in the same text."""

import jax
import jax.numpy as jnp

from jaxptft import losses
from jaxptft.objectives.contract import Mean, Model, Objective, lift, slice_rng
from jaxptft.objectives.guessed import guessed
from jaxptft.objectives.masking import places


def next_token(model: Model) -> Objective:
    """Softmax cross-entropy over the vocabulary, averaged over all tokens of the batch that have a predecessor.

    `model.apply` returns logits [batch, length, vocab] and must look at no later token. In a packed row nothing is
    predicted across segments, and padding neither predicts nor is predicted. Metrics: `next_token/accuracy`.
    """

    def loss(params, batch, context):
        rng = slice_rng(context.rng, batch) if context.train else None
        logits = model.apply(params, batch, rng=rng, train=context.train)
        segments = jnp.where(places(batch).real, batch.get("segment_ids", 1), 0)
        total, count = losses.next_token_cross_entropy(logits, batch["input_ids"], segments)
        targets, predicted = losses.next_tokens(batch["input_ids"], segments)
        right = guessed(jax.lax.stop_gradient(logits), targets) & predicted
        return (
            {"next_token": Mean(total.sum(), count.sum())},
            {"next_token/accuracy": Mean(right.sum(), predicted.sum())},
        )

    return lift(loss, init=model.init)
