"""AdamW over stages, against AdamW in numpy, leaf by leaf."""

import jax
import numpy as np
import optax
import pytest

from jaxptft import optim
from jaxptft.optim import Plan, Rule

STEPS = 9
RATE = optim.schedule("linear", peak=0.1, steps=STEPS, warmup=2)
OPTIONS = {"weight_decay": 0.2, "clip_norm": 1.0, "b1": 0.8, "b2": 0.95, "eps": 1e-6}
PLAN = Plan(
    {
        "backbone/embeddings/word": "frozen",
        "backbone/embeddings/**": Rule(rate=0.25, unfreeze=6),
        "backbone/layer_0/**": Rule(rate=0.5, decay=0.4, unfreeze=3),
    }
)


def _draw(rng):
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "backbone": {
            "embeddings": {"word": draw(5, 4), "position": draw(3, 4)},
            "layer_0": {"kernel": draw(4, 4), "bias": draw(4)},
        },
        "classifier": {"kernel": draw(4, 2), "bias": draw(2)},
    }


PARAMS = _draw(np.random.default_rng(0))
GRADIENTS = [_draw(np.random.default_rng(step + 1)) for step in range(STEPS)]
# By leaf, from the plan above by hand: its step of unfreezing, the factor of its rate, its decay.
LEAVES = {
    "backbone/embeddings/position": (6, 0.25, 0.2),
    "backbone/layer_0/kernel": (3, 0.5, 0.4),
    "backbone/layer_0/bias": (3, 0.5, 0.0),
    "classifier/kernel": (0, 1.0, 0.2),
    "classifier/bias": (0, 1.0, 0.0),
}


