import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft.objectives import Context, Mean, Penalty, combine, l1, l2, l2_to_pretrained, lift, merge_params, total_loss


def scaled(name, key):
    """total = sum(w * x), count = rows; the state counts calls; draws one number so that keys can be told apart."""

    def loss(params, batch, context):
        x = batch["x"]
        metrics = {"noise": Mean(jax.random.uniform(context.rng), 1)}
        return {name: Mean((params["shared"]["w"] * x).sum() + params[key].sum(), len(x))}, (
            metrics,
            {"calls": context.state["calls"] + 1},
        )

    return lift(
        loss,
        init=lambda rng, batch: {"shared": {"w": jnp.ones(())}, key: jnp.zeros(2)},
        start=lambda params, batch: {"calls": 0},
        prepare=lambda params, state, step: {"calls": state["calls"] + 10},
        predict=lambda params, batch, context: {"x": batch["x"]},
        constants={"of": name},
    )


def context_for(objective, state, train=True):
    return Context(state, objective.constants, jax.random.key(0), train, None)


BATCH = {"task": {"x": np.array([1.0, 2.0])}, "other": {"x": np.array([3.0])}}


def test_two_sources_scale_prefix_and_keep_their_state_apart():
    objective = combine({"task": (1.0, scaled("a", "head_a")), "other": (0.5, scaled("a", "head_b"))})
    params = objective.init(jax.random.key(0), BATCH)
    assert sorted(params) == ["head_a", "head_b", "shared"]
    state = objective.prepare(params, objective.start(params, BATCH), 0)
    assert state == {"task": {"calls": 10}, "other": {"calls": 10}}
    terms, (metrics, state) = objective.loss(params, BATCH, context_for(objective, state))
    assert total_loss(terms) == 3.0  # (1 + 2) / 2 + 0.5 * 3 / 1, by hand
    assert sorted(terms) == ["other/a", "task/a"]
    assert state == {"task": {"calls": 11}, "other": {"calls": 11}}
    assert metrics["task/noise"].total != metrics["other/noise"].total
    assert sorted(objective.predict(params, BATCH, context_for(objective, state))) == ["other/x", "task/x"]


def test_a_batch_with_one_source_trains_on_that_source():
    objective = combine({"task": (1.0, scaled("a", "head_a")), "other": (0.5, scaled("a", "head_b"))})
    params = objective.init(jax.random.key(0), BATCH)
    state = objective.start(params, BATCH)
    terms, _ = objective.loss(params, {"task": BATCH["task"]}, context_for(objective, state))
    assert sorted(terms) == ["task/a"]
    with pytest.raises(KeyError, match="expected at least one of the sources"):
        objective.loss(params, {"x": 1}, context_for(objective, state))


def test_one_objective_with_penalties_reads_the_whole_batch():
    reference = {"shared": {"w": jnp.array(3.0)}}
    objective = combine(scaled("a", "head"), penalties=[l2_to_pretrained(reference, weights=0.25)])
    params = {"shared": {"w": jnp.array(1.0)}, "head": jnp.full(2, 5.0)}
    state = objective.start(params, BATCH["task"])
    terms, _ = objective.loss(params, BATCH["task"], context_for(objective, state))
    assert terms["l2_to_pretrained"].total == 1.0  # 0.25 * (1 - 3)^2, by hand; the head has no reference
    assert sorted(terms) == ["a", "l2_to_pretrained"]
    evaluated, _ = objective.loss(params, BATCH["task"], context_for(objective, state, train=False))
    assert sorted(evaluated) == ["a"]


def test_plain_penalties():
    objective = combine(scaled("a", "head"), penalties=[l2(weights=0.5), l1(weights=2.0)])
    params = {"shared": {"w": jnp.array(-1.0)}, "head": jnp.array([2.0, 0.0])}
    terms, _ = objective.loss(params, BATCH["task"], context_for(objective, objective.start(params, None)))
    assert terms["l2"].total == 2.5  # 0.5 * (1 + 4)
    assert terms["l1"].total == 6.0  # 2 * (1 + 2)


def test_combinations_nest():
    inner = combine(scaled("a", "head_a"), penalties=[l2(weights=1.0)])
    objective = combine({"task": (2.0, inner), "other": (1.0, scaled("b", "head_b"))})
    params = objective.init(jax.random.key(0), BATCH)
    terms, _ = objective.loss(params, BATCH, context_for(objective, objective.start(params, BATCH)))
    assert terms["task/l2"].total == 2.0  # weight 2 * w^2 = 1
    assert terms["other/b"].total == 3.0


def test_two_parts_of_one_name_are_refused_not_dropped():
    inner = combine(scaled("a", "head"), penalties=[l2(weights=10.0)])
    objective = combine(inner, penalties=[l2(weights=1.0)])
    params = {"shared": {"w": jnp.array(1.0)}, "head": jnp.zeros(2)}
    state = objective.start(params, BATCH["task"])
    with pytest.raises(ValueError, match="two parts of a combination give 'l2'"):
        objective.loss(params, BATCH["task"], context_for(objective, state))


