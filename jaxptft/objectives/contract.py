"""What every objective is: pure functions over params, and means that have not been divided yet.

A training loss is  sum over terms of (sum over examples of total) / (sum over examples of count).  Keeping the two
sums apart until all counts are known makes the loss and its gradient the same under any split of the batch, over
devices or micro-steps, however unequal the counts of the parts are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Params = dict[str, Any]
Batch = dict[str, Any]


class Model(Protocol):
    """A pair of pure functions: `init(rng, batch)` makes params, `apply(params, batch, rng=, train=)` reads them.

    Where it also has `statistics`, batches are normalized by their own: see `forward`.
    """

    @property
    def init(self) -> Callable[..., Params]: ...
    @property
    def apply(self) -> Callable[..., Any]: ...


class Mean(NamedTuple):
    """A mean that has not been divided yet."""

    total: Array  # sum over the examples (or tokens) it covers
    count: Array  # how many; never depends on params

    def value(self) -> Float[Array, ""]:
        """`total / count`, and 0 where nothing was counted."""
        return jnp.where(self.count > 0, self.total / jnp.where(self.count > 0, self.count, 1), 0.0)


class Context(NamedTuple):
    """Everything a loss may read besides params and batch."""

    state: PyTree  # carried, not differentiated: EMA target, queue, batch statistics
    constants: PyTree  # never changes: teacher, pre-trained reference, Fisher
    rng: PRNGKeyArray  # folded with the step; equal on every shard and micro-step
    train: bool  # static
    axis_name: str | None  # set by pmap / shard_map, None under global-view jit


Terms = dict[str, Mean]
Metrics = dict[str, Mean]


class Objective(NamedTuple):
    """What is minimised, and how its parameters and state come to be. Build one with `lift`."""

    init: Callable[[PRNGKeyArray, Batch], Params]
    start: Callable[[Params, Batch], PyTree]  # after imported weights are in; copies, never aliases
    prepare: Callable[[Params, PyTree, Array], PyTree]  # once an optimizer step, outside the gradient
    loss: Callable[[Params, Batch, Context], tuple[Terms, tuple[Metrics, PyTree]]]
    predict: Callable[[Params, Batch, Context], dict[str, Array]]
    constants: PyTree
    coupled: bool  # examples interact: NT-Xent, queues, BatchNorm, MMD, CORAL
    finish: Callable[[Params, PyTree], Params]  # what leaves when learning ends: running statistics put into params


def lift(
    loss: Callable[[Params, Batch, Context], Any],
    *,
    init: Callable[[PRNGKeyArray, Batch], Params],
    start: Callable[[Params, Batch], PyTree] | None = None,
    prepare: Callable[[Params, PyTree, Array], PyTree] | None = None,
    predict: Callable[[Params, Batch, Context], dict[str, Array]] | None = None,
    constants: PyTree = None,
    coupled: bool = False,
    finish: Callable[[Params, PyTree], Params] | None = None,
) -> Objective:
    """Fill the defaults of an `Objective` around a plain loss function.

    `loss` may return terms alone, `(terms, metrics)` or `(terms, (metrics, state))`; terms and metrics are dicts of
    `Mean`. Anything else is a TypeError when the loss is traced. `finish` puts the state's "statistics" into params
    by default, where there are any.

    >>> import jax.numpy as jnp
    >>> def squares(params, batch, context):
    ...     return {"squares": Mean(jnp.sum((params["w"] * batch["x"]) ** 2), batch["x"].size)}
    >>> objective = lift(squares, init=lambda rng, batch: {"w": jnp.ones(())})
    >>> context = Context(state={}, constants=None, rng=jax.random.key(0), train=True, axis_name=None)
    >>> terms, (metrics, state) = objective.loss({"w": 2.0}, {"x": jnp.arange(3.0)}, context)
    >>> float(terms["squares"].total), int(terms["squares"].count)
    (20.0, 3)
    """

    def normalised(params, batch, context):
        return _normalise(loss(params, batch, context), context.state)

    def no_predictions(params, batch, context):
        return {}

    return Objective(
        init=init,
        start=start or (lambda params, batch: {}),
        prepare=prepare or (lambda params, state, step: state),
        loss=normalised,
        predict=predict or no_predictions,
        constants=constants,
        coupled=coupled,
        finish=finish or with_statistics,
    )


def with_statistics(params: Params, state: PyTree) -> Params:
    """Params with the running statistics of `state["statistics"]`, if there are any, in place of their own."""

    def put(tree, values):
        held = dict(tree)
        for name, value in values.items():
            held[name] = put(held[name], value) if isinstance(value, dict) else value
        return held

    return put(params, state["statistics"]) if isinstance(state, dict) and state.get("statistics") else params


def total_loss(terms: Terms) -> Float[Array, ""]:
    """The loss of a whole batch: the sum over terms of total / count, 0/0 being 0."""
    return sum((term.value() for term in terms.values()), start=jnp.zeros(()))


def slice_rng(rng: PRNGKeyArray, batch: Batch) -> PRNGKeyArray:
    """A key for dropout: `rng` folded with the first example id of this slice of the batch.

    Where the slice is split over devices by a mapped axis `data`, all have the key of its first row, and a model's
    dropout goes by the place among the rows of all: so it is that of one device.
    """
    first = batch["ids"].reshape(-1)[0].astype(jnp.uint32)
    if "data" in jax.sharding.get_abstract_mesh().manual_axes:
        first = jax.lax.psum(jnp.where(jax.lax.axis_index("data") == 0, first, 0), "data")
    return jax.random.fold_in(rng, first)


def _normalise(returned, state):
    if isinstance(returned, dict):
        terms, metrics = returned, {}
    elif isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], tuple):
        terms, (metrics, state) = returned
    elif isinstance(returned, tuple) and len(returned) == 2:
        terms, metrics = returned
    else:
        raise TypeError(
            f"a loss returned {type(returned).__name__}; expected terms, (terms, metrics) or (terms, (metrics, state))"
        )
    for kind, means in (("term", terms), ("metric", metrics)):
        for name, mean in means.items():
            if not isinstance(mean, Mean):
                raise TypeError(f"{kind} {name!r} is a {type(mean).__name__}; expected a Mean(total, count)")
    return terms, (metrics, state)
