"""Learning-rate schedules: a linear warmup, then one of five ways on. All are optax schedules, functions of the step.

With s the step, W the warmup, N the steps, and x = (s - W) / (N - W):

    warmup (s < W)     peak * s / W                                    as in transformers: 0 at step 0, peak at step W
    linear             floor + (peak - floor) * (1 - x)
    cosine             floor + (peak - floor) * (1 + cos(pi x)) / 2    Loshchilov and Hutter 2017, arXiv:1608.03983
    constant           peak
    inverse_sqrt       peak * sqrt(T / (s - W + T))                    Vaswani et al. 2017, arXiv:1706.03762, 5.3
    cyclical           straight lines between floor and peak           Smith 2017, arXiv:1506.01186, "triangular"

From step N on, the first, second and last stay at the floor.
"""

import math
import operator
from typing import Literal, get_args

import jax.numpy as jnp
import optax

Kind = Literal["linear", "cosine", "constant", "cyclical", "inverse_sqrt"]
KINDS: tuple[str, ...] = get_args(Kind)


def _whole_number(name: str, value: object, least: int) -> int:
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number


def _warmup_steps(warmup: int | float, steps: int) -> int:
    if isinstance(warmup, float):
        if not 0.0 <= warmup < 1.0:
            raise ValueError(
                f"warmup {warmup!r} as a float is a fraction of the steps in [0, 1): for steps give an int"
            )
        # Rounded up as transformers does, but never the whole run, which in one step would train nothing.
        return min(math.ceil(warmup * steps), steps - 1)
    number = _whole_number("warmup", warmup, 0)
    if number >= steps:
        raise ValueError(f"warmup of {number} steps must end before the last of {steps} steps: shorten it")
    return number


def _triangular(half: float, start: float) -> optax.Schedule:
    """Straight lines between 1, after every even number of half cycles, and 0; step 0 is `start` half cycles in."""
    return lambda step: jnp.abs(jnp.mod(jnp.asarray(step) / half + start, 2.0) - 1.0)


def schedule(
    kind: Kind,
    *,
    peak: float,
    steps: int,
    warmup: int | float = 0,
    floor: float = 0.0,
    cycles: int = 1,
    timescale: int | None = None,
) -> optax.Schedule:
    """The learning rate at each step, counted from 0, as a function for optax; call it to log the current rate.

    `peak` and `floor` are rates. `warmup` is a number of steps (int) or a fraction of `steps` (float, rounded up).
    `cycles` is for cyclical: that many triangles fill the steps, from floor to peak and back; a warmup takes the place
    of the first rise, and equally long falls and rises share the rest. `timescale`, T above, is for inverse_sqrt: the
    warmup's steps if not given, or 10,000 without warmup. Linear, cosine, constant and inverse_sqrt are those of
    `transformers.get_scheduler`.

    Raises:
        ValueError: an unknown kind, a number out of range, or an argument that the kind does not take.

    >>> rate = schedule("linear", peak=1e-3, steps=10, warmup=2)
    >>> [round(float(rate(step)), 6) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.0005, 0.001, 0.0005, 0.0]
    """
    if kind not in KINDS:
        raise ValueError(f"unknown schedule {kind!r}: choose one of {', '.join(KINDS)}")
    steps = _whole_number("steps", steps, 1)
    ramp = _warmup_steps(warmup, steps)
    cycles = _whole_number("cycles", cycles, 1)
    if isinstance(peak, int | float) and not (math.isfinite(peak) and peak >= 0.0):
        raise ValueError(f"peak must be a finite learning rate of at least 0, got {peak}")
    if isinstance(floor, int | float) and isinstance(peak, int | float) and not 0.0 <= floor <= peak:
        raise ValueError(f"floor must lie between 0 and the peak {peak}, got {floor}")
    if kind in ("constant", "inverse_sqrt") and floor != 0.0:
        raise ValueError(f"floor is for linear, cosine and cyclical: {kind} has none, got {floor}")
    if kind != "cyclical" and cycles != 1:
        raise ValueError(f"cycles is for cyclical: {kind} has none, got {cycles}")
    if kind != "inverse_sqrt" and timescale is not None:
        raise ValueError(f"timescale is for inverse_sqrt: {kind} has none, got {timescale}")

    # `shape` falls from 1 to 0 over the steps after the warmup.
    if kind == "linear":
        shape = optax.linear_schedule(1.0, 0.0, steps - ramp)
    elif kind == "cosine":
        shape = optax.cosine_decay_schedule(1.0, steps - ramp)
    elif kind == "constant":
        shape = optax.constant_schedule(1.0)
    elif kind == "inverse_sqrt":
        scale = float(_whole_number("timescale", timescale, 1) if timescale is not None else ramp or 10_000)
        # join_schedules evaluates every piece everywhere: before the warmup's end the root must not see less than 0.
        shape = lambda step: jnp.sqrt(scale / (jnp.maximum(step, 0) + scale))  # noqa: E731
    else:
        half, start = ((steps - ramp) / (2 * cycles - 1), 0.0) if ramp else (steps / (2 * cycles), 1.0)
        wave = _triangular(half, start)
        shape = lambda step: jnp.where(step < steps - ramp, wave(step), 0.0)  # noqa: E731

    def after(step):
        return floor + (peak - floor) * shape(step)

    if ramp == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, ramp), after], [ramp])
