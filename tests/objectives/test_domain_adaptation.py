"""A task with MMD, CORAL and a domain adversary in one step: the weighted sum of its parts, on one device and eight."""

from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxptft import losses, models, train
from jaxptft.objectives import Context, classification, combine, coral, dann, mmd, reversal_strength
from jaxptft.train.parallel import DATA

KEEP_GRADIENT = optax.stateless(lambda updates, params: updates)  # the "update" is the gradient itself
WEIGHTS = {"task": 1.0, "mmd": 0.5, "coral": 20.0, "dann": 2.0}
STEP, STEPS = 3, 10


def _features(params, batch, *, rng=None, train=False):
    return jnp.tanh(batch["x"] @ params["backbone"]["kernel"])


FEATURES = SimpleNamespace(
    init=lambda rng, batch: {"backbone": {"kernel": jax.random.normal(rng, (batch["x"].shape[-1], 4))}}, apply=_features
)
TASK = SimpleNamespace(
    init=lambda rng, batch: FEATURES.init(rng, batch) | {"classifier": jax.random.normal(rng, (4, 3))},
    apply=lambda params, batch, **options: _features(params, batch) @ params["classifier"],
)
DISCRIMINATOR = models.mlp("domain", hidden=(5,))


@pytest.fixture(scope="module")
def batch():
    """Two domains whose valid rows fall on eight devices very unequally."""
    rng = np.random.default_rng(0)
    valid = {"task": np.arange(16) < 7, "target": np.isin(np.arange(16), [0, 5, 9, 12, 13, 15])}
    parts = {
        name: {"x": rng.normal(shift, scale, (16, 3)).astype(np.float32), "ids": np.arange(16), "valid": valid[name]}
        for name, shift, scale in (("task", 0.0, 1.0), ("target", 0.8, 2.0))
    }
    parts["task"]["label"] = rng.integers(0, 3, 16)
    return parts


@pytest.fixture(scope="module")
def objective():
    parts = {
        "task": classification(TASK),
        "mmd": mmd(FEATURES),
        "coral": coral(FEATURES),
        "dann": dann(FEATURES, DISCRIMINATOR, steps=STEPS, strength=0.8),
    }
    both = ("task", "target")
    weighted = {name: (WEIGHTS[name], part) for name, part in parts.items()}
    return combine(weighted, reads={"mmd": both, "coral": both, "dann": both})


@pytest.fixture(scope="module")
def params(objective, batch):
    return objective.init(jax.random.key(1), batch)


@pytest.fixture(scope="module")
def gradient_of(objective, params, batch, quick):
    everything = jax.tree.map(lambda _: True, params)

    def run(compiled=quick, place=lambda state, batch: (state, batch), **options):
        """The gradient of one step, read off as the change an identity optimizer makes, and its metrics."""
        create = partial(train.create_state, objective, KEEP_GRADIENT, params, batch, trainable=everything)
        state = create(rng=jax.random.key(0))._replace(step=jnp.int32(STEP))
        step = compiled(train.make_step(objective, KEEP_GRADIENT, trainable=everything, **options))
        after, metrics = step(*place(state, batch)[:1], objective.constants, place(state, batch)[1])
        values = {name: float(mean.total / mean.count) for name, mean in metrics.items()}
        return jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), after.params, params), values

    return run


@pytest.fixture(scope="module")
def whole(gradient_of):
    return gradient_of()


def parts_by_hand(params, batch):
    """The four losses from the valid rows alone, with no mask, no objective and no reversal."""
    rows = {name: part["x"][part["valid"]] for name, part in batch.items()}
    ours, theirs = (_features(params, {"x": rows[name]}) for name in ("task", "target"))
    logits = ours @ params["classifier"]
    judged = [DISCRIMINATOR.apply(params, {"features": features}) for features in (ours, theirs)]
    return {
        "task": losses.cross_entropy(logits, batch["task"]["label"][batch["task"]["valid"]]).mean(),
        "mmd": losses.squared_mmd(ours, theirs),
        "coral": losses.coral(ours, theirs),
        "dann": -jax.nn.log_sigmoid(-judged[0]).mean() - jax.nn.log_sigmoid(judged[1]).mean(),
    }


