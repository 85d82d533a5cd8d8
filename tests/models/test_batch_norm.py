"""Batch normalization against torch's, over padding, over devices, and what becomes of its statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.models.batch_norm import BatchNorm, Moments, Population, moments, running_statistics
from jaxptft.models.pure import as_model_with_statistics

RNG = np.random.default_rng(0)
BATCHES = RNG.normal(2, 3, (3, 8, 4, 5, 6)).astype(np.float32)
WEIGHTS = RNG.normal(size=BATCHES.shape[1:]).astype(np.float32)
VALID = np.array([True, True, True, False, True, False, False, False])


class Two(nn.Module):
    """A norm that learns; and one more, passed `times` times."""

    times: int = 1

    @nn.compact
    def __call__(self, batch, *, train=False, axis_name=None):
        over = Population(batch.get("valid"), axis_name)
        x = BatchNorm(epsilon=1e-3, momentum=0.3, name="norm")(batch["x"], over, active=train)
        plain = BatchNorm(affine=False, name="plain")
        for _ in range(self.times):
            x = plain(x, over, active=train)
        return x


MODEL = as_model_with_statistics(Two())
PARAMS = {
    "norm": {
        name: RNG.uniform(0.5, 2, 6).astype(np.float32) for name in ("scale", "bias", "running_mean", "running_var")
    },
    "plain": {"running_mean": np.zeros(6, np.float32), "running_var": np.ones(6, np.float32)},
}


def reference():
    first, second = torch.nn.BatchNorm2d(6, eps=1e-3, momentum=0.3), torch.nn.BatchNorm2d(6, affine=False)
    names = {"scale": "weight", "bias": "bias", "running_mean": "running_mean", "running_var": "running_var"}
    with torch.no_grad():
        for ours, theirs in names.items():
            getattr(first, theirs).copy_(torch.tensor(PARAMS["norm"][ours]))
    return torch.nn.Sequential(first, second)


def first(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def last(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def weighted(params, x, valid=None, weights=WEIGHTS, axis_name=None):
    """A number that depends on each valid output differently, with the statistics and the outputs."""
    batch = {"x": x} if valid is None else {"x": x, "valid": valid}
    output, renewed = MODEL.apply(params, batch, train=True, statistics=MODEL.statistics(PARAMS), axis_name=axis_name)
    counted = True if valid is None else valid[:, None, None, None]
    return jnp.where(counted, jnp.sin(weights * output), 0.0).sum(), (renewed, output)


gradient_of = jax.jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))


def test_training_is_torchs_and_so_are_the_gradients_and_the_statistics():
    theirs, ours = reference(), MODEL.statistics(PARAMS)
    for x in BATCHES:
        output, ours = MODEL.apply(PARAMS, {"x": x}, train=True, statistics=ours)
        np.testing.assert_allclose(output, last(theirs(first(x))), rtol=1e-4, atol=2e-6)
    for norm, reference_norm in zip(("norm", "plain"), theirs, strict=True):
        np.testing.assert_allclose(ours[norm]["running_mean"], reference_norm.running_mean, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(ours[norm]["running_var"], reference_norm.running_var, rtol=1e-5)
    evaluated, same = MODEL.apply(PARAMS, {"x": BATCHES[0]}, statistics=ours)
    np.testing.assert_allclose(evaluated, last(theirs.eval()(first(BATCHES[0]))), rtol=1e-4, atol=2e-6)
    assert same is ours

    (slope, along_x), _ = gradient_of(PARAMS, BATCHES[0])
    theirs, x = reference(), first(BATCHES[0]).requires_grad_()
    torch.sin(first(WEIGHTS) * theirs(x)).sum().backward()
    np.testing.assert_allclose(along_x, last(x.grad), rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(slope["norm"]["scale"], theirs[0].weight.grad, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(slope["norm"]["bias"], theirs[0].bias.grad, rtol=1e-3, atol=1e-4)
    for leaf in jax.tree.leaves(running_statistics(slope)):
        assert not leaf.any()


@pytest.mark.parametrize("filling", [0.0, 1e6])
def test_padding_rows_change_nothing(filling):
    """Expected: the same batch without them."""
    x = np.where(VALID[:, None, None, None], BATCHES[0], np.float32(filling))
    (slope, along_x), (renewed, output) = gradient_of(PARAMS, x, VALID)
    (expected, along_rows), (statistics, rows) = gradient_of(PARAMS, x[VALID], None, WEIGHTS[VALID])
    np.testing.assert_allclose(output[VALID], rows, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(along_x[VALID], along_rows, rtol=1e-3, atol=2e-5)
    assert not along_x[~VALID].any()
    for name in ("scale", "bias"):
        np.testing.assert_allclose(slope["norm"][name], expected["norm"][name], rtol=1e-3, atol=1e-4)
    for one, other in zip(jax.tree.leaves(renewed), jax.tree.leaves(statistics), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_devices_with_unequal_rows_give_what_one_gives():
    """Under pmap on eight devices of one row each, four of them without a valid row."""
    (slope, along_x), (renewed, output) = gradient_of(PARAMS, BATCHES[0], VALID)

    def on_device(params, *rows):
        (slope, along_x), (renewed, output) = jax.grad(weighted, argnums=(0, 1), has_aux=True)(
            params, *rows, axis_name="data"
        )
        return jax.lax.psum(slope, "data"), along_x, renewed, output

    split = [leaf.reshape(8, 1, *leaf.shape[1:]) for leaf in (BATCHES[0], VALID, WEIGHTS)]
    mapped = jax.pmap(on_device, axis_name="data", in_axes=(None, 0, 0, 0))(PARAMS, *split)
    np.testing.assert_allclose(mapped[1][:, 0], along_x, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(mapped[3][:, 0], output, rtol=1e-5, atol=1e-6)
    for expected, found in zip(jax.tree.leaves((slope, renewed)), jax.tree.leaves(mapped[::2]), strict=True):
        for device in np.asarray(found):
            np.testing.assert_allclose(device, expected, rtol=1e-3, atol=2e-5)
    for leaf in jax.tree.leaves(mapped[2]):
        assert (np.asarray(leaf) == np.asarray(leaf)[0]).all()


def test_statistics_far_from_zero_are_exact():
    """Two passes: the squares' mean minus the mean's square would lose this variance in float32. Expected: float64."""
    x = RNG.normal(1e4, 1, (64, 3, 3, 2)).astype(np.float32)
    found = moments(x, Population())
    np.testing.assert_allclose(found.mean, x.astype(np.float64).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.variance, x.astype(np.float64).var((0, 1, 2)), rtol=1e-3)
    assert float(found.count) == 64 * 9
    # Halves are computed with in float32 too.
    norm = BatchNorm(dtype="bfloat16")
    variables = norm.init(jax.random.key(0), x, Population(), active=False)
    half = norm.apply(variables, jnp.asarray(x, jnp.bfloat16), Population(), active=True)
    assert half.dtype == jnp.bfloat16
    widened = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    expected = (widened - widened.mean((0, 1, 2))) / np.sqrt(widened.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(np.asarray(half, np.float64), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_numbers_leave_the_running_statistics(rows):
    valid = np.arange(3) < rows
    norm = BatchNorm()
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    variables = norm.init(jax.random.key(0), x, Population(), active=False)
    held = running_statistics(variables["params"])
    y, renewed = norm.apply(
        {**variables, "statistics": held}, x, Population(valid), active=True, mutable=["statistics"]
    )
    assert np.isfinite(y).all()
    for name in held:
        np.testing.assert_array_equal(renewed["statistics"][name], held[name])
    assert moments(x, Population(np.zeros(3, bool))) == Moments(*map(pytest.approx, (np.zeros(4), np.zeros(4), 0.0)))


def test_what_there_is_of_parameters_and_statistics():
    params = MODEL.init(jax.random.key(0), {"x": BATCHES[0]})
    assert jax.tree.structure(params) == jax.tree.structure(PARAMS)
    assert {name: float(leaf[0]) for name, leaf in params["norm"].items()} == {
        "scale": 1.0,
        "bias": 0.0,
        "running_mean": 0.0,
        "running_var": 1.0,
    }
    zero = BatchNorm(zero_scale=True)
    made = zero.init(jax.random.key(0), BATCHES[0], Population(), active=False)["params"]
    assert not made["scale"].any()
    statistics = running_statistics({"head": {"bias": 0}, "body": {"norm": PARAMS["norm"]}})
    assert statistics == {"body": {"norm": {k: PARAMS["norm"][k] for k in ("running_mean", "running_var")}}}


def test_statistics_of_other_models_pass_through_and_params_stand_in_for_none():
    own, other = MODEL.statistics(PARAMS), {"running_mean": np.ones(2)}
    _, renewed = MODEL.apply(PARAMS, {"x": BATCHES[0]}, train=True, statistics={**own, "other": other})
    assert renewed.keys() == {"norm", "plain", "other"}
    assert renewed["other"]["running_mean"] is other["running_mean"]
    with_params = MODEL.apply(PARAMS, {"x": BATCHES[0]})
    np.testing.assert_array_equal(with_params, MODEL.apply(PARAMS, {"x": BATCHES[0]}, statistics=own)[0])
    alone = MODEL.apply(PARAMS, {"x": BATCHES[0]}, train=True)
    np.testing.assert_array_equal(
        alone, MODEL.apply(PARAMS, {"x": BATCHES[0]}, train=True, statistics={**own, "other": other})[0]
    )


def test_a_norm_passed_twice_renews_its_statistics_twice():
    """As torch's does, where a module is called twice."""
    model, theirs = as_model_with_statistics(Two(times=2)), reference()
    _, renewed = model.apply(PARAMS, {"x": BATCHES[0]}, train=True, statistics=model.statistics(PARAMS))
    theirs[1](theirs(first(BATCHES[0])))
    np.testing.assert_allclose(renewed["plain"]["running_var"], theirs[1].running_var, rtol=1e-5)
    np.testing.assert_allclose(renewed["plain"]["running_mean"], theirs[1].running_mean, atol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"valid has shape \(3,\); expected one value for each of 8 rows"):
        moments(BATCHES[0], Population(np.ones(3, bool)))
    dropping = as_model_with_statistics(Two(), dropouts=(0.1,))
    with pytest.raises(ValueError, match="train=True with dropout needs rng"):
        dropping.apply(PARAMS, {"x": BATCHES[0]}, train=True)
