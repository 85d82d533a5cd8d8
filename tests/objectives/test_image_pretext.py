"""Rotations and patch positions against torch, with statistics of batches, on one device and on eight."""

from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from jaxptft import augment, models, train
from jaxptft.objectives import Context, patch_position, rotation, view_images
from jaxptft.objectives.patch_position import (
    DIRECTIONS,
    PROJECTION,
    Grid,
    cut_pairs,
    draw_places,
    drop_channels,
)
from jaxptft.objectives.views import unchanged
from jaxptft.train.parallel import DATA

KEEP_GRADIENT = optax.stateless(lambda updates, params: updates)  # the "update" is the gradient itself
RNG = jax.random.key(5)
GRID = Grid(patch=4, gap=1, jitter=1)


def dense(classes=None):
    """tanh(pixels W), and the logits of a linear head where there are classes."""

    def init(rng, batch):
        body, head = jax.random.split(rng)
        size = int(np.prod(batch["image"].shape[1:]))
        params = {"backbone": {"kernel": jax.random.normal(body, (size, 5)) / np.sqrt(size)}}
        return params if classes is None else {**params, "classifier": jax.random.normal(head, (5, classes))}

    def apply(params, batch, *, rng=None, train=False):
        image = batch["image"]
        hidden = jnp.tanh(image.reshape(len(image), -1) @ params["backbone"]["kernel"])
        return hidden if classes is None else hidden @ params["classifier"]

    return SimpleNamespace(init=init, apply=apply)


def counting(model, name):
    """The model with a running statistic: the sum of its valid rows' numbers, so that each pass can be told."""

    def init(rng, batch):
        return {**model.init(rng, batch), name: {"running_mean": jnp.ones(())}}

    def apply(params, batch, *, rng=None, train=False, statistics=None, axis_name=None):
        assert statistics is None or set(statistics) == {name}
        output = model.apply(params, batch, rng=rng, train=train)
        if statistics is None:
            return output
        rows = batch["valid"].sum()
        rows = rows if axis_name is None else jax.lax.psum(rows, axis_name)
        held = statistics[name]["running_mean"]
        return output, {name: {"running_mean": held + rows if train else held}}

    return SimpleNamespace(init=init, apply=apply, statistics=lambda params: {name: params[name]})


@pytest.fixture(scope="module")
def batch():
    """Sixteen images whose valid rows fall on eight devices unequally."""
    rng = np.random.default_rng(0)
    valid = np.isin(np.arange(16), [0, 1, 2, 3, 5, 6, 8, 13])
    image = rng.integers(0, 256, (16, 17, 17, 3)).astype(np.uint8)
    return {"image": image, "ids": np.where(valid, np.arange(16) + 100, -1).astype(np.int32), "valid": valid}


@pytest.fixture(scope="module")
def objectives():
    head = models.mlp("position", hidden=(6,), outputs=8)
    return {
        "rotation": rotation(dense(4), view=augment.random_crop(8)),
        "patch_position": patch_position(
            dense(), head, patch=4, gap=1, jitter=1, view=augment.normalise(0.5, 0.25), color="drop"
        ),
    }


def context_of(objective, params, batch, train=True):
    return Context(objective.start(params, batch), objective.constants, RNG, train, None)


@pytest.fixture(scope="module")
def values(objectives, batch, quick):
    """Of each objective its parameters, loss, metrics, count, gradient and predictions, and the images it saw."""
    viewing, _ = jax.random.split(RNG)
    drawing, _, _ = jax.random.split(RNG, 3)
    seen = {
        "rotation": lambda: view_images(augment.random_crop(8), viewing, batch),
        "patch_position": lambda: cut_pairs(drawing, batch, augment.normalise(0.5, 0.25), GRID, "drop"),
    }

    def run(name, objective):
        params = quick(objective.init)(jax.random.key(0), batch)
        context = context_of(objective, params, batch)

        def loss(params):
            terms, (metrics, _) = objective.loss(params, batch, context)
            others = {"predicted": objective.predict(params, batch, context), "seen": seen[name]()}
            return terms[name].value(), {"metrics": metrics, "count": terms[name].count, **others}

        (value, others), gradient = quick(jax.value_and_grad(loss, has_aux=True))(params)
        return SimpleNamespace(params=params, loss=value, gradient=gradient, **others)

    return {name: run(name, objective) for name, objective in objectives.items()}


def torch_leaves(params):
    return jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), params)


