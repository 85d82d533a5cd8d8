import math
import re
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxptft import models, objectives, optim, train
from jaxptft.train.parallel import DATA


def test_padding_rows_count_for_nothing_and_the_given_batch_is_left_alone():
    batch = {"x": np.arange(5), "ids": np.arange(5), "valid": np.ones(5, bool)}
    padded = train.pad_rows(batch, 4)
    assert padded["valid"].tolist() == [True] * 5 + [False] * 3
    assert padded["ids"].tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert batch["valid"].tolist() == [True] * 5
    assert train.pad_rows(batch, 5) is batch


def test_every_source_of_a_batch_is_padded():
    padded = train.pad_rows({"task": {"valid": np.ones(3, bool)}, "other": {"valid": np.ones(4, bool)}}, 4)
    assert padded["task"]["valid"].tolist() == [True] * 3 + [False]
    assert padded["other"]["valid"].tolist() == [True] * 4


def test_a_batch_that_cannot_be_padded_is_refused():
    with pytest.raises(ValueError, match="5 rows does not split over 8 devices and has no 'valid' mask"):
        train.shard({"x": np.arange(5)}, train.make_mesh())


@pytest.mark.slow
def test_an_odd_batch_gives_the_same_update_on_one_and_eight_devices(tiny):
    odd = {name: leaf[:7] for name, leaf in tiny.batch.items()}
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = train.make_mesh(devices)
        state = train.create_state(
            tiny.objective, tiny.optimizer, tiny.params, odd, trainable=tiny.everything, rng=jax.random.key(0)
        )
        step = train.jit_step(train.make_step(tiny.objective, tiny.optimizer, trainable=tiny.everything), mesh)
        state, metrics = step(train.replicate(state, mesh), None, train.shard(odd, mesh))
        results.append((float(metrics["loss"].total), np.asarray(state.params["classifier"]["kernel"])))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


@pytest.mark.slow
def test_sixty_steps_of_pmap_follow_sixty_of_sharded_jit(tiny):
    losses = {}
    for kind in ("jit", "pmap"):
        axis_name = None if kind == "jit" else DATA
        step = train.make_step(tiny.objective, tiny.optimizer, trainable=tiny.everything, axis_name=axis_name)
        state = train.create_state(
            tiny.objective, tiny.optimizer, tiny.params, tiny.batch, trainable=tiny.everything, rng=jax.random.key(0)
        )
        mesh = train.make_mesh()
        run = train.jit_step(step, mesh) if kind == "jit" else train.pmap_step(step)
        batch = train.shard(tiny.batch, mesh) if kind == "jit" else tiny.batch
        losses[kind] = []
        for _ in range(60):
            state, metrics = run(state, None, batch)
            losses[kind].append(float(metrics["loss"].total))  # reading it also awaits the step
    np.testing.assert_allclose(losses["jit"], losses["pmap"], atol=1e-5)
    assert losses["jit"][-1] < losses["jit"][0]


def test_pmap_refuses_rows_that_do_not_split(tiny):
    step = train.pmap_step(train.make_step(tiny.objective, tiny.optimizer, trainable=tiny.everything, axis_name=DATA))
    with pytest.raises(ValueError, match=r"\[7\] rows do not split over 8 devices; use pad_rows first"):
        step(None, None, {"x": np.arange(7)})


def test_the_gradient_crosses_devices_in_one_all_reduce(tiny):
    mesh = train.make_mesh()
    state = train.create_state(
        tiny.objective, tiny.optimizer, tiny.params, tiny.batch, trainable=tiny.everything, rng=jax.random.key(0)
    )
    step = train.jit_step(train.make_step(tiny.objective, tiny.optimizer, trainable=tiny.everything), mesh)
    program = step.lower(state, None, train.shard(tiny.batch, mesh)).compile().as_text()
    assert "all-gather" not in program
    reduces = [line for line in program.splitlines() if " all-reduce(" in line]
    assert len([line for line in reduces if line.count("f32[") > 10]) == 1


@pytest.fixture(scope="module")
def tied():
    """Masked language modelling by a BERT whose word table is its decoder too, with dropout."""
    config = models.BertConfig(vocab_size=50, width=16, layers=1, heads=2, mlp_width=24, positions=12, dropout=0.3)
    special = np.arange(50) < 5
    tokens = objectives.TokenTable(4, special, ~special)
    objective = objectives.masked_lm(models.build(config, "masked_lm"), tokens=tokens, capacity=12)
    rng = np.random.default_rng(0)
    batch = {
        "input_ids": rng.integers(5, 50, (16, 12)).astype(np.int32),
        "attention_mask": (np.arange(12) < rng.integers(2, 13, 16)[:, None]).astype(np.int32),
        "token_type_ids": np.zeros((16, 12), np.int32),
        "ids": np.arange(16, dtype=np.int32) + 30,
        "valid": np.arange(16) < 13,
    }
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    everything = optim.trainable_mask(params, "none")
    optimizer = optim.adamw(1e-2, clip_norm=1.0)
    make = partial(train.make_step, objective, optimizer, trainable=everything)

    def given(mesh):
        state = train.create_state(objective, optimizer, params, batch, trainable=everything, rng=jax.random.key(1))
        return train.replicate(state, mesh), train.replicate(objective.constants, mesh), train.shard(batch, mesh)

    return make, given


