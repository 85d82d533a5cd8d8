"""SimCLR, MoCo and BYOL: against losses written by hand, on one device and on eight, and what their states become."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from chex import assert_trees_all_close, assert_trees_all_equal

from jaxptft import models, train
from jaxptft.objectives import Context, byol, combine, enqueue, moco_v2, moco_v3, simclr, unchanged

STEPS = 10
VALID = np.isin(np.arange(16), [0, 1, 2, 3, 5, 8, 11, 14, 15])  # of eight devices two have none


def images(seed, valid=VALID, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 256, (len(valid), 4, 4, 1))
    ids = np.where(valid, rng.permutation(len(valid)), -1).astype(np.int32)
    image = drawn.astype(np.uint8) if dtype == np.uint8 else (drawn / 255).astype(np.float32)
    return {"image": image, "ids": ids, "valid": np.asarray(valid)}


def noisy(key, image):
    """Another brightness for each key; a proper draw would take twice as long to compile."""
    return unchanged(key, image) * (0.5 + jax.random.key_data(key)[0] % 256 / 128)


def over_pixels(head):
    """A head on vectors as an encoder of images."""
    flat = lambda batch: {**batch, "features": jnp.reshape(batch["image"], (len(batch["image"]), -1))}  # noqa: E731
    return models.Model(
        lambda rng, batch: head.init(rng, flat(batch)),
        lambda params, batch, **options: head.apply(params, flat(batch), **options),
        head.statistics,
    )


def networks(norm="batch"):
    """Encoder, with a projector, and with a predictor too."""
    encoder = over_pixels(models.mlp("backbone", hidden=(8,), outputs=6, norm=norm))
    projected = models.stack(encoder, models.mlp("projector", hidden=(), outputs=5))
    predicted = models.stack(projected, models.mlp("predictor", hidden=(), outputs=5, final_norm=norm))
    return encoder, projected, predicted


def all_of(norm="batch", views=noisy):
    encoder, projected, predicted = networks(norm)
    options = {"encoder": encoder, "views": views}
    return {
        "simclr": simclr(projected, temperature=0.5, **options),
        "moco_v2": moco_v2(projected, queue=20, **options),
        "moco_v3": moco_v3(predicted, target=projected, steps=STEPS, **options),
        "byol": byol(predicted, target=projected, steps=STEPS, **options),
    }


def apart(params, seed=7):
    """Weights that differ from `params`, as a target's do; running statistics stay."""
    rng = np.random.default_rng(seed)

    def moved(path, leaf):
        return leaf if "running" in str(path) else jnp.asarray(leaf + rng.normal(0, 0.3, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(moved, jax.device_get(params))


@pytest.fixture(scope="module")
def together(quick):
    objective = combine({name: (1.0, part) for name, part in all_of().items()}, reads=dict.fromkeys(all_of(), "task"))
    batch = {"task": images(0)}
    params = apart(quick(objective.init)(jax.random.key(0), batch), 1)
    everything = jax.tree_util.tree_map_with_path(lambda path, _: "running" not in str(path), params)

    def after(devices, kind):
        axis = "data" if kind == "mapped" else None
        mesh = train.make_mesh(jax.devices()[:devices])
        optimizer = optax.sgd(1.0)
        step = train.make_step(objective, optimizer, trainable=everything, axis_name=axis)
        state = train.create_state(objective, optimizer, params, batch, trainable=everything, rng=jax.random.key(2))
        held = state.objective_state
        for name in ("moco_v2", "moco_v3", "byol"):
            held[name]["target"] = apart(held[name]["target"])
        run: Any = (train.mapped_step if kind == "mapped" else train.jit_step)(step, mesh)
        given = (train.replicate(state, mesh), train.replicate(objective.constants, mesh), train.shard(batch, mesh))
        run = run.lower(*given).compile(compiler_options={"xla_backend_optimization_level": 0})
        state, metrics = run(*given)
        moved = jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), state.params, params)
        values = {name: float(mean.value()) for name, mean in jax.device_get(metrics).items()}
        return SimpleNamespace(gradient=moved, state=jax.device_get(state.objective_state), metrics=values)

    return SimpleNamespace(after=after, alone=after(1, "jit"))


