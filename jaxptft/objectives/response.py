"""Supervised fine-tuning of a causal language model: the response to a prompt, and nothing of the prompt, is learnt."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Mean, Model, Objective, lift, slice_rng
from jaxptft.objectives.guessed import guessed


def response_targets(batch: Batch) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
    """The token that each position is to predict, and whether that is one of a valid row's response."""
    segments = jnp.where(batch["valid"][:, None], batch["attention_mask"], 0)
    targets, predicted = losses.next_tokens(batch["input_ids"], segments)
    return targets, predicted & (jnp.pad(batch["token_type_ids"][:, 1:], ((0, 0), (0, 1))) == 1)


def response_tokens(
    logits: Float[Array, "batch length vocab"], batch: Batch
) -> tuple[Float[Array, "batch length vocab"], Bool[Array, "batch length"]]:
    """A distribution over the vocabulary at each position, and which of them predict a token of a response."""
    return logits, response_targets(batch)[1]


def response(model: Model) -> Objective:
    """Softmax cross-entropy over the vocabulary, averaged over the tokens of all responses of the batch.

    `model.apply` returns logits [batch, length, vocab] and must look at no later token. In `token_type_ids` the tokens
    of a response, its end included, are 1 and those of the prompt 0; the model itself sees no types.
    Source: Ouyang et al. 2022 (arXiv:2203.02155), section 3.5, "supervised fine-tuning". Metrics:
    `response/accuracy`, of tokens. Predictions: `loss` and `tokens`, summed over each response [batch].
    """

    def per_row(params, batch, context):
        rng = slice_rng(context.rng, batch) if context.train else None
        seen = {name: value for name, value in batch.items() if name != "token_type_ids"}
        logits = model.apply(params, seen, rng=rng, train=context.train)
        targets, counted = response_targets(batch)
        loss = losses.cross_entropy(logits, targets, valid=counted)
        right = guessed(jax.lax.stop_gradient(logits), targets) & counted
        return loss.sum(1), counted.sum(1).astype(jnp.float32), right.sum()

    def loss(params, batch, context):
        total, count, right = per_row(params, batch, context)
        return {"response": Mean(total.sum(), count.sum())}, {"response/accuracy": Mean(right, count.sum())}

    def predict(params, batch, context):
        total, count, _ = per_row(params, batch, context)
        return {"loss": total, "tokens": count}

    return lift(loss, init=model.init, predict=predict)