def test_a_tied_table_crosses_devices_once(tied):
    """One reduction of as many numbers as learn, besides scalars, and nothing else; XLA alone would reduce it twice."""
    make, given = tied
    mesh = train.make_mesh()
    arguments = given(mesh)
    program = train.compile_step(make, mesh).lower(*arguments).compile().as_text()
    assert not re.search("all-gather|reduce-scatter|collective-permute|all-to-all", program)
    reduces = re.findall(r" = (\(.*?\)|\S+) all-reduce(?:-start)?\(", program)
    sizes = [
        [math.prod(int(axis) for axis in axes.split(",") if axis) for axes in re.findall(r"\w\[([\d,]*)\]", shapes)]
        for shapes in reduces
    ]
    (gradient,) = [own for own in sizes if max(own) > 1]
    expected = sorted(leaf.size for leaf in jax.tree.leaves(arguments[0].params))
    assert sorted(size for size in gradient if size > 1) == [size for size in expected if size > 1]
    assert len(sizes) <= 3  # what is counted, and the first example's id, by which dropout goes


def test_eight_devices_that_map_the_step_do_what_one_does_dropout_included(tied):
    make, given = tied
    make, found = partial(make, accumulate=2), []
    for devices, kind in ((1, "jit"), (8, "mapped"), (8, "pmap")):
        mesh = train.make_mesh(jax.devices()[:devices])
        step = train.pmap_step(make(axis_name=DATA)) if kind == "pmap" else train.compile_step(make, mesh)
        state, constants, batch = given(mesh)
        losses = []
        for _ in range(3):
            state, metrics = step(state, constants, batch)
            losses.append(float(metrics["loss"].total))
        for leaf in jax.tree.leaves((state._replace(rng=None), metrics)):
            assert len({shard.data.tobytes() for shard in leaf.addressable_shards}) == 1
        found.append((losses, jax.device_get(state.params)))
    for losses, params in found[1:]:
        np.testing.assert_allclose(losses, found[0][0], rtol=1e-6)
        for eight, one in zip(*(jax.tree.leaves(tree) for tree in (params, found[0][1])), strict=True):
            np.testing.assert_allclose(eight, one, atol=1e-5)


def test_several_devices_map_the_step_unless_they_cut_the_state(tied):
    assert train.axis_of(train.make_mesh(jax.devices()[:1])) is None
    assert train.axis_of(train.make_mesh(jax.devices()[:2])) == DATA
    assert train.axis_of(train.make_mesh(fsdp=2)) is None
    with pytest.raises(ValueError, match="the mesh cuts the state over 2 devices; give this step to jit_step"):
        train.mapped_step(tied[0](axis_name=DATA), train.make_mesh(fsdp=2))


# Fully sharded data parallelism


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_leaves_are_cut_at_the_longest_axis_that_divides(fsdp):
    mesh = train.make_mesh(fsdp=fsdp)
    tree = {"table": np.zeros((30, 16)), "square": np.zeros((64, 64)), "odd": np.zeros((7, 9)), "small": np.zeros(8)}
    specs = {name: found.spec for name, found in train.spread_shardings(tree, mesh, smallest=60).items()}
    if fsdp == 1:
        assert set(specs.values()) == {PartitionSpec()}
        return
    # 30 rows go into halves alone
    table = PartitionSpec("fsdp") if fsdp == 2 else PartitionSpec(None, "fsdp")
    assert specs == {
        "table": table,
        "square": PartitionSpec(None, "fsdp"),
        "odd": PartitionSpec(),
        "small": PartitionSpec(),
    }


def test_each_device_holds_its_share_of_parameters_and_moments(tiny):
    mesh = train.make_mesh(fsdp=8)
    state = train.create_state(
        tiny.objective, tiny.optimizer, tiny.params, tiny.batch, trainable=tiny.everything, rng=jax.random.key(2)
    )
    spread = train.spread(state, mesh, smallest=64)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    device = jax.devices()[3]
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves((spread.params, spread.opt_state))
        for shard in leaf.addressable_shards
        if shard.device == device
    )
    assert held < 0.25 * total  # a tiny model has many leaves below 64 elements
    assert train.fingerprint(spread) == train.fingerprint(state)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [2, 8])
def test_sixty_steps_with_the_state_cut_follow_sixty_with_it_whole(tiny, fsdp):
    found = {}
    for parts in (1, fsdp):
        mesh = train.make_mesh(fsdp=parts)

        def make(params, batch, rng):
            return train.create_state(tiny.objective, tiny.optimizer, params, batch, trainable=tiny.everything, rng=rng)

        state = train.made_spread(make, mesh, smallest=64)(tiny.params, tiny.batch, jax.random.key(2))
        step = train.make_step(tiny.objective, tiny.optimizer, trainable=tiny.everything)
        compiled = train.jit_step(step, mesh, smallest=64)
        batch, losses = train.shard(tiny.batch, mesh), []
        before = jax.tree.map(lambda leaf: leaf.sharding, state)
        for _ in range(60):
            state, metrics = compiled(state, None, batch)
            losses.append(float(metrics["loss"].total))
        if parts > 1:
            assert jax.tree.map(lambda leaf: leaf.sharding, state) == before
        found[parts] = losses
    np.testing.assert_allclose(found[fsdp], found[1], rtol=1e-5)
    assert found[1][-1] < found[1][0]


def test_a_mesh_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="fsdp is 3, which does not divide 8 devices"):
        train.make_mesh(fsdp=3)


def test_one_process_puts_every_row_on_its_devices():
    np.testing.assert_array_equal(train.own_rows(16, train.make_mesh(fsdp=2)), np.arange(16))
    np.testing.assert_array_equal(train.own_rows(3, train.make_mesh(jax.devices()[:3])), np.arange(3))
