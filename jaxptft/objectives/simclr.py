"""SimCLR: each of two views of an example is to find the other among those of the whole batch.

Chen et al. 2020, arXiv:2002.05709, section 2 and algorithm 1. On text, where the two views are two dropout masks over
the same tokens, it is unsupervised SimCSE (Gao, Yao and Chen 2021, arXiv:2104.08821, section 3); that scores each text
against the second pass of the others only, SimCLR against both passes.
"""

import jax
import jax.numpy as jnp

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Mean, Model, Objective, lift
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


def simclr(
    model: Model, *, encoder: Model, views: Views, temperature: float = 0.1, plain: View = unchanged
) -> Objective:
    """NT-Xent over both views of every example, averaged over the valid rows of both; the whole batch's are negatives.

    `model.apply` returns projections [rows, width], those of `models.stack(encoder, projector)`; both views go through
    it in one pass, the two of an example below each other. `views` is one view that is drawn twice, or a pair; with
    None the same batch goes in twice and dropout alone makes the difference, on text and images. Evaluation draws views
    as well: with one key, always alike (and without dropout, so that `views` None says little there).

    Predictions: `features` [batch, width], of `encoder` for the images through `plain`. Metrics: `simclr/accuracy`, how
    often the partner is the nearest; `simclr/alignment` and `simclr/uniformity` of the projections (Wang and Isola
    2020, arXiv:2005.10242), the latter of first views in one batch.
    Raises ValueError on a temperature that is not positive.
    """
    check_temperature(temperature)

    def loss(params, batch, context):
        viewing, dropout = jax.random.split(context.rng)
        both = _interleaved(*view_pair(views, plain, viewing, batch))
        (rng,) = pass_keys(dropout, batch, context, 1)
        rows, state = forward(model, params, both, context, rng)
        valid = both["valid"]
        whole = everyone(rows, valid, context.axis_name)
        logits, partners = losses.nt_xent_logits(
            rows,
            temperature=temperature,
            valid=valid,
            candidates=whole.rows,
            candidates_valid=whole.valid,
            first=whole.first,
        )
        per_row = losses.cross_entropy(logits, partners, valid=valid)
        right = (jax.lax.stop_gradient(logits).argmax(-1) == partners) & valid
        fixed, fixed_whole = jax.lax.stop_gradient((rows, whole.rows))
        apart = losses.normalized_squared_error(fixed[::2], fixed[1::2], valid=valid[::2])
        metrics = {
            "simclr/accuracy": Mean(right.sum(), valid.sum()),
            "simclr/alignment": Mean(apart.sum(), valid[::2].sum()),
            "simclr/uniformity": Mean(losses.uniformity(fixed_whole[::2], whole.valid[::2]), jnp.ones(())),
        }
        return {"simclr": Mean(per_row.sum(), valid.sum())}, (metrics, state)

    return lift(
        loss,
        init=lambda rng, batch: model.init(rng, shaped_batch(views, plain, batch)),
        start=lambda params, batch: statistics_state(model, params),
        predict=features_of(encoder, plain),
        coupled=True,
    )


def _interleaved(first: Batch, second: Batch) -> Batch:
    """Both views of an example below each other: under sharding no row moves to another device."""
    return jax.tree.map(lambda a, b: jnp.stack([a, b], 1).reshape(-1, *jnp.shape(a)[1:]), first, second)