def flat(tree):
    return dict(zip(optim.paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def adam_by_hand():
    """Parameters after each step, in float64, every leaf with an Adam of its own that starts when it is unfrozen."""
    params = {name: leaf.astype(np.float64) for name, leaf in flat(PARAMS).items()}
    m = dict.fromkeys(LEAVES, 0.0)
    v, count, seen = dict(m), dict.fromkeys(LEAVES, 0), []
    for step, gradients in enumerate(map(flat, GRADIENTS)):
        active = [name for name, (begin, _, _) in LEAVES.items() if begin <= step]
        norm = np.sqrt(sum((gradients[name].astype(np.float64) ** 2).sum() for name in active))
        for name in active:
            _, factor, decay = LEAVES[name]
            g = gradients[name] * min(1.0, OPTIONS["clip_norm"] / norm)
            count[name] += 1
            m[name] = OPTIONS["b1"] * m[name] + (1 - OPTIONS["b1"]) * g
            v[name] = OPTIONS["b2"] * v[name] + (1 - OPTIONS["b2"]) * g**2
            m_hat, v_hat = m[name] / (1 - OPTIONS["b1"] ** count[name]), v[name] / (1 - OPTIONS["b2"] ** count[name])
            update = m_hat / (np.sqrt(v_hat) + OPTIONS["eps"]) + decay * params[name]
            params[name] = params[name] - float(RATE(step)) * factor * update
        seen.append(dict(params))
    return seen


def staged_run():
    """Parameters and optimizer state before the first step and after each."""
    table = optim.timetable(PARAMS, PLAN)
    optimizer = optim.plan_adamw(RATE, table, **OPTIONS)
    params, state = PARAMS, optimizer.init(optim.partition(PARAMS, table.ever)[0])
    seen, update = [(params, state)], jax.jit(optimizer.update)
    for step, gradient in enumerate(GRADIENTS):
        learnt, frozen = optim.partition(params, table.mask(step))
        updates, state = update(optim.partition(gradient, table.mask(step))[0], state, learnt)
        params = optim.merge(optax.apply_updates(learnt, updates), frozen)
        seen.append((params, state))
    return seen


@pytest.fixture(scope="module")
def seen():
    return staged_run()


def test_three_stages_equal_adam_by_hand(seen):
    for step, expected in enumerate(adam_by_hand()):
        found = flat(seen[step + 1][0])
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=f"{name} after step {step}")


def test_what_has_not_begun_is_not_touched_and_what_has_keeps_its_moments(seen):
    groups = [state[1] for _, state in seen]
    assert list(groups[0]) == ["from_0", "from_3", "from_6"]
    counts = [{name: int(group.count) for name, group in state.items()} for state in groups]
    assert [tuple(count.values()) for count in counts] == [(n, max(0, n - 3), max(0, n - 6)) for n in range(STEPS + 1)]
    for step, (params, _) in enumerate(seen):
        assert jax.tree.structure(seen[step][1]) == jax.tree.structure(seen[0][1])
        for name, leaf in flat(params).items():
            if step <= LEAVES.get(name, (STEPS,))[0]:
                assert leaf.tobytes() == flat(PARAMS)[name].tobytes(), (name, step)
    moments = flat(groups[3]["from_0"].mu)
    assert set(moments) == {"classifier/bias", "classifier/kernel"}
    # The first step of a new stage goes on from them: m = b1 * m + (1 - b1) * g, by hand.
    active = {name for name, (begin, _, _) in LEAVES.items() if begin <= 3}
    norm = np.sqrt(sum((leaf**2).sum() for name, leaf in flat(GRADIENTS[3]).items() if name in active))
    for name, after in flat(groups[4]["from_0"].mu).items():
        np.testing.assert_allclose(after, 0.8 * moments[name] + 0.2 * flat(GRADIENTS[3])[name] / norm, rtol=1e-5)


def test_the_first_step_of_what_is_unfrozen_late_is_as_long_as_any_first_step():
    """Adam's first step is the sign of the gradient, whatever step the run has come to."""
    table = optim.timetable(PARAMS, Plan({"backbone/**": Rule(unfreeze=6)}))
    optimizer = optim.plan_adamw(0.1, table, weight_decay=0.0, clip_norm=None, eps=0.0)
    state = optimizer.init(PARAMS)
    for step in range(7):
        learnt, _ = optim.partition(PARAMS, table.mask(step))
        updates, state = optimizer.update(optim.partition(GRADIENTS[step], table.mask(step))[0], state, learnt)
    expected = -0.1 * np.sign(GRADIENTS[6]["backbone"]["layer_0"]["kernel"])
    np.testing.assert_allclose(updates["backbone"]["layer_0"]["kernel"], expected, rtol=1e-5)


def test_one_stage_is_adamw_bit_for_bit():
    multipliers = {"backbone/embeddings/**": 0.1, "backbone/**": 0.5}
    table = optim.timetable(PARAMS, optim.multiplied(multipliers))
    ours = optim.plan_adamw(RATE, table, **OPTIONS)
    theirs = optim.adamw(RATE, **OPTIONS, multipliers=multipliers)
    runs = []
    for optimizer in (ours, theirs):
        params, state, update = PARAMS, optimizer.init(PARAMS), jax.jit(optimizer.update)
        for gradient in GRADIENTS:
            updates, state = update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        runs.append(flat(params))
    for name, leaf in runs[0].items():
        assert leaf.tobytes() == runs[1][name].tobytes(), name


def test_what_the_plan_freezes_is_no_business_of_its_optimizer():
    table = optim.timetable(PARAMS, PLAN)
    with pytest.raises(ValueError, match="'backbone/embeddings/word' does not train in this plan"):
        optim.plan_adamw(0.1, table).init(PARAMS)
    optimizer = optim.by_stage(optax.scale_by_adam(), table)
    learnt, _ = optim.partition(PARAMS, table.ever)
    with pytest.raises(ValueError, match="updates and params must have the same leaves"):
        optimizer.update(optim.partition(GRADIENTS[0], table.mask(0))[0], optimizer.init(learnt), learnt)
    with pytest.raises(ValueError, match=r"b1 must lie in \[0, 1\), got 1.0"):
        optim.plan_adamw(0.1, table, b1=1.0)


def test_what_is_clipped_apart_is_clipped_as_if_alone():
    """Against `optax.clip_by_global_norm` on each part; the pattern that comes first takes a leaf."""
    gradient = GRADIENTS[0]
    patterns = ("backbone/layer_0/bias", "backbone/**")
    clip = optim.clip_by_group(0.5, patterns)
    found = flat(clip.update(gradient, clip.init(gradient))[0])
    groups = [
        ["backbone/layer_0/bias"],
        ["backbone/embeddings/position", "backbone/embeddings/word", "backbone/layer_0/kernel"],
        ["classifier/bias", "classifier/kernel"],
    ]
    alone = optax.clip_by_global_norm(0.5)
    for group in groups:
        part = {name: flat(gradient)[name] for name in group}
        expected, _ = alone.update(part, alone.init(part))
        for name in group:
            np.testing.assert_array_equal(found[name], expected[name])
    assert sorted(found) == sorted(name for group in groups for name in group)


def test_a_plan_that_clips_apart_is_two_optimizers_in_each_stage():
    """Adam's moments are those of gradients clipped part by part, the frozen table and later stages left out."""
    table = optim.timetable(PARAMS, PLAN)
    optimizer = optim.plan_adamw(RATE, table, **OPTIONS, clip_apart=("backbone/**",))
    state, update = optimizer.init(optim.partition(PARAMS, table.ever)[0]), jax.jit(optimizer.update)
    for step in (0, 3):
        learnt, _ = optim.partition(PARAMS, table.mask(step))
        own, _ = optim.partition(GRADIENTS[step], table.mask(step))
        _, after = update(own, optimizer.init(optim.partition(PARAMS, table.ever)[0]), learnt)
        own = flat(own)
        for players in ("backbone", "classifier"):
            names = [name for name in own if name.startswith(players)]
            norm = np.sqrt(sum((own[name].astype(np.float64) ** 2).sum() for name in names))
            for name in names:
                moments = flat(after[1][f"from_{LEAVES[name][0]}"].mu)
                np.testing.assert_allclose(moments[name], 0.2 * own[name] * min(1, 1 / norm), rtol=1e-5)
    assert jax.tree.structure(state) == jax.tree.structure(
        optim.plan_adamw(RATE, table, **OPTIONS).init(optim.partition(PARAMS, table.ever)[0])
    )
    with pytest.raises(ValueError, match=r"pattern 'generator/\*\*' matches nothing"):
        optim.plan_adamw(RATE, table, clip_apart=("generator/**",)).init(optim.partition(PARAMS, table.ever)[0])
    with pytest.raises(
        ValueError, match=r"clip_apart is \['backbone/\*\*'\], but without clip_norm nothing is clipped"
    ):
        optim.plan_adamw(RATE, table, clip_norm=None, clip_apart=("backbone/**",))