def assert_torch_agrees(values, logits, labels, leaves, name):
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels, dtype=torch.long))
    loss.backward()
    np.testing.assert_allclose(values.loss, loss.item(), rtol=1e-5)
    assert int(values.count) == len(labels)
    accuracy = (logits.argmax(-1).numpy() == labels).mean()
    np.testing.assert_allclose(values.metrics[f"{name}/accuracy"].value(), accuracy, rtol=1e-6)
    chex.assert_trees_all_close(
        values.gradient, jax.tree.map(lambda leaf: leaf.grad.numpy(), leaves), rtol=1e-4, atol=1e-6
    )


def encode(leaves, images):
    return torch.tanh(torch.tensor(np.array(images)).flatten(1) @ leaves["backbone"]["kernel"])


def test_rotation_is_cross_entropy_over_all_four(values, batch):
    """In torch, over the valid images alone, turned by numpy."""
    seen = np.asarray(values["rotation"].seen)[batch["valid"]]
    turned = np.concatenate([np.rot90(seen, quarter, axes=(1, 2)) for quarter in range(4)])
    leaves = torch_leaves(values["rotation"].params)
    logits = encode(leaves, turned) @ leaves["classifier"]
    assert_torch_agrees(values["rotation"], logits, np.arange(4).repeat(len(seen)), leaves, "rotation")


def test_patch_position_is_cross_entropy_over_eight_directions(values, batch):
    """In torch, with the patches that were drawn, of the valid images alone."""
    pairs = values["patch_position"].seen
    patches, labels = np.asarray(pairs.patches)[batch["valid"]], np.asarray(pairs.direction)[batch["valid"]]
    leaves = torch_leaves(values["patch_position"].params)
    head = leaves["position"]
    features = torch.cat([encode(leaves, patches[:, 0]), encode(leaves, patches[:, 1])], dim=1)
    hidden = torch.relu(features @ head["hidden_0"]["kernel"] + head["hidden_0"]["bias"])
    logits = hidden @ head["out"]["kernel"] + head["out"]["bias"]
    assert_torch_agrees(values["patch_position"], logits, labels, leaves, "patch_position")


@pytest.fixture(scope="module", params=["rotation", "patch_position"])
def stepped(request, batch, quick):
    """One step with counting statistics, on one device; an identity optimizer changes parameters by the gradient."""
    first, encoder = counting(dense(4), "first"), counting(dense(), "first")
    second = counting(models.mlp("position", hidden=(), outputs=8), "second")
    held = {"first": {"running_mean": 1 + 8 * 4}}  # four rotations of eight valid images
    objective = rotation(first)
    if request.param == "patch_position":
        objective = patch_position(encoder, second, patch=4, gap=1, jitter=1)
        held = {"first": {"running_mean": 1 + 8 * 2}, "second": {"running_mean": 1 + 8}}
    params = quick(objective.init)(jax.random.key(0), batch)
    trainable = jax.tree.map_with_path(lambda path, _: path[-1].key != "running_mean", params)
    state = train.create_state(objective, KEEP_GRADIENT, params, batch, trainable=trainable, rng=jax.random.key(0))
    make = partial(train.make_step, objective, KEEP_GRADIENT, trainable=trainable)
    after, metrics = quick(make())(state, objective.constants, batch)
    return SimpleNamespace(objective=objective, held=held, make=make, state=state, after=after, metrics=metrics)


def test_statistics_are_renewed_by_each_pass_and_leave_with_the_parameters(stepped):
    assert stepped.objective.coupled
    assert not rotation(dense(4)).coupled
    chex.assert_trees_all_close(stepped.after.objective_state["statistics"], stepped.held)
    finished = stepped.objective.finish(stepped.after.params, stepped.after.objective_state)
    chex.assert_trees_all_close({name: finished[name] for name in stepped.held}, stepped.held)


