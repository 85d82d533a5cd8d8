"""Evaluation over a whole data set: each row exactly once, whatever the batches and devices."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxptft.objectives import Batch, Context, Mean, Objective, Params
from jaxptft.train.processes import to_host
from jaxptft.train.stop import StopFlag

Evaluator = Callable[[Params, PyTree, PyTree, Batch], tuple[dict[str, jax.Array], dict[str, Mean]]]


class Evaluation(NamedTuple):
    """Means over every row, and what was predicted for each, in the order of the rows' ids."""

    metrics: dict[str, float]
    predictions: dict[str, np.ndarray]
    ids: np.ndarray


def make_evaluator(objective: Objective, *, labelled: bool = True) -> Evaluator:
    """A compiled `(params, objective_state, constants, batch) -> (predictions, metrics)` with dropout off.

    The metrics hold the objective's own, `NAME/loss` for each term, and nothing of the penalties. With
    `labelled` False the loss is left out: predictions alone, of batches that hold no answers.
    """

    def run(params, state, constants, batch):
        context = Context(state, constants, jax.random.key(0), train=False, axis_name=None)
        predictions = objective.predict(params, batch, context)
        if not labelled:
            return predictions, {}
        terms, (metrics, _) = objective.loss(params, batch, context)
        return predictions, metrics | {f"{name}/loss": term for name, term in terms.items()}

    return jax.jit(run)


def evaluate(
    evaluator: Evaluator,
    params: Params,
    state: PyTree,
    constants: PyTree,
    batches: Iterable[Batch],
    *,
    place: Callable[[Batch], Batch] = lambda batch: batch,
    stop: StopFlag | None = None,
) -> Evaluation:
    """Run `evaluator` over `batches` and gather what it says of each row.

    Batches of one source, {"task": {...}}, give what those of `combine` give but for the name in front of each number.
    Padding rows (`valid` False) are dropped. A mean of nothing is NaN, which no best model can be. Raises ValueError
    when a row's id appears twice or no row is valid, and `Stopped` when `stop` was set on the way.
    """
    sums: dict[str, tuple[float, float]] = {}
    gathered: list[dict[str, np.ndarray]] = []
    for batch in batches:
        if stop is not None:
            stop.raise_if_set()
        predictions, metrics = to_host(evaluator(params, state, constants, place(batch)))
        if "ids" not in batch and len(batch) == 1:
            ((source, batch),) = batch.items()
            predictions, metrics = (_without(entries, f"{source}/") for entries in (predictions, metrics))
        ids = np.asarray(batch["ids"])
        valid = np.nonzero(batch["valid"])  # rows that `place` has added come behind them
        for name, mean in metrics.items():
            total, count = sums.get(name, (0.0, 0.0))
            sums[name] = (total + float(mean.total), count + float(mean.count))
        gathered.append({"ids": ids[valid], **{name: values[valid] for name, values in predictions.items()}})

    rows = {name: np.concatenate([part[name] for part in gathered]) for name in gathered[0]} if gathered else {}
    if not rows or not len(rows["ids"]):
        raise ValueError("there is no row to evaluate")
    order = np.argsort(rows["ids"], kind="stable")
    rows = {name: values[order] for name, values in rows.items()}
    ids = rows.pop("ids")
    if repeated := ids[1:][ids[1:] == ids[:-1]].tolist():
        raise ValueError(f"row {repeated[0]} is evaluated more than once; each must come exactly once")
    means = {name: total / count if count else float("nan") for name, (total, count) in sums.items()}
    return Evaluation(means, rows, ids)


def _without(entries: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in entries.items()}