@pytest.mark.parametrize("kind", ["jit", "mapped"])
def test_losses_gradient_metrics_and_state_on_eight_devices_equal_one_devices(together, kind):
    alone, eight = together.alone, together.after(8, kind)
    assert alone.metrics["skipped"] == 0
    assert {f"{name}/{name.split('_')[0]}/loss" for name in all_of()} <= set(alone.metrics)
    assert_trees_all_close(eight.metrics, alone.metrics, rtol=1e-5, atol=1e-6)
    assert_trees_all_close(eight.gradient, alone.gradient, rtol=1e-5, atol=2e-6)
    assert_trees_all_close(eight.state, alone.state, rtol=1e-5, atol=1e-6)
    for name in ("backbone", "projector", "predictor"):
        assert float(optax.global_norm(alone.gradient[name])) > 0.05


def test_values_are_those_of_the_papers_on_the_valid_rows_alone(quick):
    """Torch over what the networks give for views that the test makes itself."""
    _, projected, predicted = networks("none")
    views = (lambda key, image: unchanged(key, image), lambda key, image: unchanged(key, image)[::-1] * 2)
    batch, count = images(3), int(VALID.sum())
    x1 = (batch["image"][VALID] / 255).astype(np.float32)
    seen = [{"image": x1}, {"image": x1[:, ::-1] * 2}]
    objectives = all_of("none", views)
    params = apart(predicted.init(jax.random.key(0), seen[0]), 2)

    def value(name):
        objective = objectives[name]
        state = objective.start(params, batch)
        state |= {"target": apart(state["target"])} if "target" in state else {}

        def both(state):
            context = Context(state, None, jax.random.key(0), True, None)
            return [objective.loss(params, batch, context._replace(train=train_)) for train_ in (True, False)]

        (terms, (metrics, after)), (evaluated, (_, kept)) = quick(both)(state)
        (term,), (other,) = terms.values(), evaluated.values()
        np.testing.assert_allclose(other.value(), term.value(), rtol=1e-5)  # nothing here drops or normalizes
        assert_trees_all_equal(kept, state)  # evaluation enters no keys
        assert objective.coupled
        return term, metrics, state, after

    def read(model, weights):
        return [F.normalize(torch.tensor(np.asarray(model.apply(weights, part))), dim=1) for part in seen]

    z1, z2 = read(projected, params)
    q1, q2 = read(predicted, params)
    own = torch.arange(count)

    term, metrics, *_ = value("simclr")
    rows = torch.cat([z1, z2])
    logits = (rows @ rows.T / 0.5).fill_diagonal_(-torch.inf)
    partners = torch.cat([own + count, own])
    assert float(term.count) == 2 * count
    np.testing.assert_allclose(term.value(), F.cross_entropy(logits, partners).item(), rtol=1e-5)
    right = (logits.argmax(1) == partners).float().mean().item()
    np.testing.assert_allclose(metrics["simclr/accuracy"].value(), right, rtol=1e-6)
    np.testing.assert_allclose(metrics["simclr/alignment"].value(), (z1 - z2).pow(2).sum(1).mean(), rtol=1e-4)
    uniform = torch.pdist(z1).pow(2).mul(-2).exp().mean().log()
    np.testing.assert_allclose(metrics["simclr/uniformity"].value(), uniform, rtol=1e-4)

    term, metrics, before, after = value("moco_v2")
    _, k2 = read(projected, before["target"])
    logits = torch.cat([(z1 * k2).sum(1, keepdim=True), z1 @ torch.tensor(np.asarray(before["queue"])).T], 1) / 0.2
    np.testing.assert_allclose(term.value(), F.cross_entropy(logits, 0 * own).item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["moco/accuracy"].value(), (logits.argmax(1) == 0).float().mean(), rtol=1e-6)
    np.testing.assert_allclose(after["queue"][:count], k2, rtol=1e-5, atol=1e-6)

    term, metrics, before, _ = value("moco_v3")
    k1, k2 = read(projected, before["target"])
    both = [(q1 @ k2.T / 0.2), (q2 @ k1.T / 0.2)]
    expected = sum(2 * 0.2 * F.cross_entropy(part, own) for part in both)
    np.testing.assert_allclose(term.value(), expected.item(), rtol=1e-5)
    right = torch.cat([part.argmax(1) == own for part in both]).float().mean()
    np.testing.assert_allclose(metrics["moco/accuracy"].value(), right, rtol=1e-6)

    term, metrics, before, _ = value("byol")
    expected = (4 - 2 * (q1 * k2).sum(1) - 2 * (q2 * k1).sum(1)).mean()
    np.testing.assert_allclose(term.value(), expected.item(), rtol=1e-5)
    uniform = torch.pdist(k1).pow(2).mul(-2).exp().mean().log()
    np.testing.assert_allclose(metrics["byol/uniformity"].value(), uniform, rtol=1e-4)


