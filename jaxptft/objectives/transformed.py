"""An objective over other parameters than those that are held: adapters merged in, noise mixed in.

    transform(params, constants, rng, train) -> params

stands between the parameters of the step, which are differentiated, and those that the objective reads. Everything
that reparameterises or perturbs parameters is such a function, and none of the objectives needs to know.
"""

import zlib
from collections.abc import Callable

import jax
from jaxtyping import PRNGKeyArray, PyTree

from jaxptft.objectives.combine import merge_params
from jaxptft.objectives.contract import Context, Objective, Params

Transform = Callable[[Params, PyTree, PRNGKeyArray, bool], Params]

_SCOPE = zlib.crc32(b"transformed")


def transformed(
    objective: Objective,
    transform: Transform,
    *,
    constants: PyTree = None,
    extra_init: Callable[[PRNGKeyArray, Params], Params] | None = None,
) -> Objective:
    """`objective` on what `transform` makes of the parameters, in its loss and its predictions.

    `constants` travel to the step as all constants do, and reach the transform as its second argument; its third is a
    key of its own, the step's and so the same on every shard and micro-step, its fourth whether this is training.
    `start` and `prepare` see transformed parameters too, with `train` False and the constants as they are given here (a
    transform that reads them even then has them as constants of the compiled program). `extra_init` takes a key and the
    parameters of `objective.init`, and gives further ones, of which the gradient is taken as of any.
    """

    def own(constants: PyTree, name: str) -> PyTree:
        return (constants or {}).get(name)

    def seen(params: Params, context: Context) -> Params:
        rng = jax.random.fold_in(context.rng, _SCOPE)
        return transform(params, own(context.constants, "transform"), rng, context.train)

    def at_rest(params: Params) -> Params:
        return transform(params, constants, jax.random.key(0), False)

    def inner(context: Context) -> Context:
        return context._replace(constants=own(context.constants, "objective"))

    def init(rng, batch):
        params = objective.init(rng, batch)
        if extra_init is None:
            return params
        return merge_params(params, extra_init(jax.random.fold_in(rng, _SCOPE), params))

    return objective._replace(
        init=init,
        start=lambda params, batch: objective.start(at_rest(params), batch),
        prepare=lambda params, state, step: objective.prepare(at_rest(params), state, step),
        loss=lambda params, batch, context: objective.loss(seen(params, context), batch, inner(context)),
        predict=lambda params, batch, context: objective.predict(seen(params, context), batch, inner(context)),
        constants={"objective": objective.constants, "transform": constants},
    )
