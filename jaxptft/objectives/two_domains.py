"""What the objectives of domain adaptation read: one vector a row, of a labelled source and an unlabelled target."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float

from jaxptft.objectives.contract import Batch, Context, Model, Params, slice_rng


class Rows(NamedTuple):
    """The features of one domain's rows, and which of them count."""

    features: Float[Array, "rows width"]
    valid: Bool[Array, " rows"]


def features_of(
    features: Model, params: Params, batch: Batch, context: Context, names: tuple[str, str], *, whole: bool
) -> tuple[Rows, Rows]:
    """The rows of `batch[names[0]]` and of `batch[names[1]]`, each with dropout of its own.

    `whole` gathers those of all devices where the batch is split by `context.axis_name`, for a loss of whole samples.

    Raises KeyError where the batch lacks a domain, ValueError where the features are not [rows, width].
    """
    if absent := [name for name in names if name not in batch]:
        raise KeyError(f"the batch has {sorted(batch)} but not {absent[0]!r}; give both domains, as reads= of combine")
    found = []
    for name, key in zip(names, jax.random.split(context.rng), strict=True):
        part = batch[name]
        rng = slice_rng(key, part) if context.train else None
        rows = Rows(features.apply(params, part, rng=rng, train=context.train), part["valid"])
        if rows.features.ndim != 2:
            raise ValueError(f"the features have shape {rows.features.shape}; expected [rows, width], one vector a row")
        if whole and context.axis_name is not None:
            # Its transpose sums over devices what each derives from the whole sample, so the gradient is exact too.
            rows = Rows(*(jax.lax.all_gather(leaf, context.axis_name, tiled=True) for leaf in rows))
        found.append(rows)
    return found[0], found[1]
