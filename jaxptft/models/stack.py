"""An encoder and a head on its vectors as one model: so projectors, predictors and linear probes are put on."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxptft.models.model import Model, Params

Batch = Mapping[str, Any]


def stack(encoder: Model, head: Model) -> Model:
    """What `head` gives where its `batch["features"]` are the vectors [batch, width] of `encoder`.

    The head sees all else of the batch too. The parameters are those of both, side by side, and so is what they have of
    running statistics. A stack is an encoder again: `stack(stack(encoder, projector), predictor)`.

    `init` raises ValueError where both keep parameters under one key, and where the encoder gives no vectors.
    """

    def init(rng: Key[Array, ""], batch: Batch) -> Params:
        below, above = jax.random.split(rng)
        params = encoder.init(below, batch)
        shape = jax.eval_shape(lambda params: encoder.apply(params, batch), params)
        if len(shape.shape) != 2:
            raise ValueError(
                f"the encoder gives an array of shape {shape.shape}; expected [batch, width], as models.pooled gives"
            )
        more = head.init(above, {**batch, "features": jnp.zeros(shape.shape, shape.dtype)})
        if shared := sorted(params.keys() & more.keys()):
            raise ValueError(f"encoder and head both keep parameters under {shared[0]!r}; give the head another key")
        return {**params, **more}

    def apply(params: Params, batch: Batch, *, rng: Key[Array, ""] | None = None, train: bool = False) -> Any:
        below, above = _split(rng)
        features = encoder.apply(params, batch, rng=below, train=train)
        return head.apply(params, {**batch, "features": features}, rng=above, train=train)

    def apply_with_statistics(
        params: Params,
        batch: Batch,
        *,
        rng: Key[Array, ""] | None = None,
        train: bool = False,
        statistics: Params | None = None,
        axis_name: str | None = None,
    ) -> Any:
        features, renewed = batch, statistics
        for model, key in zip((encoder, head), _split(rng), strict=True):
            options: dict[str, Any] = {"rng": key, "train": train}
            if model.statistics is None:
                features = model.apply(params, batch, **options)
            elif renewed is None:
                features = model.apply(params, batch, **options, axis_name=axis_name)
            else:
                features, renewed = model.apply(params, batch, **options, statistics=renewed, axis_name=axis_name)
            batch = {**batch, "features": features}
        return features if statistics is None else (features, renewed)

    found = [model.statistics for model in (encoder, head) if model.statistics is not None]
    if not found:
        return Model(init, apply)

    def statistics(params: Params) -> Params:
        return {name: leaves for read in found for name, leaves in read(params).items()}

    return Model(init, apply_with_statistics, statistics)


def _split(rng: Key[Array, ""] | None) -> tuple[Any, Any]:
    return (None, None) if rng is None else tuple(jax.random.split(rng))
