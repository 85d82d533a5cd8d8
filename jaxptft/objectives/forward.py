"""One forward pass of a model in an objective, whether or not the model normalizes by the statistics of batches.

Running statistics belong to the state of the objective while it learns: they start as the parameters' own (those of an
imported model), are renewed by every step of training, and are put back into the parameters when learning ends.
"""

from typing import Any

from jaxtyping import PRNGKeyArray, PyTree

from jaxptft.objectives.contract import Batch, Context, Model, Params


def statistics_state(model: Model, params: Params) -> dict[str, Any]:
    """What an objective's `start` holds for the model: {"statistics": ...}, or {} for a model that has none."""
    statistics = getattr(model, "statistics", None)
    return {} if statistics is None else {"statistics": statistics(params)}


def forward(
    model: Model, params: Params, batch: Batch, context: Context, rng: PRNGKeyArray | None = None
) -> tuple[Any, PyTree]:
    """What the model gives for the batch, and the state with its running statistics renewed.

    In training batches are normalized by their own statistics, over all devices of `context.axis_name`; else by the
    running ones of `context.state`, or those in params where the state has none.
    """
    options: dict[str, Any] = {"rng": rng, "train": context.train}
    if getattr(model, "statistics", None) is None:
        return model.apply(params, batch, **options), context.state
    running = context.state.get("statistics") if isinstance(context.state, dict) else None
    if running is None:
        return model.apply(params, batch, **options, axis_name=context.axis_name), context.state
    output, renewed = model.apply(params, batch, **options, statistics=running, axis_name=context.axis_name)
    return output, {**context.state, "statistics": renewed}
