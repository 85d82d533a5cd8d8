"""The token objectives together, under every way to split or lay out a batch: one loss and one gradient."""

from functools import partial

import chex
import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxptft import train
from jaxptft.objectives import Masking, combine, masked_lm, next_token, replaced_token

KEEP_GRADIENT = optax.stateless(lambda updates, params: updates)  # the "update" is the gradient itself


@pytest.fixture(scope="module")
def objective_of(tokens, toy):
    def of(**values):
        options = {"tokens": tokens, "capacity": 30} | values
        return combine(
            {
                "mlm": (1.0, masked_lm(toy("mlm"), masking=Masking(unit="word", rate=0.3), **options)),
                "clm": (1.0, next_token(toy("clm"))),
                "rtd": (1.0, replaced_token(toy("mlm"), toy("discriminator"), masking=Masking(rate=0.4), **options)),
            }
        )

    return of


@pytest.fixture(scope="module")
def gradient_of(objective_of, text, quick):
    objective = objective_of()
    params = quick(objective.init)(jax.random.key(1), dict.fromkeys(("mlm", "clm", "rtd"), text.batch))
    everything = jax.tree.map(lambda _: True, params)

    def run(batch, compiled=quick, place=lambda state, batch: (state, batch), objective=objective, **options):
        """The gradient of one step, read off as the change an identity optimizer makes, and its metrics."""
        batches = dict.fromkeys(("mlm", "clm", "rtd"), batch)
        state = train.create_state(
            objective, KEEP_GRADIENT, params, batches, trainable=everything, rng=jax.random.key(0)
        )
        step = compiled(train.make_step(objective, KEEP_GRADIENT, trainable=everything, **options))
        state, batches = place(state, batches)
        after, metrics = step(state, objective.constants, batches)
        metrics = {name: (float(mean.total), float(mean.count)) for name, mean in metrics.items()}
        return jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), after.params, params), metrics

    return run


@pytest.fixture(scope="module")
def whole(gradient_of, text):
    return gradient_of(text.batch)


def assert_same(found, expected):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[0]))
    chex.assert_trees_all_close(found[0], expected[0], rtol=0, atol=2e-6 * largest)
    counted = {name for name in expected[1] if name.endswith(("accuracy", "overflow", "replaced", "detected"))}
    assert len(counted) == 8
    assert {name: found[1][name] for name in counted} == {name: expected[1][name] for name in counted}
    np.testing.assert_allclose(found[1]["loss"], expected[1]["loss"], rtol=1e-5)


def test_micro_steps_of_uneven_counts_on_eight_devices(gradient_of, text, whole, quick):
    mesh = train.make_mesh()
    assert mesh.size == 8
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    found = gradient_of(
        text.unpacked(12, rows=32),  # half the rows only fill the batch
        compiled=partial(quick, in_shardings=(everywhere, everywhere, rows), out_shardings=everywhere),
        place=lambda state, batch: (train.replicate(state, mesh), train.shard(batch, mesh)),
        accumulate=4,
    )
    assert_same(found, whole)


@pytest.mark.parametrize("group", [3, 4, 16])
def test_rows_that_share_their_places(gradient_of, objective_of, text, whole, group):
    """Of sixteen rows each, four or all: three divide them not, and so one."""
    assert_same(gradient_of(text.batch, objective=objective_of(group=group)), whole)


def test_rows_of_a_device_share_their_places_and_nothing_else_crosses(gradient_of, objective_of, text, whole, quick):
    mesh, programs = train.make_mesh(), []
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    def compiled(step):
        step = quick(step, in_shardings=(everywhere, everywhere, rows), out_shardings=everywhere)

        def run(*arguments):
            programs.append(step.lower(*arguments).compile().as_text())
            return step(*arguments)

        return run

    place = lambda state, batch: (train.replicate(state, mesh), train.shard(batch, mesh))  # noqa: E731
    batch = text.unpacked(12, rows=32)  # four rows a device
    for group in (1, 4):
        assert_same(gradient_of(batch, compiled, place, objective_of(group=group)), whole)
    moves = [
        [program.count(f" {name}(") for name in ("all-gather", "all-to-all", "collective-permute")]
        for program in programs
    ]
    assert moves[0] == moves[1]


def test_devices_that_map_the_step_take_micro_steps_of_their_own_rows(gradient_of, objective_of, text, whole):
    mesh = train.make_mesh()
    found = gradient_of(
        text.unpacked(12, rows=32),  # four rows a device
        compiled=lambda step: train.mapped_step(step, mesh),
        place=lambda state, batch: (train.replicate(state, mesh), train.shard(batch, mesh)),
        objective=objective_of(group=2),
        accumulate=2,
        axis_name="data",
    )
    assert_same(found, whole)


def test_packed_rows(gradient_of, text, whole):
    assert_same(gradient_of(text.packed), whole)