@pytest.mark.parametrize("kind", ["jit", "mapped"])
def test_eight_devices_have_the_gradient_and_the_statistics_of_one(stepped, batch, quick, kind):
    mesh = train.make_mesh()
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(DATA))
    if kind == "mapped":
        step = train.mapped_step(stepped.make(axis_name=DATA), mesh)
    else:
        step = quick(stepped.make(), in_shardings=(whole, whole, split), out_shardings=whole)
    state, rows = train.replicate(jax.tree.map(jnp.copy, stepped.state), mesh), train.shard(batch, mesh)
    eight, metrics = step(state, stepped.objective.constants, rows)
    chex.assert_trees_all_close(eight.params, stepped.after.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(eight.objective_state, stepped.after.objective_state)
    for name, mean in stepped.metrics.items():
        np.testing.assert_allclose(metrics[name].total / metrics[name].count, mean.total / mean.count, rtol=1e-5)


@pytest.fixture(scope="module")
def cut(quick):
    return quick(lambda batch: cut_pairs(RNG, batch, unchanged, GRID, "keep"))


def test_evaluation_uses_the_plain_view_and_leaves_statistics_alone(batch, quick):
    small = {name: values[:4] for name, values in batch.items()}
    seen = []

    def watch(model):
        def apply(params, batch, *, rng, train, **options):
            seen.append((np.asarray(batch["image"]), rng, train))
            return model.apply(params, batch, rng=rng, train=train, **options)

        return SimpleNamespace(init=model.init, apply=apply, statistics=model.statistics)

    objective = rotation(
        watch(counting(dense(4), "first")), view=augment.solarise(1.0, threshold=0.0), plain=augment.normalise(0.5, 0.5)
    )
    params = quick(objective.init)(jax.random.key(0), small)
    _, (_, state) = objective.loss(params, small, context_of(objective, params, small, False))
    assert float(state["statistics"]["first"]["running_mean"]) == 1
    ((evaluated, rng, training),) = seen
    np.testing.assert_allclose(evaluated[::4], small["image"] / 127.5 - 1, atol=1e-5)
    assert rng is None
    assert not training
    predicted = objective.predict(params, small, context_of(objective, params, small, False))["logits"]
    assert predicted.shape == (4, 4, 4)
    turned = np.rot90(small["image"][2] / 127.5 - 1, 3).reshape(1, -1)
    by_hand = np.tanh(turned @ params["backbone"]["kernel"]) @ params["classifier"]
    np.testing.assert_allclose(predicted[2, 3], by_hand[0], rtol=1e-3, atol=1e-4)


def test_patches_lie_in_the_direction_that_is_named_and_jitter_about_the_grid(quick):
    """Against a count of all that can be drawn: eight directions, places of the grid, and jitters, all alike."""
    keys = jax.random.split(jax.random.key(0), 3000)
    direction, centre, neighbour = quick(jax.vmap(lambda key: tuple(draw_places(key, 17, 19, GRID))))(keys)
    direction, centre, neighbour = (np.asarray(part) for part in (direction, centre, neighbour))
    names = {(-1, -1): 0, (-1, 0): 1, (-1, 1): 2, (0, -1): 3, (0, 1): 4, (1, -1): 5, (1, 0): 6, (1, 1): 7}  # by rows
    assert {tuple(int(step) for step in row): number for number, row in enumerate(DIRECTIONS)} == names
    assert stats.chisquare(np.bincount(direction, minlength=8)).pvalue > 1e-3
    apart = neighbour - centre - DIRECTIONS[direction] * 5  # a patch of 4 and a gap of 1
    assert [apart.min(), apart.max()] == [-2, 2]
    assert stats.chisquare(np.bincount(apart[:, 0] + 2) / 3000, np.array([1, 2, 3, 2, 1]) / 9).statistic < 0.01
    for places in (centre, neighbour):
        assert places.min() >= 0
        assert (places + 4 <= [17, 19]).all()
    # The grid takes 3 * 4 + 2 + 2 = 16 pixels, so has 2 by 4 places; its middle starts behind jitter, patch and gap.
    np.testing.assert_array_equal(centre.min(0), [5, 5])
    np.testing.assert_array_equal(centre.max(0), [5 + 1 + 2, 5 + 3 + 2])
    # Wherever the centre lies, all directions are alike: places tell nothing.
    table = np.zeros((4, 8))
    np.add.at(table, (centre[:, 0] - 5, direction), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_pairs_are_cut_at_the_places_that_are_drawn(batch, cut):
    pairs = cut(batch)
    images = batch["image"] / np.float32(255)
    for row in np.flatnonzero(batch["valid"]):
        windows = np.lib.stride_tricks.sliding_window_view(images[row], (4, 4), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
        places = []
        for patch in pairs.patches[row]:
            ((top, left),) = np.argwhere(np.abs(windows - np.asarray(patch)).max((2, 3, 4)) < 1e-6)
            places.append(np.array([top, left]))
        np.testing.assert_array_equal(np.round((places[1] - places[0]) / 5), DIRECTIONS[pairs.direction[row]])
    order = np.arange(16)[::-1]
    again = cut({name: values[order] for name, values in batch.items()})
    chex.assert_trees_all_equal(again, jax.tree.map(lambda leaf: leaf[order], pairs))


def test_dropped_channels_are_noise_and_projection_takes_green_against_magenta(batch, cut, quick):
    patch = jnp.asarray(np.random.default_rng(0).normal(0.2, 1.0, (30, 30, 3)), jnp.float32)
    kept = set()
    drop = quick(jax.vmap(drop_channels, (0, None)))
    for dropped in np.asarray(drop(jax.random.split(jax.random.key(0), 12), patch)):
        (channel,) = np.flatnonzero((dropped == patch).all((0, 1)))
        kept.add(int(channel))
        noise = np.delete(dropped, channel, -1) / np.asarray(patch[..., channel]).std()
        assert stats.kstest(noise.ravel() * 100, stats.norm.cdf).pvalue > 1e-4  # Doersch et al., section 3.1
        assert abs(np.corrcoef(noise.reshape(-1, 2).T)[0, 1]) < 0.15
    assert kept == {0, 1, 2}
    # The projection: green and magenta become grey, greys stay, twice is once.
    np.testing.assert_allclose(PROJECTION @ [-1, 2, -1], 0, atol=1e-12)
    np.testing.assert_allclose(PROJECTION @ [1, 1, 1], 1, atol=1e-12)
    np.testing.assert_allclose(PROJECTION @ [0, 1, 0], 1 / 3, atol=1e-12)
    np.testing.assert_allclose(PROJECTION @ PROJECTION, PROJECTION, atol=1e-12)
    project = quick(partial(cut_pairs, RNG, view=unchanged, grid=GRID, color="project"))(batch)
    np.testing.assert_allclose(project.patches, np.asarray(cut(batch).patches) @ PROJECTION, atol=1e-5)


def test_the_gap_and_the_jitter_are_by_default_those_of_the_paper():
    """Doersch et al., section 4: patches of 96 pixels, 48 apart, moved by up to 7."""
    head = models.mlp("position", outputs=8)
    batch = {"image": np.zeros((1, 397, 398, 3), np.uint8), "ids": np.zeros(1, np.int32), "valid": np.ones(1, bool)}
    with pytest.raises(ValueError, match=f"397 x 398, but the grid of 96-pixel patches needs {3 * 96 + 2 * 48 + 14}"):
        jax.eval_shape(patch_position(dense(), head, patch=96).init, jax.random.key(0), batch)


def test_predictions_are_the_logits_and_the_directions_of_the_loss(values, batch):
    ours = values["patch_position"]
    np.testing.assert_array_equal(ours.predicted["direction"], ours.seen.direction)
    right = (ours.predicted["logits"].argmax(-1) == ours.seen.direction)[batch["valid"]]
    np.testing.assert_allclose(ours.metrics["patch_position/accuracy"].value(), right.mean(), rtol=1e-6)
    ours = values["rotation"]
    assert ours.predicted["logits"].shape == (16, 4, 4)
    right = (ours.predicted["logits"].argmax(-1) == np.arange(4))[batch["valid"]]
    np.testing.assert_allclose(ours.metrics["rotation/accuracy"].value(), right.mean(), rtol=1e-6)


def test_what_does_not_fit_is_named(batch):
    head, key = models.mlp("position", outputs=8), jax.random.key(0)
    for options, message in [
        ({"patch": 0}, r"patch, gap and jitter are \(0, 0, 0\); expected at least 1, 0 and 0"),
        ({"patch": 4, "gap": -1}, r"\(4, -1, 0\)"),
        ({"patch": 4, "color": "drops"}, "color is 'drops'; expected 'keep', 'drop' or 'project'"),
    ]:
        with pytest.raises(ValueError, match=message):
            patch_position(dense(), head, **options)
    grey = {**batch, "image": batch["image"][..., :1]}
    with pytest.raises(ValueError, match="color is 'drop' but the images have 1 channels; use color='keep'"):
        jax.eval_shape(patch_position(dense(), head, patch=4, color="drop").init, key, grey)
    oblong = {**batch, "image": batch["image"][:, :16]}
    with pytest.raises(ValueError, match="16 x 17; rotations need squares: give a view that crops or resizes"):
        jax.eval_shape(rotation(dense(4)).init, key, oblong)

    def run(objective):
        objective.loss(objective.init(key, batch), batch, Context({}, None, RNG, True, None))
        return ()

    for objective, message in [
        (rotation(dense(3)), r"logits of shape \(64, 3\); expected \(64, 4\), four classes"),
        (
            patch_position(dense(), models.mlp("position", outputs=4), patch=4),
            r"logits of shape \(16, 4\); expected \(16, 8\), eight directions: give it outputs=8",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(partial(run, objective))
    maps = SimpleNamespace(init=dense().init, apply=lambda params, batch, **_: batch["image"])
    with pytest.raises(ValueError, match=r"features have shape \(32, 4, 4, 3\); expected \[rows, width\]"):
        jax.eval_shape(patch_position(maps, head, patch=4).init, key, batch)
