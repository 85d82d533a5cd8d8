import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from jaxptft.optim import adamw, by_pattern, freeze, mask, partition, paths, schedule

STEPS = 12


def _params():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "backbone": {
            "embeddings": {"word": {"embedding": draw(5, 4)}, "norm": {"scale": draw(4), "bias": draw(4)}},
            "layer_0": {"mlp": {"kernel": draw(4, 4), "bias": draw(4)}, "mlp_norm": {"scale": draw(4)}},
        },
        "classifier": {"kernel": draw(4, 2), "bias": draw(2)},
    }


def _gradients(scale):
    """Random, of very different sizes from step to step, so that some steps are clipped and some are not."""
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(lambda leaf, size=size: (size * rng.normal(size=leaf.shape)).astype(np.float32), _params())
        for size in scale * np.geomspace(0.01, 10.0, STEPS)
    ]


def _torch_run(gradients, decay, rates, clip_norm, frozen=(), warmup=0, **options):
    """torch.optim.AdamW with a group for each leaf, clip_grad_norm_ and transformers' linear schedule."""
    names = paths(_params())
    leaves = dict(zip(names, jax.tree.leaves(_params()), strict=True))
    tensors = {name: torch.nn.Parameter(torch.tensor(leaf)) for name, leaf in leaves.items() if name not in frozen}
    groups = [{"params": [tensor], "weight_decay": decay[name], "lr": rates[name]} for name, tensor in tensors.items()]
    optimizer = torch.optim.AdamW(groups, **options)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, warmup, STEPS)
    for gradient in gradients:
        for name, value in zip(names, jax.tree.leaves(gradient), strict=True):
            if name in tensors:
                tensors[name].grad = torch.tensor(value)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(tensors.values()), clip_norm)
        optimizer.step()
        scheduler.step()
    return {name: tensors[name].detach().numpy() if name in tensors else leaves[name] for name in names}


def _our_run(optimizer, gradients, params=None):
    params = _params() if params is None else params
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return dict(zip(paths(params), jax.tree.leaves(params), strict=True))


def _settings(rate, weight_decay, multipliers):
    """Decay and rate of each leaf, from the names by plain string tests, not by our patterns."""
    decay, rates = {}, {}
    for name in paths(_params()):
        exempt = name.endswith("bias") or "/norm/" in name or "_norm/" in name
        decay[name] = 0.0 if exempt else weight_decay
        rates[name] = rate * next((factor for start, factor in multipliers.items() if name.startswith(start)), 1.0)
    return decay, rates


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("multipliers", [{}, {"backbone/embeddings": 0.1, "backbone": 0.5}])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_equals_torch(clip_norm, multipliers, weight_decay):
    gradients = _gradients(1.0)
    options = {"betas": (0.8, 0.95), "eps": 1e-6}
    expected = _torch_run(gradients, *_settings(0.05, weight_decay, multipliers), clip_norm, warmup=3, **options)
    ours = _our_run(
        adamw(
            schedule("linear", peak=0.05, steps=STEPS, warmup=3),
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            b1=0.8,
            b2=0.95,
            eps=1e-6,
            multipliers={f"{start}/**": factor for start, factor in multipliers.items()},
        ),
        gradients,
    )
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_defaults_equal_torch():
    """Our defaults are BERT's: decay 0.01 off biases and norms, norm 1; b1, b2 and eps are torch's own defaults."""
    gradients = _gradients(1.0)
    expected = _torch_run(gradients, *_settings(0.05, 0.01, {}), 1.0)
    ours = _our_run(adamw(schedule("linear", peak=0.05, steps=STEPS)), gradients)
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_frozen_by_freeze_or_absent_equal_torch():
    """With layer_0 left out of torch's optimizer: through `freeze`, and with None in its place (`partition`)."""
    gradients = _gradients(1.0)
    frozen = mask(_params(), "backbone/layer_0/**")
    names = [name for name, held in zip(paths(frozen), jax.tree.leaves(frozen), strict=True) if held]
    expected = _torch_run(gradients, *_settings(0.05, 0.3, {"backbone": 0.5}), 1.0, frozen=names)
    inner = adamw(schedule("linear", peak=0.05, steps=STEPS), weight_decay=0.3, multipliers={"backbone/**": 0.5})
    through_freeze = _our_run(freeze(inner, "backbone/layer_0/**"), gradients)

    trainable = jax.tree.map(lambda held: not held, frozen)
    partial = [partition(gradient, trainable)[0] for gradient in gradients]
    absent = _our_run(inner, partial, partition(_params(), trainable)[0])
    assert set(absent) == set(expected) - set(names)
    for name, value in expected.items():
        np.testing.assert_allclose(through_freeze[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        if name in absent:
            np.testing.assert_allclose(absent[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_clipped_gradients_differ_from_torch_by_the_stated_tolerance():
    """torch divides by norm + 1e-6: at norm 0.01, clipped to 0.001, that is 1e-4 of the update, as stated."""
    gradient = np.array([0.006, 0.008], np.float32)
    ours, _ = optax.clip_by_global_norm(0.001).update(jnp.asarray(gradient), optax.EmptyState())
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor(gradient)
    torch.nn.utils.clip_grad_norm_([parameter], 0.001)
    np.testing.assert_allclose(ours, parameter.grad, rtol=1.1e-4)


def test_no_decay_is_lenient_and_can_be_one_pattern():
    """One step with gradient 0 moves a leaf by -rate * decay * theta and no other way (hand computation)."""
    params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved = _our_run(adamw(0.1, weight_decay=0.5, no_decay="kernel"), [zeros], params)
    np.testing.assert_allclose([moved["kernel"][0], moved["bias"][0]], [2.0, 1.9], rtol=1e-6)
    moved = _our_run(adamw(0.1, weight_decay=0.5, no_decay=["nowhere/**"]), [zeros], params)
    np.testing.assert_allclose([moved["kernel"][0], moved["bias"][0]], [1.9, 1.9], rtol=1e-6)


def test_multipliers_without_effect_are_errors():
    with pytest.raises(ValueError, match=r"pattern 'backbone/layer_9/\*\*' matches nothing; nearest paths"):
        adamw(0.1, multipliers={"backbone/layer_9/**": 0.5}).init(_params())
    with pytest.raises(ValueError, match=r"pattern 'backbone/layer_0/\*\*' comes too late"):
        adamw(0.1, multipliers={"backbone/**": 0.5, "backbone/layer_0/**": 0.1}).init(_params())
    values = jax.tree.leaves(by_pattern(_params(), {"backbone/**": 0.5}, default=1.0))
    assert values.count(0.5) == 6  # counted in _params


@pytest.mark.parametrize(
    "options, message",
    [
        ({"clip_norm": 0.0}, "clip_norm must be positive, or None for no clipping, got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"b1": 1.0}, r"b1 must lie in \[0, 1\), got 1.0"),
        ({"b2": -0.1}, r"b2 must lie in \[0, 1\), got -0.1"),
        ({"eps": -1e-8}, "eps must be at least 0, got -1e-08"),
        ({"multipliers": {"a": -1.0}}, "the multiplier of 'a' must be finite and at least 0, got -1.0"),
        ({"multipliers": {"a": float("nan")}}, "the multiplier of 'a' must be finite"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        adamw(0.1, **options)