def test_the_combination_is_the_weighted_sum_of_its_parts(whole, params, batch, quick):
    gradient, metrics = whole
    values = quick(lambda params: parts_by_hand(params, batch))(params)
    np.testing.assert_allclose(metrics["loss"], sum(WEIGHTS[name] * values[name] for name in values), rtol=1e-5)
    strength = 0.8 * (2 / (1 + np.exp(-10 * STEP / STEPS)) - 1)  # Ganin et al. 2016, section 5.2.2
    np.testing.assert_allclose(metrics["dann/dann/strength"], strength, rtol=1e-5)

    @quick
    @jax.grad
    def gradient_by_hand(params, adversary):
        values = parts_by_hand(params, batch)
        weights = WEIGHTS | {"dann": adversary * WEIGHTS["dann"]}
        return sum(weights[name] * values[name] for name in values)

    # The discriminator goes down its loss, the features up, by the strength.
    expected = gradient_by_hand(params, -strength) | {"domain": gradient_by_hand(params, 1.0)["domain"]}
    chex.assert_trees_all_close(gradient, expected, rtol=1e-4, atol=1e-5)
    accuracy = [
        (DISCRIMINATOR.apply(params, {"features": _features(params, {"x": part["x"][part["valid"]]})}) > 0) == is_target
        for part, is_target in ((batch["task"], False), (batch["target"], True))
    ]
    np.testing.assert_allclose(metrics["dann/dann/accuracy"], np.concatenate(accuracy).mean(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["jit", "mapped"])
def test_eight_devices_give_the_loss_and_gradient_of_one(gradient_of, whole, kind, quick):
    mesh = train.make_mesh()
    assert mesh.size == 8
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(DATA))
    compiled = partial(quick, in_shardings=(everywhere, everywhere, rows), out_shardings=everywhere)
    if kind == "mapped":
        compiled = partial(train.mapped_step, mesh=mesh)
    found = gradient_of(
        compiled=compiled,
        place=lambda state, batch: (train.replicate(state, mesh), train.shard(batch, mesh)),
        axis_name=DATA if kind == "mapped" else None,
    )
    chex.assert_trees_all_close(found[0], whole[0], rtol=1e-4, atol=2e-6)
    assert found[1] == pytest.approx(whole[1], rel=1e-5)


def context(objective, train=True):
    return Context({"strength": jnp.float32(0.5)}, objective.constants, jax.random.key(0), train, None)


def test_the_linear_kernel_and_the_biased_estimate(batch, params):
    ours, theirs = (_features(params, {"x": part["x"][part["valid"]]}) for part in batch.values())
    objective = mmd(FEATURES, kernel="linear", unbiased=False)
    value = objective.loss(params, batch, context(objective))[0]["mmd"].value()
    np.testing.assert_allclose(value, ((ours.mean(0) - theirs.mean(0)) ** 2).sum(), rtol=1e-4)  # by hand


def test_each_row_has_dropout_of_its_own_step_and_domain(batch):
    seen = []

    def apply(params, batch, *, rng, train):
        seen.append((rng, train))
        return batch["x"]

    objective = coral(SimpleNamespace(init=FEATURES.init, apply=apply))
    objective.loss({}, batch, context(objective))
    (first, _), (second, _) = seen
    assert (jax.random.key_data(first) != jax.random.key_data(second)).any()
    objective.loss({}, batch, context(objective, train=False))
    assert seen[2:] == [(None, False)] * 2


def test_only_what_compares_whole_samples_is_coupled(objective, batch):
    assert mmd(FEATURES).coupled
    assert coral(FEATURES).coupled
    assert not dann(FEATURES, DISCRIMINATOR, steps=1).coupled
    assert objective.coupled


def test_evaluation_reads_the_task_alone(objective, params, batch):
    state = objective.start(params, batch)
    alone = {"task": batch["task"]}
    terms, (_, after) = objective.loss(params, alone, context(objective, train=False)._replace(state=state))
    assert sorted(terms) == ["task/classification"]
    assert after == state
    assert sorted(objective.predict(params, alone, context(objective, train=False)._replace(state=state))) == [
        "task/logits"
    ]


def test_the_strength_grows_from_nothing_and_stays_at_its_height(params):
    objective = dann(FEATURES, DISCRIMINATOR, steps=STEPS, strength=0.5, steepness=4.0)
    grown = [float(objective.prepare(params, {}, step)["strength"]) for step in (0, 5, 10, 1000)]
    full = 0.5 * (2 / (1 + np.exp(-4)) - 1)
    np.testing.assert_allclose(grown, [0, 0.5 * (2 / (1 + np.exp(-2)) - 1), full, full], rtol=1e-5, atol=1e-7)
    assert float(reversal_strength(0.0)) == 0


def test_mistakes_are_named(batch):
    with pytest.raises(ValueError, match="kernel is 'cubic'; expected 'rbf' or 'linear'"):
        mmd(FEATURES, kernel="cubic")
    with pytest.raises(ValueError, match="steps is 0; expected at least 1"):
        dann(FEATURES, DISCRIMINATOR, steps=0)
    with pytest.raises(ValueError, match=r"strength -1\.0 and steepness 10\.0 must be"):
        dann(FEATURES, DISCRIMINATOR, steps=1, strength=-1.0)
    objective = coral(FEATURES)
    with pytest.raises(KeyError, match=r"the batch has \['task'\] but not 'target'; give both domains"):
        objective.loss({}, {"task": batch["task"]}, context(objective))
    tokens = coral(SimpleNamespace(init=FEATURES.init, apply=lambda params, batch, **_: batch["x"][None]))
    with pytest.raises(ValueError, match=r"shape \(1, 16, 3\); expected \[rows, width\], one vector a row"):
        tokens.loss({}, batch, context(tokens))
