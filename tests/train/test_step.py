import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxptft import models, objectives, optim, train
from jaxptft.objectives import Mean, lift, total_loss

KEEP_GRADIENT = optax.stateless(lambda updates, params: updates)  # the "update" is the gradient itself


def gradient_of(step, tiny, params=None):
    """The gradient a step computes, read off as the change an identity optimizer makes."""
    params = tiny.params if params is None else params
    state = train.create_state(
        tiny.objective, KEEP_GRADIENT, params, tiny.batch, trainable=tiny.everything, rng=jax.random.key(0)
    )
    after, metrics = step(state, tiny.objective.constants, tiny.batch)
    return jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), after.params, params), metrics


def step_for(tiny, **options):
    return train.make_step(tiny.objective, KEEP_GRADIENT, trainable=tiny.everything, **options)


def assert_equal_gradients(gradient, reference):
    """Each is within 1e-6 of the true one (8.5e-7 at most, of gradients in float64), to either side by machine."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(reference))
    chex.assert_trees_all_close(gradient, reference, atol=2e-6 * max(largest, 1.0), rtol=0)


@pytest.fixture(scope="module")
def reference(tiny):
    """jax.grad of the plain loss over the whole batch, with no step around it."""
    context = objectives.Context({}, None, jax.random.key(0), True, None)
    value, gradient = jax.value_and_grad(
        lambda params: total_loss(tiny.objective.loss(params, tiny.batch, context)[0])
    )(tiny.params)
    return value, gradient


def test_one_gradient_from_jit(tiny, reference):
    gradient, metrics = gradient_of(jax.jit(step_for(tiny)), tiny)
    assert_equal_gradients(gradient, reference[1])
    np.testing.assert_allclose(metrics["loss"].total, reference[0], rtol=1e-6)


@pytest.mark.parametrize("axis_name", [None, "data"], ids=["jit", "mapped"])
def test_one_gradient_from_eight_devices(tiny, reference, axis_name):
    mesh = train.make_mesh()
    assert mesh.size == 8
    compiled = (train.jit_step if axis_name is None else train.mapped_step)(step_for(tiny, axis_name=axis_name), mesh)
    gradient, _ = gradient_of(lambda s, c, b: compiled(train.replicate(s, mesh), c, train.shard(b, mesh)), tiny)
    assert_equal_gradients(gradient, reference[1])


def test_one_gradient_from_pmap_on_eight_devices(tiny, reference):
    gradient, metrics = gradient_of(train.pmap_step(step_for(tiny, axis_name="data")), tiny)
    assert_equal_gradients(gradient, reference[1])
    np.testing.assert_allclose(metrics["loss"].total, reference[0], rtol=1e-6)


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.slow), 16])
def test_one_gradient_from_micro_steps(tiny, reference, parts):
    gradient, metrics = gradient_of(jax.jit(step_for(tiny, accumulate=parts)), tiny)
    assert_equal_gradients(gradient, reference[1])
    valid = int(tiny.batch["valid"].sum())
    assert metrics["classification/accuracy"].count == valid


def test_one_gradient_from_micro_steps_on_eight_devices(tiny, reference):
    mesh = train.make_mesh()
    compiled = train.jit_step(step_for(tiny, accumulate=2), mesh)
    gradient, _ = gradient_of(lambda s, c, b: compiled(train.replicate(s, mesh), c, train.shard(b, mesh)), tiny)
    assert_equal_gradients(gradient, reference[1])
    mapped, _ = gradient_of(train.pmap_step(step_for(tiny, axis_name="data", accumulate=2)), tiny)
    assert_equal_gradients(mapped, reference[1])


def test_averaging_the_parts_would_have_been_wrong(tiny, reference):
    """The batch does tell right from wrong: a mean of per-part means is far off."""
    context = objectives.Context({}, None, jax.random.key(0), True, None)
    parts = [{name: leaf[i::4] for name, leaf in tiny.batch.items()} for i in range(4)]
    losses = [total_loss(tiny.objective.loss(tiny.params, part, context)[0]) for part in parts]
    assert abs(np.mean(losses) - reference[0]) > 0.05


@pytest.mark.slow
def test_penalties_count_once_however_the_batch_is_split(tiny):
    shifted = jax.tree.map(lambda leaf: leaf + 0.1, tiny.params)
    objective = objectives.combine(tiny.objective, penalties=[objectives.l2_to_pretrained(shifted, weights=0.5)])
    state = train.create_state(
        objective, KEEP_GRADIENT, tiny.params, tiny.batch, trainable=tiny.everything, rng=jax.random.key(0)
    )
    expected = 0.5 * sum(0.01 * leaf.size for leaf in jax.tree.leaves(tiny.params))  # weight * 0.1^2 * leaves
    results = []
    for options in ({}, {"accumulate": 4}):
        step = train.make_step(objective, KEEP_GRADIENT, trainable=tiny.everything, **options)
        after, metrics = jax.jit(step)(state, objective.constants, tiny.batch)
        np.testing.assert_allclose(metrics["l2_to_pretrained/loss"].value(), expected, rtol=1e-4)
        results.append(after.params)
    mapped = train.make_step(objective, KEEP_GRADIENT, trainable=tiny.everything, axis_name="data")
    results.append(train.pmap_step(mapped)(state, objective.constants, tiny.batch)[0].params)
    chex.assert_trees_all_close(*results, atol=1e-6)


@pytest.fixture(scope="module")
def frozen_run(tiny):
    """Fifty AdamW steps, decay and clipping on, with the embeddings and two of four layers frozen."""
    model = models.bert.classifier(tiny.config, 3, frozen_layers=2)
    objective = objectives.classification(model)
    trainable = optim.trainable_mask(tiny.params, "all-but-top-2")
    state = train.create_state(
        objective, tiny.optimizer, tiny.params, tiny.batch, trainable=trainable, rng=jax.random.key(0)
    )
    step = jax.jit(train.make_step(objective, tiny.optimizer, trainable=trainable))
    for _ in range(50):
        state, metrics = step(state, objective.constants, tiny.batch)
    return state, trainable, metrics


def test_frozen_leaves_stay_bitwise_equal_and_the_others_all_move(tiny, frozen_run):
    state, trainable, _ = frozen_run
    for path, learns in jax.tree_util.tree_leaves_with_path(trainable):
        before, after = (_at(tree, path) for tree in (tiny.params, state.params))
        key_bias = jax.tree_util.keystr(path).endswith("['key']['bias']")  # softmax is blind to it: gradient near 0
        if learns and not key_bias:
            assert not np.array_equal(before, after), path
        if not learns:
            assert np.asarray(before).tobytes() == np.asarray(after).tobytes(), path


def test_no_moment_exists_for_a_frozen_leaf(tiny, frozen_run):
    state, trainable, _ = frozen_run
    leaves = zip(jax.tree.leaves(tiny.params), jax.tree.leaves(trainable), strict=True)
    learnt = [leaf.size for leaf, learns in leaves if learns]
    moments = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.size > 1]
    assert sum(moments) == 2 * sum(learnt)


def _at(tree, path):
    for entry in path:
        tree = tree[entry.key]
    return tree


def flops_of(tiny, freeze, frozen_layers):
    objective = objectives.classification(models.bert.classifier(tiny.config, 3, frozen_layers=frozen_layers))
    trainable = optim.trainable_mask(tiny.params, freeze)
    state = train.create_state(
        objective, tiny.optimizer, tiny.params, tiny.batch, trainable=trainable, rng=jax.random.key(0)
    )
    step = train.make_step(objective, tiny.optimizer, trainable=trainable)
    return jax.jit(step).lower(state, None, tiny.batch).compile().cost_analysis()["flops"]


@pytest.mark.slow
def test_freezing_saves_the_flops_it_should(tiny):
    """Of forward + backward = 3 units a layer, a frozen one keeps its forward unit alone; counting costs no model."""
    everything = flops_of(tiny, "none", None)
    top = flops_of(tiny, "all-but-top-2", 2)
    head = flops_of(tiny, "backbone", 5)
    context = objectives.Context({}, None, jax.random.key(0), False, None)
    forward = jax.jit(lambda params, batch: tiny.objective.predict(params, batch, context))
    forward = forward.lower(tiny.params, tiny.batch).compile().cost_analysis()["flops"]
    assert head < 1.15 * forward  # no second forward pass for the counts, no backward through the encoder
    assert top < 0.75 * everything  # (2 * 1 + 2 * 3) / (4 * 3) = 0.67
    assert head < 0.45 * everything  # 1 / 3


def test_a_step_that_is_not_finite_changes_nothing_but_its_number(tiny):
    def loss(params, batch, context):
        state = {"seen": context.state["seen"] + 1}
        return {"l": Mean((params["w"] * batch["x"]).sum(), len(batch["x"]))}, ({}, state)

    objective = lift(loss, init=lambda rng, batch: {"w": jnp.ones(())}, start=lambda params, batch: {"seen": 0})
    optimizer = optim.adamw(optim.schedule("constant", peak=0.1, steps=10))
    good = {"x": np.ones(4, np.float32)}
    params = objective.init(None, good)
    state = train.create_state(objective, optimizer, params, good, trainable={"w": True}, rng=jax.random.key(0))
    step = jax.jit(train.make_step(objective, optimizer, trainable={"w": True}))
    state, metrics = step(state, None, good)
    assert metrics["skipped"].total == 0
    for bad in (np.nan, np.inf):
        after, metrics = step(state, None, {"x": np.array([1, bad, 1, 1], np.float32)})
        assert metrics["skipped"].total == 1
        assert after.step == state.step + 1
        unchanged = lambda s: (s.params, s.opt_state, s.objective_state)  # noqa: E731
        chex.assert_trees_all_equal(unchanged(after), unchanged(state))
    after, _ = step(after, None, good)
    assert after.objective_state["seen"] == 2
    assert after.params["w"] != state.params["w"]


@pytest.mark.slow
def test_dropout_draws_anew_each_step_and_repeats_with_the_seed(tiny):
    model = models.bert.classifier(models.BertConfig(**{**vars(tiny.config), "dropout": 0.5}), 3)
    objective = objectives.classification(model)

    def losses(seed):
        state = train.create_state(
            objective, optax.sgd(0.0), tiny.params, tiny.batch, trainable=tiny.everything, rng=jax.random.key(seed)
        )
        step = jax.jit(train.make_step(objective, optax.sgd(0.0), trainable=tiny.everything))
        found = []
        for _ in range(3):
            state, metrics = step(state, None, tiny.batch)
            found.append(float(metrics["loss"].total))
        return found

    first = losses(0)
    assert len(set(first)) == 3
    assert first == losses(0)
    assert first != losses(1)


def test_mistakes_are_refused(tiny):
    with pytest.raises(ValueError, match="accumulate is 0; expected at least 1"):
        step_for(tiny, accumulate=0)
    with pytest.raises(ValueError, match=r"accumulate is 3, which does not divide the batch's rows \[16\]"):
        gradient_of(step_for(tiny, accumulate=3), tiny)
    coupled = tiny.objective._replace(coupled=True)
    with pytest.raises(ValueError, match="examples interact across the batch"):
        train.make_step(coupled, KEEP_GRADIENT, trainable=tiny.everything, accumulate=2)
    train.make_step(coupled, KEEP_GRADIENT, trainable=tiny.everything, accumulate=2, accumulate_coupled=True)
