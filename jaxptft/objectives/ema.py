"""Exponential moving averages of parameters, and the slow network they make, which another learns from.

    target <- decay target + (1 - decay) online        1 - decay_k = (1 - base) (cos(pi k / K) + 1) / 2

Grill et al. 2020, arXiv:2006.07733, sections 3.1 and 3.3; He et al. 2020, arXiv:1911.05722, equation 2.

The target lives in the state of an objective: a copy of the parameters at the start, moved once a step before the
gradient is taken, so that when step k runs it averages the parameters up to those that step k - 1 left. Its batch
norms normalize by the batch in training; their running statistics are its own, and no average.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxptft.objectives.contract import Batch, Context, Model, Params, with_statistics
from jaxptft.objectives.forward import forward, statistics_state


def cosine_decay(step: int | Array, *, base: float, steps: int) -> Float[Array, ""]:
    """The decay of step number `step`, from `base` at 0 to 1 at `steps`, and 1 from then on."""
    progress = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
    return 1.0 - (1.0 - base) * (jnp.cos(jnp.pi * progress) + 1.0) / 2.0


def ema(target: Params, online: Params, decay: float | Float[Array, ""]) -> Params:
    """`target` moved towards `online`, which may hold more than it; where the two are equal it stays, to the bit.

    Raises KeyError where `online` lacks a part of `target`.
    """
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), target, _part_of(online, target))


def start_target(model: Model, params: Params, batch: Batch) -> Params:
    """A copy of what `model` reads of `params`. Raises KeyError where they lack any of it."""
    needed = jax.eval_shape(model.init, jax.random.key(0), batch)
    return jax.tree.map(jnp.array, _part_of(params, needed))


def move_target(model: Model, target: Params, params: Params, decay: float | Float[Array, ""]) -> Params:
    """`ema` but for the running statistics, which stay the target's."""
    return with_statistics(ema(target, params, decay), statistics_state(model, target))


def read_target(
    model: Model, target: Params, batch: Batch, context: Context, rng: PRNGKeyArray | None
) -> tuple[Array, Params]:
    """What the target gives for the batch, not differentiated, and the target with its running statistics renewed."""
    own = context._replace(state=statistics_state(model, target))
    output, state = forward(model, target, batch, own, rng)
    return jax.lax.stop_gradient(output), with_statistics(target, state)


def check_decay(decay: float) -> float:
    """`decay` itself. Raises ValueError where it is outside [0, 1]."""
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay is {decay}; expected a share of the old target from 0 to 1")
    return decay


def check_steps(steps: int) -> int:
    """`steps` itself. Raises ValueError where there is none."""
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1, the steps of the training")
    return steps


def _part_of(params: Mapping[str, Any], like: Mapping[str, Any], at: str = "") -> Params:
    found: Params = {}
    for name, value in like.items():
        path = f"{at}/{name}" if at else name
        if name not in params:
            raise KeyError(f"the parameters have no {path}, which the target network reads")
        found[name] = _part_of(params[name], value, path) if isinstance(value, Mapping) else params[name]
    return found
