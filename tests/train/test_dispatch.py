"""Several steps a dispatch: how batches are grouped, and one program for groups of every size.

That neither the groups nor an interruption change a bit is in test_loop.py.
"""

import threading
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft import objectives, optim, train
from jaxptft.objectives import Mean
from jaxptft.train.dispatch import stack
from jaxptft.train.feed import Feed

STEPS, MOST = 17, 4


def batch_at(step):
    """Eight rows, sixteen in steps 5 and 6, of which some count."""
    rng, rows = np.random.default_rng(step), 16 if step in (5, 6) else 8
    x = rng.standard_normal((rows, 3)).astype(np.float32)
    return {"x": x, "y": x.sum(1) + 1, "valid": np.arange(rows) < rng.integers(1, rows + 1)}


@pytest.fixture(scope="module")
def linear():
    def loss(params, batch, context):
        error = batch["x"] @ params["w"] + params["b"] - batch["y"]
        noise = jax.random.normal(context.rng, ()) * 0.01  # so that a key that is lost or reused shows
        counted = batch["valid"].sum()
        return {"fit": Mean((batch["valid"] * (error + noise) ** 2).sum(), counted)}

    objective = objectives.lift(loss, init=lambda rng, batch: {"w": jnp.zeros(3), "b": jnp.zeros(())})
    optimizer, trainable = optim.adamw(0.1), {"w": True, "b": True}
    params = objective.init(None, None)

    def first():
        key = jax.random.key(0)
        return train.create_state(objective, optimizer, params, batch_at(0), trainable=trainable, rng=key)

    make = partial(train.make_step, objective, optimizer, trainable=trainable)
    return SimpleNamespace(first=first, make=make, mesh=train.make_mesh(jax.devices()[:1]))


def test_one_program_serves_groups_of_every_size(linear):
    step = train.compile_step(linear.make, linear.mesh, together=MOST)
    state = train.replicate(linear.first(), linear.mesh)
    for count in (1, 3, 4, 2):
        group = train.shard_together([batch_at(step) for step in range(count)], linear.mesh, MOST)
        state, metrics = step(state, None, group)
        totals = np.asarray(metrics["loss"].total)
        assert totals.shape == (MOST,)
        assert (totals[:count] > 0).all()
        assert (totals[count:] == 0).all()
    assert int(state.step) == 10
    assert step._cache_size() == 1


def test_eight_devices_and_fsdp_take_the_same_steps(linear):
    found = []
    for mesh in (linear.mesh, train.make_mesh(), train.make_mesh(fsdp=4)):
        step = train.compile_step(linear.make, mesh, together=MOST, smallest=1)
        state = train.spread(linear.first(), mesh, smallest=1)
        batches = [{name: leaf[:7] for name, leaf in batch_at(number).items()} for number in range(3)]  # an odd number
        state, metrics = step(state, None, train.shard_together(batches, mesh, MOST))
        found.append((np.asarray(state.params["w"]), np.asarray(metrics["loss"].total)))
    for w, losses in found[1:]:
        np.testing.assert_allclose(w, found[0][0], rtol=1e-6)
        np.testing.assert_allclose(losses, found[0][1], rtol=1e-6)


def feed_of(stops=lambda step: STEPS, **options):
    return Feed(batch_at, lambda batches: batches, start=0, stops=stops, steps=STEPS, together=MOST, **options)


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_a_group_ends_where_something_is_due_and_where_the_shape_changes(ahead):
    """By hand: at most four, never across step 10, and steps 5 and 6 have sixteen rows."""
    with feed_of(lambda step: 10 if step < 10 else STEPS, ahead=ahead) as feed:
        groups = [feed.next() for _ in range(6)]
    assert [(group.first, group.end) for group in groups] == [(0, 4), (4, 5), (5, 7), (7, 10), (10, 14), (14, 17)]
    for group in groups:
        for number, batch in zip(range(group.first, group.end), group.batch, strict=True):
            np.testing.assert_array_equal(batch["x"], batch_at(number)["x"])
            assert group.examples[number - group.first] == batch["valid"].sum()


@pytest.mark.parametrize("ahead", [0, 3])
def test_what_goes_wrong_with_a_batch_is_raised_where_its_group_is_due(ahead):
    def broken(step):
        if step == 8:
            raise OSError("row 8 is unreadable")
        return batch_at(step)

    with Feed(broken, list, start=4, stops=lambda step: STEPS, steps=STEPS, together=2, ahead=ahead) as feed:
        assert [feed.next().first for _ in range(2)] == [4, 5]  # step 7 shares its group with step 8
        with pytest.raises(OSError, match="row 8 is unreadable"):
            feed.next()


def test_reading_ahead_goes_on_while_nobody_asks_and_ends_with_the_feed():
    read = threading.Event()

    def watched(step):
        if step == 3:
            read.set()
        return batch_at(step)

    with Feed(watched, lambda batch: batch, start=0, stops=lambda step: STEPS, steps=STEPS, ahead=3) as feed:
        feed.next()
        assert read.wait(10)
        assert feed.waited > 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


@pytest.mark.parametrize("count", [0, MOST + 1])
def test_too_few_or_too_many_batches_are_refused(count):
    with pytest.raises(ValueError, match=f"there are {count} batches to stack; expected 1 to {MOST}"):
        stack([batch_at(0)] * count, MOST)
