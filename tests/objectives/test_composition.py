"""A task, masked tokens of other text, L2 towards the start and a teacher, in one step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_close

from jaxptft import models, objectives, optim, train
from jaxptft.objectives import Context

VOCAB, LENGTH = 40, 8
WEIGHTS = {"task": 1.0, "mlm": 0.3, "distill": 0.7}


def config(layers):
    return models.BertConfig(
        vocab_size=VOCAB,
        width=8,
        layers=layers,
        heads=2,
        mlp_width=12,
        positions=LENGTH,
        dropout=0.0,
        attention_dropout=0.0,
    )


def rows(count, seed, *, padding=2):
    """Texts of unequal lengths, the last rows of which only fill the batch."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, LENGTH + 1, count)
    return {
        "input_ids": rng.integers(5, VOCAB, (count, LENGTH)).astype(np.int32),
        "attention_mask": (np.arange(LENGTH) < lengths[:, None]).astype(np.int32),
        "token_type_ids": np.zeros((count, LENGTH), np.int32),
        "label": rng.integers(0, 3, count).astype(np.int32),
        "ids": np.arange(count, dtype=np.int32),
        "valid": np.arange(count) < count - padding,
    }


@pytest.fixture(scope="module")
def parts():
    """Each objective alone, the batch, and parameters far from where they began."""
    numbers = np.arange(VOCAB)
    table = objectives.TokenTable(4, numbers < 5, numbers >= 5)
    batch = {"task": rows(16, 0), "mlm": rows(8, 1, padding=1)}
    student, teacher = (models.build(config(layers), "classification", classes=3) for layers in (1, 2))
    teacher_params = spread(teacher.init(jax.random.key(5), batch["task"]), 6)
    alone = {
        "task": objectives.classification(student),
        "mlm": objectives.masked_lm(models.build(config(1), "masked_lm"), tokens=table),
        "distill": objectives.distillation(student, teacher, teacher_params=teacher_params, temperature=3.0),
    }
    params = {}
    for name, objective in alone.items():
        made = objective.init(jax.random.key(0), batch["mlm" if name == "mlm" else "task"])
        params = objectives.merge_params(params, made)
    start = {"backbone": params["backbone"]}
    penalty = objectives.l2_to_pretrained(start, weights=0.2, new_weight=0.05)
    whole = objectives.combine(
        {name: (WEIGHTS[name], objective) for name, objective in alone.items()},
        penalties=[penalty],
        reads={"distill": "task"},
    )
    return alone, penalty, whole, spread(params, 1), batch


def spread(params, seed):
    keys = iter(jax.random.split(jax.random.key(seed), 200))
    return jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), params)


def value_and_gradient(objective, params, batch, rng):
    def loss(params):
        context = Context(objective.start(params, batch), objective.constants, rng, True, None)
        return objectives.total_loss(objective.loss(params, batch, context)[0])

    return jax.jit(jax.value_and_grad(loss))(params)


def test_loss_and_gradient_are_the_weighted_sums_of_the_parts(parts):
    """Against each part differentiated alone; the masks are those of the key that `combine` gives its source."""
    import zlib

    alone, penalty, whole, params, batch = parts
    rng = jax.random.key(3)
    value, gradient = value_and_gradient(whole, params, batch, rng)
    expected, summed = jax.value_and_grad(lambda p: penalty.loss(p, penalty.constants, rng))(params)
    for name, objective in alone.items():
        read = "mlm" if name == "mlm" else "task"
        own = jax.random.fold_in(rng, zlib.crc32(read.encode()))
        part, slope = value_and_gradient(objective, params, batch[read], own)
        assert float(part) > 0.1
        expected = expected + WEIGHTS[name] * part
        summed = jax.tree.map(lambda total, more, w=WEIGHTS[name]: total + w * more, summed, slope)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    assert_trees_all_close(gradient, summed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices, accumulate, kind", [(8, 1, "jit"), (1, 4, "jit"), (8, 1, "mapped")])
@pytest.mark.slow
def test_one_step_is_the_same_on_one_device_on_eight_and_in_micro_steps(parts, devices, accumulate, kind):
    """SGD at rate 1: what the parameters move by is the gradient."""
    import optax

    *_, whole, params, batch = parts
    optimizer, everything = optax.sgd(1.0), optim.trainable_mask(params, "none")

    def after(devices, accumulate, kind):
        mesh = train.make_mesh(jax.devices()[:devices])
        axis = "data" if kind == "mapped" else None
        step = train.make_step(whole, optimizer, trainable=everything, accumulate=accumulate, axis_name=axis)
        state = train.create_state(whole, optimizer, params, batch, trainable=everything, rng=jax.random.key(2))
        run = (train.mapped_step if kind == "mapped" else train.jit_step)(step, mesh)
        given = (train.replicate(state, mesh), train.replicate(whole.constants, mesh), train.shard(batch, mesh))
        state, metrics = run(*given)
        return jax.device_get(state.params), float(metrics["loss"].total)

    (moved, loss), (expected, alone) = after(devices, accumulate, kind), after(1, 1, "jit")
    assert loss == pytest.approx(alone, rel=1e-5)
    assert_trees_all_close(moved, expected, rtol=1e-4, atol=2e-6)
    assert float(optax.global_norm(jax.tree.map(jnp.subtract, moved, params))) > 0.1
