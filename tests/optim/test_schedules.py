import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxptft.optim import KINDS, schedule

PEAK = 3e-4


def _reference(name, steps, warmup, **options):
    """The rates of transformers' schedule, stepped through torch's LambdaLR, beyond its end."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = transformers.get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=options or None)
    rates = []
    for _ in range(steps + 5):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


def _rates(steps, **options):
    rate = jax.jit(schedule(peak=PEAK, steps=steps, **options))
    return np.array([rate(step) for step in range(steps + 5)])


@pytest.mark.parametrize("steps, warmup", [(1, 0), (10, 0), (10, 3), (40, 39), (97, 10)])
@pytest.mark.parametrize(
    "kind, name",
    [
        ("linear", "linear"),
        ("cosine", "cosine"),
        ("constant", "constant_with_warmup"),
        ("inverse_sqrt", "inverse_sqrt"),
    ],
)
def test_equals_transformers(kind, name, steps, warmup):
    ours, theirs = _rates(steps, kind=kind, warmup=warmup), _reference(name, steps, warmup)
    if kind == "cosine":
        # Past its end transformers' cosine rises again; ours stays at the floor.
        assert (ours[steps:] == 0.0).all()
        theirs[steps:] = 0.0
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * PEAK)


def test_cosine_with_floor_and_timescale_equal_transformers():
    ours = _rates(30, kind="cosine", warmup=4, floor=PEAK / 10)
    np.testing.assert_allclose(ours[:31], _reference("cosine_with_min_lr", 30, 4, min_lr=PEAK / 10)[:31], rtol=1e-5)
    ours = _rates(30, kind="inverse_sqrt", warmup=4, timescale=50)
    np.testing.assert_allclose(ours, _reference("inverse_sqrt", 30, 4, timescale=50), rtol=1e-5)


def test_linear_with_floor():
    """Hand computation: from 1 to 0.2 in four steps, then on at 0.2."""
    rate = schedule("linear", peak=1.0, steps=4, floor=0.2)
    np.testing.assert_allclose([rate(step) for step in range(6)], [1.0, 0.8, 0.6, 0.4, 0.2, 0.2], rtol=1e-6)


def test_cyclical_is_the_triangular_policy():
    """Smith 2017, section 3: cycle = floor(1 + s / 2h), x = |s / h - 2 cycle + 1|, rate = low + (high - low)(1 - x)."""
    steps, cycles, low, high = 24, 3, 0.25, 1.0
    half = steps / (2 * cycles)
    rate = schedule("cyclical", peak=high, floor=low, steps=steps, cycles=cycles)
    for step in range(steps):
        cycle = math.floor(1 + step / (2 * half))
        x = abs(step / half - 2 * cycle + 1)
        np.testing.assert_allclose(rate(step), low + (high - low) * max(0.0, 1 - x), rtol=1e-6)
    np.testing.assert_allclose([rate(step) for step in (24, 25, 28, 100)], low, rtol=1e-6)
    np.testing.assert_allclose(rate(jnp.arange(5)), [0.25, 0.4375, 0.625, 0.8125, 1.0], rtol=1e-6)  # by hand


def test_cyclical_warmup_is_the_first_rise():
    """Hand computation: up in 2, then down, up and down in thirds of the other 6 steps."""
    rate = schedule("cyclical", peak=1.0, steps=8, warmup=2, cycles=2)
    np.testing.assert_allclose(
        [rate(step) for step in range(10)], [0.0, 0.5, 1.0, 0.5, 0.0, 0.5, 1.0, 0.5, 0.0, 0.0], atol=1e-6
    )


def test_warmup_fraction_is_rounded_up_and_leaves_a_step():
    """transformers' TrainingArguments.get_warmup_steps rounds up; a run of one step must not be all warmup."""
    by_fraction, by_steps = (schedule("linear", peak=1.0, steps=25, warmup=warmup) for warmup in (0.1, 3))
    assert transformers.TrainingArguments.get_warmup_steps(types.SimpleNamespace(warmup_steps=0.1), 25) == 3
    np.testing.assert_array_equal([by_fraction(step) for step in range(26)], [by_steps(step) for step in range(26)])
    assert schedule("linear", peak=1.0, steps=1, warmup=0.1)(0) == 1.0
    np.testing.assert_array_equal(
        [schedule("constant", peak=1.0, steps=2, warmup=0.9)(step) for step in (0, 1)], [0, 1]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_warms_up_from_zero_to_the_peak_and_is_finite(kind):
    """A traced peak, for many runs in one program, and NaN checks on: pieces that do not apply must not give NaN."""
    with jax.debug_nans(True):
        rates = jax.jit(lambda peak: schedule(kind, peak=peak, steps=12, warmup=4)(jnp.arange(20)))(2.0)
    np.testing.assert_allclose(rates[:5], [0.0, 0.5, 1.0, 1.5, 2.0], rtol=1e-6)  # by hand
    assert np.isfinite(rates).all()
    assert (rates >= 0.0).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "liner"}, "unknown schedule 'liner': choose one of linear, cosine, constant, cyclical, inverse_sqrt"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 10.0}, "steps must be a whole number of at least 1, got 10.0"),
        ({"steps": True}, "steps must be a whole number of at least 1, got True"),
        ({"warmup": -1}, "warmup must be a whole number of at least 0, got -1"),
        ({"warmup": 10}, "warmup of 10 steps must end before the last of 10 steps"),
        ({"warmup": 1.0}, r"warmup 1.0 as a float is a fraction of the steps in \[0, 1\)"),
        ({"warmup": float("nan")}, "warmup nan as a float is a fraction"),
        ({"peak": -1.0}, "peak must be a finite learning rate of at least 0, got -1.0"),
        ({"peak": float("inf")}, "peak must be a finite learning rate"),
        ({"floor": 2.0}, "floor must lie between 0 and the peak 1.0, got 2.0"),
        ({"floor": -0.1}, "floor must lie between 0 and the peak"),
        ({"kind": "constant", "floor": 0.1}, "floor is for linear, cosine and cyclical: constant has none, got 0.1"),
        ({"cycles": 2}, "cycles is for cyclical: linear has none, got 2"),
        ({"kind": "cyclical", "cycles": 0}, "cycles must be a whole number of at least 1, got 0"),
        ({"timescale": 5}, "timescale is for inverse_sqrt: linear has none, got 5"),
        ({"kind": "inverse_sqrt", "timescale": 0}, "timescale must be a whole number of at least 1, got 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        schedule(**{"kind": "linear", "peak": 1.0, "steps": 10, **options})