@pytest.fixture(scope="module")
def byol_run(quick):
    """Three steps of BYOL, of which one is not finite, then one more: states, and the parameters they held."""
    encoder, projected, predicted = networks()
    objective = byol(predicted, target=projected, encoder=encoder, views=noisy, steps=STEPS, decay=0.6)
    batches = [images(seed, dtype=np.float32) for seed in range(5)]
    batches[2]["image"] = np.full_like(batches[2]["image"], np.nan)
    params = apart(quick(objective.init)(jax.random.key(0), batches[0]))  # imported, say
    everything = jax.tree_util.tree_map_with_path(lambda path, _: "running" not in str(path), params)
    optimizer = optax.sgd(0.5)
    step = quick(train.make_step(objective, optimizer, trainable=everything))
    state = train.create_state(objective, optimizer, params, batches[0], trainable=everything, rng=jax.random.key(2))
    states, skipped = [state], []
    for batch in batches:
        state, metrics = step(state, None, batch)
        states.append(state)
        skipped.append(float(metrics["skipped"].total))
    return SimpleNamespace(
        objective=objective, step=step, states=states, skipped=skipped, batches=batches, encoder=encoder
    )


def weights_of(tree):
    """The parts of the target network, without running statistics, as float64."""
    kept = {name: tree[name] for name in ("backbone", "projector")}
    flat = jax.tree_util.tree_flatten_with_path(kept)[0]
    return [np.asarray(leaf, np.float64) for path, leaf in flat if "running" not in str(path)]


def test_the_target_of_step_k_averages_the_parameters_up_to_step_k_minus_1(byol_run):
    states = byol_run.states
    assert byol_run.skipped == [0, 0, 1, 0, 0]
    target = weights_of(states[0].params)
    for ours in (states[0].objective_state, states[1].objective_state):  # before step 0, and what it ran with
        for own, expected in zip(weights_of(ours["target"]), target, strict=True):
            np.testing.assert_array_equal(own, expected)
    for number in range(1, 5):
        ours = weights_of(states[number + 1].objective_state["target"])
        if number == 2:  # not finite: as if it had not been
            before = weights_of(states[number].objective_state["target"])
            assert all(np.array_equal(own, old) for own, old in zip(ours, before, strict=True))
            continue
        decay = 1 - (1 - 0.6) * (np.cos(np.pi * (number - 1) / STEPS) + 1) / 2  # Grill et al. 2020, section 3.3
        online = weights_of(states[number].params)
        target = [decay * old + (1 - decay) * new for old, new in zip(target, online, strict=True)]
        for own, expected in zip(ours, target, strict=True):
            np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)
    assert abs(target[-1] - weights_of(states[-1].params)[-1]).max() > 1e-3


