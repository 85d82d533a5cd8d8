"""Running statistics in the state of an objective: through steps, devices, freezing, bad batches and checkpoints."""

from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from chex import assert_trees_all_close, assert_trees_all_equal

from jaxptft import models, objectives, optim, train
from jaxptft.objectives import Context

CONFIG = models.ResNetConfig(
    channels=1, stem="cifar", stem_width=4, widths=(4, 6), depths=(1, 1), block="basic", norm_momentum=0.3
)


def batch_of(seed):
    """Sixteen rows, of which some eighths hold two valid ones, some none."""
    rng = np.random.default_rng(seed)
    valid = np.array([True] * 5 + [False] * 9 + [True, False])
    return {
        "image": rng.normal(size=(16, 6, 6, 1)).astype(np.float32),
        "label": rng.integers(0, 3, 16).astype(np.int32),
        "ids": np.arange(16, dtype=np.int32),
        "valid": valid,
    }


def objective_of(frozen_layers=None):
    return objectives.classification(models.build(CONFIG, "classification", classes=3, frozen_layers=frozen_layers))


@pytest.fixture(scope="module")
def tiny():
    objective, rng = objective_of(), np.random.default_rng(1)
    made = jax.jit(objective.init)(jax.random.key(0), batch_of(0))
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + rng.uniform(0, 0.3, leaf.shape).astype(np.float32), made)
    optimizer, trainable = optax.sgd(0.5), optim.trainable_mask(params, "**/running_*")
    mesh = train.make_mesh(jax.devices()[:1])
    step = train.jit_step(train.make_step(objective, optimizer, trainable=trainable), mesh)

    def start():
        state = train.create_state(
            objective, optimizer, params, batch_of(0), trainable=trainable, rng=jax.random.key(2)
        )
        return train.replicate(state, mesh)

    def run(state, *batches):
        metrics = None
        for batch in batches:
            state, metrics = step(state, None, train.shard(batch, mesh))
        return jax.device_get(state._replace(rng=None)), metrics, state

    return SimpleNamespace(
        objective=objective, params=params, optimizer=optimizer, trainable=trainable, start=start, run=run, mesh=mesh
    )


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_a_step_renews_the_state_alone_and_finishing_puts_it_into_the_parameters(tiny):
    given = tiny.start()
    before = jax.device_get(given.objective_state)
    model = models.build(CONFIG, "classification", classes=3)
    assert_trees_all_equal(before, {"statistics": model.statistics(tiny.params)})
    after, _, _ = tiny.run(given, batch_of(0))
    _, expected = model.apply(tiny.params, batch_of(0), train=True, statistics=before["statistics"])
    assert_trees_all_close(after.objective_state, {"statistics": expected}, rtol=1e-5, atol=1e-6)
    assert bits(after.objective_state) != bits(before)
    assert_trees_all_equal(model.statistics(after.params), before["statistics"])

    finished = tiny.objective.finish(after.params, after.objective_state)
    assert_trees_all_equal(model.statistics(finished), after.objective_state["statistics"])
    assert jax.tree.structure(finished) == jax.tree.structure(tiny.params)
    # Evaluation reads the state's; once they are put into the parameters, anyone does.
    context = Context(after.objective_state, None, jax.random.key(0), False, None)
    logits = tiny.objective.predict(after.params, batch_of(1), context)["logits"]
    np.testing.assert_array_equal(logits, model.apply(finished, batch_of(1)))
    assert np.abs(logits - model.apply(after.params, batch_of(1))).max() > 1e-3


@pytest.mark.parametrize("kind", ["jit", "mapped"])
def test_eight_devices_give_what_one_gives(tiny, kind):
    """Loss, gradient (SGD's update) and statistics after two steps, though some devices have no valid row."""
    batches = [batch_of(0), batch_of(1)]
    expected, metrics, _ = tiny.run(tiny.start(), *batches)
    axis_name = "data" if kind == "mapped" else None
    step = train.make_step(tiny.objective, tiny.optimizer, trainable=tiny.trainable, axis_name=axis_name)
    mesh = train.make_mesh()
    run = (train.mapped_step if kind == "mapped" else train.jit_step)(step, mesh)
    state = train.replicate(jax.device_get(tiny.start()._replace(rng=None)), mesh)._replace(rng=jax.random.key(2))
    found = None
    for batch in batches:
        state, found = run(state, None, train.shard(batch, mesh))
    assert found is not None
    assert float(found["loss"].total) == pytest.approx(float(metrics["loss"].total), rel=1e-4)
    assert float(found["grad_norm"].total) == pytest.approx(float(metrics["grad_norm"].total), rel=1e-3)
    assert_trees_all_close(jax.device_get(state.params), expected.params, rtol=1e-3, atol=1e-4)
    assert_trees_all_close(jax.device_get(state.objective_state), expected.objective_state, rtol=1e-4, atol=1e-5)


def test_a_batch_that_is_not_finite_leaves_the_statistics(tiny):
    bad = batch_of(0)
    bad["image"][0, 0, 0] = np.nan
    before = jax.device_get(tiny.start()._replace(rng=None))
    after, metrics, _ = tiny.run(tiny.start(), bad)
    assert float(metrics["skipped"].total) == 1.0
    assert bits(after.objective_state) == bits(before.objective_state)
    assert bits(after.params) == bits(before.params)


def test_what_fills_up_a_batch_changes_nothing(tiny):
    other = batch_of(0)
    other["image"][~other["valid"]] = 100.0
    one, other = (tiny.run(tiny.start(), batch)[0] for batch in (batch_of(0), other))
    assert_trees_all_close(one.objective_state, other.objective_state, rtol=1e-5, atol=1e-6)
    assert_trees_all_close(one.params, other.params, rtol=1e-4, atol=1e-5)


def test_a_run_that_is_saved_and_taken_up_again_keeps_the_statistics_to_the_last_bit(tiny, tmp_path):
    batches = [batch_of(seed) for seed in range(4)]
    straight, _, _ = tiny.run(tiny.start(), *batches)
    _, _, halfway = tiny.run(tiny.start(), *batches[:2])
    store = train.CheckpointStore(tmp_path, keep=1)
    store.save(2, halfway, {})
    _, restored, _ = store.restore(tiny.start())
    assert bits(restored.objective_state) == bits(halfway.objective_state)
    resumed, _, _ = tiny.run(restored, *batches[2:])
    assert bits(resumed.objective_state) == bits(straight.objective_state)
    assert bits(resumed.params) == bits(straight.params)


def test_frozen_stages_keep_their_statistics_to_the_last_bit(tiny):
    trainable = optim.trainable_mask(tiny.params, "all-but-top-1")
    assert optim.frozen_prefix(trainable) == 1
    objective = objective_of(1)
    step = train.jit_step(train.make_step(objective, tiny.optimizer, trainable=trainable), tiny.mesh)
    state = train.create_state(
        objective, tiny.optimizer, tiny.params, batch_of(0), trainable=trainable, rng=jax.random.key(2)
    )
    for seed in range(3):
        state, _ = step(state, None, train.shard(batch_of(seed), tiny.mesh))
    finished = objective.finish(state.params, state.objective_state)["backbone"]
    held = tiny.params["backbone"]
    assert bits(finished["stem"]) == bits(held["stem"])
    assert bits(finished["stage_0"]) == bits(held["stage_0"])
    own, before = (tree["stage_1"]["layer_0"]["unit_0"]["norm"] for tree in (finished, held))
    assert all((np.asarray(own[name]) != before[name]).all() for name in ("running_mean", "running_var"))
