"""Which of several texts fits: one score a choice, and a softmax over the choices that an example has."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Context, Mean, Model, Objective, Params, lift, slice_rng

ABSENT = -1e30  # finite, and a probability of 0 after any softmax


def multiple_choice(model: Model, *, label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy over the choices that exist, averaged over valid examples.

    `model.apply` reads ids [batch, choices, length] and returns logits [batch, choices].
    The batch holds what the model reads, `valid_choices` bool [batch, choices], `label` [batch] (the number of the
    right choice), `ids` and `valid` [batch]. Metrics: `multiple_choice/accuracy`. Predictions: `logits`
    [batch, choices], -1e30 for choices that do not exist.
    """

    def logits_of(params: Params, batch: Batch, context: Context) -> Float[Array, "batch choices"]:
        rng = slice_rng(context.rng, batch) if context.train else None
        return model.apply(params, batch, rng=rng, train=context.train)

    def loss(params, batch, context):
        label, valid = batch["label"], batch["valid"]
        logits = jnp.where(batch["valid_choices"], logits_of(params, batch, context), -jnp.inf)
        per_example = losses.cross_entropy(logits, label, label_smoothing=label_smoothing, valid=valid)
        right = (jax.lax.stop_gradient(logits).argmax(-1) == label) & valid
        return (
            {"multiple_choice": Mean(per_example.sum(), valid.sum())},
            {"multiple_choice/accuracy": Mean(right.sum(), valid.sum())},
        )

    def predict(params, batch, context):
        return {"logits": jnp.where(batch["valid_choices"], logits_of(params, batch, context), ABSENT)}

    return lift(loss, init=model.init, predict=predict)