def test_both_networks_keep_running_statistics_and_features_read_the_online_ones(byol_run):
    state, batch = byol_run.states[-1], byol_run.batches[0]
    held = state.objective_state
    prepared = byol_run.objective.prepare(state.params, held, jnp.int32(5))["target"]["backbone"]
    kept = held["target"]["backbone"]["hidden_0_norm"]["running_var"]
    assert_trees_all_equal(prepared["hidden_0_norm"]["running_var"], kept)
    assert not np.array_equal(prepared["hidden_0_norm"]["scale"], held["target"]["backbone"]["hidden_0_norm"]["scale"])
    online, slow = held["statistics"]["backbone"]["hidden_0_norm"], held["target"]["backbone"]["hidden_0_norm"]
    for one, other in ((online, slow), (online, state.params["backbone"]["hidden_0_norm"])):
        assert not np.allclose(one["running_mean"], other["running_mean"], atol=1e-4)
    context = Context(held, None, jax.random.key(0), False, None)
    features = byol_run.objective.predict(state.params, batch, context)["features"]
    left = byol_run.objective.finish(state.params, held)
    np.testing.assert_allclose(features, byol_run.encoder.apply(left, batch), rtol=1e-6)
    assert features.shape == (16, 6)


def test_evaluation_is_always_alike_and_changes_no_state(byol_run):
    state = byol_run.states[-1]
    evaluator = train.make_evaluator(byol_run.objective)
    batch = byol_run.batches[1]
    turned = {name: leaf[::-1] for name, leaf in batch.items()}
    one, other = (
        train.evaluate(evaluator, state.params, state.objective_state, None, [part]) for part in (batch, turned)
    )
    assert one.metrics["byol/loss"] == pytest.approx(other.metrics["byol/loss"], rel=1e-5)
    np.testing.assert_allclose(one.predictions["features"], other.predictions["features"], rtol=1e-6)


def test_a_restored_state_goes_on_to_the_last_bit(byol_run, tmp_path):
    store = train.CheckpointStore(tmp_path)
    store.save(4, byol_run.states[4], {})
    _, restored, _ = store.restore(byol_run.states[4])
    after, _ = byol_run.step(restored, None, byol_run.batches[4])
    plain = lambda state: jax.device_get(state._replace(rng=jax.random.key_data(state.rng)))  # noqa: E731
    assert_trees_all_equal(plain(after), plain(byol_run.states[5]))


def test_the_queue_takes_the_keys_of_three_batches_in_order(tmp_path, quick):
    """By hand: four, three and four keys of a target that stays as it is, in a ring of eight. Then resumed."""
    encoder = over_pixels(models.mlp("backbone", hidden=(), outputs=3))
    views = (unchanged, lambda key, image: 2 * unchanged(key, image) - 1)
    objective = moco_v2(encoder, encoder=encoder, views=views, queue=8, decay=1.0)
    padded = np.array([True, False, True, True])
    batches = [images(seed, valid) for seed, valid in ((0, np.ones(4, bool)), (1, padded), (2, np.ones(4, bool)))]
    params = objective.init(jax.random.key(0), batches[0])
    everything, optimizer = jax.tree.map(lambda _: True, params), optax.sgd(0.1)
    step = quick(train.make_step(objective, optimizer, trainable=everything))
    state = train.create_state(objective, optimizer, params, batches[0], trainable=everything, rng=jax.random.key(1))
    first = np.asarray(state.objective_state["queue"])
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), np.ones(8), rtol=1e-6)
    expected, kernel = first.copy(), np.asarray(params["backbone"]["out"]["kernel"])
    place = 0
    for number, batch in enumerate(batches):
        if number == 2:
            store = train.CheckpointStore(tmp_path)
            store.save(2, state, {})
            _, restored, _ = store.restore(state)
        state, _ = step(state, None, batch)
        for image in batch["image"][batch["valid"]]:
            key = (2 * (image.reshape(-1) / 255) - 1) @ kernel
            expected[place % 8] = key / np.linalg.norm(key)
            place += 1
        np.testing.assert_allclose(state.objective_state["queue"], expected, rtol=1e-5, atol=1e-6)
        assert int(state.objective_state["pointer"]) == place % 8
    resumed, _ = step(restored, None, batches[2])
    assert_trees_all_equal(resumed.objective_state, state.objective_state)
    assert not np.array_equal(state.params["backbone"]["out"]["kernel"], kernel)