def test_the_first_batch_must_hold_every_source():
    objective = combine({"task": (1.0, scaled("a", "h")), "other": (1.0, scaled("b", "g"))})
    with pytest.raises(KeyError, match=r"lacks the sources \['other'\]"):
        objective.start({}, {"task": BATCH["task"]})


def reading(seen):
    """What `scaled` draws, of whatever it is given to read."""

    def loss(params, batch, context):
        seen.append(batch)
        return {"a": Mean(jnp.ones(()), 1)}, {"noise": Mean(jax.random.uniform(context.rng), 1)}

    start = lambda params, batch: {"read": sorted(batch)}  # noqa: E731
    return lift(loss, init=lambda rng, batch: {"head": jnp.zeros(len(batch))}, start=start)


def test_a_source_may_read_anothers_part_or_several():
    seen = []
    sources = {"task": (1.0, scaled("a", "h")), "distill": (1.0, reading(seen)), "mmd": (1.0, reading([]))}
    objective = combine(sources, reads={"distill": "task", "mmd": ("task", "target")})
    batch = {"task": BATCH["task"], "target": BATCH["other"]}
    with pytest.raises(ValueError, match=r"share head with shapes \(1,\) and \(2,\)"):
        objective.init(jax.random.key(0), batch)  # each made its own of what it reads: one array, two parts
    params = {"shared": {"w": jnp.ones(())}, "h": jnp.zeros(2)}
    state = objective.start(params, batch)
    assert (state["distill"], state["mmd"]) == ({"read": ["x"]}, {"read": ["target", "task"]})
    assert objective.prepare(params, state, 0)["mmd"] == state["mmd"]
    terms, (metrics, _) = objective.loss(params, batch, context_for(objective, state))
    assert sorted(terms) == ["distill/a", "mmd/a", "task/a"]
    assert seen == [BATCH["task"]]
    # On the same rows the same noise; on several parts a noise of one's own.
    assert metrics["distill/noise"].total == metrics["task/noise"].total
    assert metrics["mmd/noise"].total != metrics["task/noise"].total


def test_a_source_whose_part_is_lacking_is_skipped():
    sources = {"task": (1.0, scaled("a", "h")), "mmd": (1.0, reading([])), "clone": (1.0, scaled("a", "g"))}
    objective = combine(sources, reads={"mmd": ("task", "target"), "clone": "task"})
    with pytest.raises(KeyError, match=r"lacks the sources \['target'\]"):
        objective.start({}, {"task": BATCH["task"]})
    batch = {"task": BATCH["task"]}
    params = objective.init(jax.random.key(0), batch)
    assert sorted(params) == ["g", "h", "shared"]
    state = {"task": {"calls": 0}, "mmd": {"read": []}, "clone": {"calls": 0}}
    terms, (_, after) = objective.loss(params, batch, context_for(objective, state))
    assert sorted(terms) == ["clone/a", "task/a"]
    assert after == {"task": {"calls": 1}, "mmd": {"read": []}, "clone": {"calls": 1}}
    assert sorted(objective.predict(params, batch, context_for(objective, state))) == ["clone/x", "task/x"]


def test_coupling_is_inherited():
    coupled = scaled("b", "head_b")._replace(coupled=True)
    assert combine({"task": (1.0, scaled("a", "h")), "other": (1.0, coupled)}).coupled
    assert not combine(scaled("a", "h")).coupled


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="combine got no objectives"):
        combine({})
    with pytest.raises(ValueError, match="the name 'a/b' holds a slash"):
        combine({"a/b": (1.0, scaled("a", "h"))})
    with pytest.raises(ValueError, match=r"reads names \['mdm'\], which are no sources; the sources are \['mmd'\]"):
        combine({"mmd": (1.0, scaled("a", "h"))}, reads={"mdm": "task"})
    with pytest.raises(ValueError, match="reads was given beside a single objective"):
        combine(scaled("a", "h"), reads={"task": "other"})
    for nothing in ("", (), ("task", "task")):
        with pytest.raises(ValueError, match="expected a part of the batch, or a tuple of several"):
            combine({"mmd": (1.0, scaled("a", "h"))}, reads={"mmd": nothing})
    twice = Penalty("same", lambda params, constants, rng: 0.0)
    with pytest.raises(ValueError, match=r"penalties share the names \['same'\]"):
        combine(scaled("a", "h"), penalties=[twice, twice])
    with pytest.raises(ValueError, match=r"share x/w with shapes \(2,\) and \(3,\)"):
        merge_params({"x": {"w": jnp.ones(2)}}, {"x": {"w": jnp.ones(3)}})
    with pytest.raises(ValueError, match="share the path x/w, a leaf in one and a subtree in the other"):
        merge_params({"x": {"w": jnp.ones(2)}}, {"x": {"w": {"v": jnp.ones(3)}}})
