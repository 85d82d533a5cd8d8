"""R-Drop: two passes that differ in their dropout, and what their predictions lie apart.

    loss  =  (loss_1 + loss_2) / 2  +  weight * ( KL(p_1 || p_2) + KL(p_2 || p_1) ) / 2

Liang et al. 2021, arXiv:2106.14448, equations 3 and 4. Equation 4 has the sum of the two losses, so that its alpha is
twice the `weight` here.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Context, Mean, Objective, Params

Read = Callable[[Params, Batch, Context], tuple[Float[Array, "*batch classes"], Bool[Array, "*batch"]]]

_SECOND = zlib.crc32(b"r_drop")


def r_drop(objective: Objective, *, weight: float, read: Read | None = None) -> Objective:
    """`objective` with the term `r_drop`, which counts once for each distribution that `read` says is valid.

    `read` gives logits, whose softmax is compared, and which of them count; by default the `logits` that `objective`
    predicts [batch, classes], and the batch's `valid`. The first pass has the context's key as it is, and so is the
    same as another objective's on these rows; the second has one folded from it. Both passes are differentiated, and
    the metrics are those of both. Evaluation is one pass, without the term.

    Raises:
        ValueError: the weight is negative; when traced, an objective that predicts no logits.
    """
    if not weight >= 0.0:
        raise ValueError(f"the weight of r_drop must be at least 0, got {weight}")

    def predicted(params: Params, batch: Batch, context: Context):
        predictions = objective.predict(params, batch, context)
        if "logits" not in predictions:
            raise ValueError(f"r_drop compares logits, and the objective predicts {sorted(predictions)}: give read=")
        return predictions["logits"], batch["valid"]

    def loss(params, batch, context):
        if not context.train:
            return objective.loss(params, batch, context)
        terms, (metrics, state) = objective.loss(params, batch, context)
        second = context._replace(rng=jax.random.fold_in(context.rng, _SECOND), state=state)
        more_terms, (more_metrics, state) = objective.loss(params, batch, second)

        logits, valid = (read or predicted)(params, batch, context)
        others, _ = (read or predicted)(params, batch, second)
        apart = losses.symmetric_kl(logits, others, valid=valid)
        term = Mean(weight * apart.sum(), jnp.asarray(valid, jnp.float32).sum())
        return {**_both(terms, more_terms), "r_drop": term}, (_both(metrics, more_metrics), state)

    return objective._replace(loss=loss)


def _both(first: dict[str, Mean], second: dict[str, Mean]) -> dict[str, Mean]:
    """Means over both passes: half the sum of the two where they count alike."""
    return {
        name: Mean(mean.total + second[name].total, mean.count + second[name].count) for name, mean in first.items()
    }