def test_text_has_its_two_views_from_dropout(quick):
    """SimCSE on a tiny BERT; the loss of the very rows that the model gave, by optax."""
    config = models.BertConfig(vocab_size=20, width=8, layers=1, heads=2, mlp_width=8, positions=6, dropout=0.3)
    encoder, given = models.pooled(config), []

    def apply(params, batch, **options):
        given.append(encoder.apply(params, batch, **options))
        return given[-1]

    objective = simclr(models.Model(encoder.init, apply), encoder=encoder, views=None, temperature=0.05)

    def run(params, train_):
        context = Context({}, None, jax.random.key(1), train_, None)
        terms, (metrics, _) = objective.loss(params, batch, context)
        values = terms["simclr"].value(), metrics["simclr/alignment"].value(), given.pop()
        return values if train_ else (*values, objective.predict(params, batch, context)["features"])

    rng = np.random.default_rng(0)
    batch = {
        "input_ids": rng.integers(0, 20, (5, 6)).astype(np.int32),
        "attention_mask": np.ones((5, 6), np.int32),
        "token_type_ids": np.zeros((5, 6), np.int32),
        "ids": np.array([3, 1, 4, 2, -1], np.int32),
        "valid": np.arange(5) < 4,
    }
    params = quick(objective.init)(jax.random.key(0), batch)
    loss, alignment, rows = quick(lambda params: run(params, True))(params)
    expected = optax.losses.ntxent(rows[:8], jnp.arange(8) // 2, 0.05)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert float(alignment) > 1e-4
    _, alignment, rows, features = quick(lambda params: run(params, False))(params)
    assert float(alignment) == 0.0  # without dropout the two views are one
    np.testing.assert_allclose(features, rows[::2], rtol=1e-5, atol=1e-6)


def test_values_that_make_no_sense_are_refused():
    encoder, projected, predicted = networks("none")
    options = {"encoder": encoder, "views": noisy}
    for make in (simclr, moco_v2):
        with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
            make(projected, temperature=0, **options)
    with pytest.raises(ValueError, match="temperature must be above 0, got -1"):
        moco_v3(predicted, target=projected, steps=1, temperature=-1, **options)
    with pytest.raises(ValueError, match=r"decay is 1\.5; expected a share of the old target from 0 to 1"):
        byol(predicted, target=projected, steps=1, decay=1.5, **options)
    with pytest.raises(ValueError, match="steps is 0; expected at least 1"):
        byol(predicted, target=projected, steps=0, **options)
    with pytest.raises(ValueError, match="queue is 0; expected room"):
        moco_v2(projected, queue=0, **options)
    params = projected.init(jax.random.key(0), images(0, dtype=np.float32))
    with pytest.raises(ValueError, match="a queue of 15 keys is smaller than the batch of 16 rows"):
        moco_v2(projected, queue=15, **options).start(params, images(0))
    with pytest.raises(ValueError, match="a queue of 2 keys is smaller than the batch of 3 rows"):
        enqueue(jnp.zeros((2, 4)), jnp.int32(0), jnp.ones((3, 4)), jnp.ones(3, bool))
    objective = byol(predicted, target=projected, steps=1, **options)
    with pytest.raises(KeyError, match="the parameters have no projector, which the target network reads"):
        objective.start({"backbone": params["backbone"]}, images(0))
