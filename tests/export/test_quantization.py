"""int8 as torch makes it, and models that read it without knowing."""

import warnings

import jax
import numpy as np
import pytest
import torch
from torch.ao.quantization import PerChannelMinMaxObserver

from jaxptft import export, models
from jaxptft.export import quantization

TEXT = {
    "input_ids": np.array([[3, 9, 4, 0], [5, 7, 8, 2]]),
    "attention_mask": np.array([[1, 1, 1, 0], [1, 1, 1, 1]]),
    "token_type_ids": np.array([[0, 0, 1, 1], [0, 1, 1, 1]]),
}
SHAPE = {"vocab_size": 40, "width": 16, "layers": 2, "heads": 2}
CONFIGS = {
    "bert": models.BertConfig(**SHAPE, mlp_width=24, positions=32),
    "modernbert": models.ModernBertConfig(**SHAPE, mlp_width=24, positions=32, pad_id=0, local_attention=4),
    "gpt2": models.Gpt2Config(**SHAPE, positions=32),
    "vit": models.VitConfig(image_size=8, patch_size=4, channels=3, width=16, layers=1, heads=2, mlp_width=24),
}


def matrix(shape=(24, 16), seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * np.exp(np.arange(shape[1]) / 4)).astype(np.float32)


def model_of(family):
    batch, random = TEXT, np.random.default_rng(0)
    if family == "vit":
        batch = {"image": random.normal(size=(2, 8, 8, 3)).astype(np.float32)}
    network = models.build(CONFIGS[family], "classification", classes=3)
    shapes = jax.eval_shape(network.init, jax.random.key(0), batch)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32) * 0.4, shapes)
    return network, params, batch


@pytest.mark.parametrize("axis", [0, 1])
def test_integers_and_scales_are_those_of_torch(axis):
    values = torch.from_numpy(matrix())
    observer = PerChannelMinMaxObserver(
        ch_axis=1 - axis, dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-127, quant_max=127
    )
    observer(values)
    scale, zero = observer.calculate_qparams()
    with warnings.catch_warnings(action="ignore"):  # deprecated
        expected = torch.quantize_per_channel(values, scale, zero, 1 - axis, torch.qint8)
    found = export.quantize_matrix(values.numpy(), axis=axis)
    assert not zero.any()
    np.testing.assert_array_equal(found["scale"].ravel(), scale.numpy())
    np.testing.assert_array_equal(found["int8"], expected.int_repr().numpy())
    np.testing.assert_array_equal(export.dequantize({"a": found})["a"], expected.dequantize().numpy())


def test_no_weight_is_off_by_more_than_half_a_step():
    values = matrix()
    values[:, 3] = 0
    values[:, 4] = 1e-42  # a subnormal, of which no scale can be made
    found = export.quantize_matrix(values, axis=0)
    assert found["int8"].dtype == np.int8
    assert found["int8"].min() >= -127
    assert (np.abs(values - found["int8"] * found["scale"]) <= found["scale"] * 0.5001).all()
    assert found["scale"][0, 3] == 1
    assert not found["int8"][:, 3:5].any()


def test_clipping_leaves_no_more_error_than_the_largest_value():
    values = np.random.default_rng(0).normal(size=(200_000, 4)).astype(np.float32)
    errors = {}
    for clip in ("max", "mse"):
        found = export.quantize_matrix(values, axis=0, clip=clip)
        errors[clip] = np.square(values - found["int8"] * found["scale"]).sum(0)
    assert (errors["mse"] <= errors["max"]).all()
    assert errors["mse"].sum() < 0.95 * errors["max"].sum()


def test_what_cannot_be_int8_is_refused():
    params = {"a": {"kernel": matrix(), "bias": np.zeros(16, np.float32)}, "b": {"kernel": np.full((2, 2), np.nan)}}
    with pytest.raises(ValueError, match="a/bias is no matrix"):
        export.quantize(params, ["a/bias"])
    with pytest.raises(ValueError, match="b/kernel: NaN or infinity"):
        export.quantize(params, ["b/kernel"])
    made = export.quantize(params, ["a/kernel"])
    with pytest.raises(ValueError, match="a/kernel is int8 already"):
        export.quantize(made, ["a/kernel"])
    assert made["a"]["bias"] is params["a"]["bias"]
    with pytest.raises(ValueError, match="mode must be one of weights, dynamic, static"):
        models.with_int8(model_of("bert")[0].apply, "int4")


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_of_int8_weights_is_the_model_of_what_they_stand_for(family):
    network, params, batch = model_of(family)
    paths = models.int8_paths(network.apply, params, batch)
    made = export.quantize(params, paths)
    kernels = {path for path in paths if path.endswith("kernel")}
    assert any(path.startswith("classifier") for path in kernels)
    assert len(kernels) > 4
    found = jax.jit(models.with_int8(network.apply, "weights"))(made, batch)
    np.testing.assert_allclose(found, jax.jit(network.apply)(export.dequantize(made), batch), rtol=1e-5, atol=1e-5)


def linear(kernel, x):
    """One projection in the place of a model."""
    from jaxptft.models.layers import Dense

    module = Dense(kernel.shape[1], 0.02, "float32")
    network = models.Model(lambda rng, batch: {}, lambda params, batch: module.apply({"params": params}, batch))
    return network, {"kernel": kernel, "bias": np.arange(kernel.shape[1], dtype=np.float32)}, x


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_inputs_are_rounded_by_token_or_by_their_range(mode):
    network, params, x = linear(matrix(), np.random.default_rng(1).normal(size=(2, 3, 24)).astype(np.float32))
    x[0, 0] = 0
    ranges = models.input_ranges(network.apply, params, x)
    assert float(ranges["kernel"]) == np.abs(x).max()
    made = export.quantize(params, ["kernel"], ranges=ranges)
    found = models.with_int8(network.apply, mode)(made, x)
    # torch rounds the inputs; integers are multiplied as such, which float64 does exactly.
    flat = torch.from_numpy(x.reshape(-1, 24))
    step = flat.abs().amax(1) / 127 if mode == "dynamic" else flat.abs().max().expand(6) / 127
    step[step == 0] = 1
    ints = (
        torch.fake_quantize_per_channel_affine(flat, step, torch.zeros(6, dtype=torch.int32), 0, -127, 127)
        / step[:, None]
    )
    exact = ints.round().double().numpy() @ made["kernel"]["int8"].astype(np.float64)
    expected = exact * step[:, None].numpy() * made["kernel"]["scale"] + params["bias"]
    np.testing.assert_allclose(found.reshape(6, 16), expected, rtol=2e-6, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(models.with_int8(network.apply, "dynamic")(made, x))[0, 0], params["bias"])


def test_a_percentile_clips_what_is_larger():
    x = np.random.default_rng(1).normal(size=(4, 50, 24)).astype(np.float32)
    x[1, 3, 5] = 100
    network, params, x = linear(matrix(), x)
    ranges = models.input_ranges(network.apply, params, x, percentile=99.0)
    np.testing.assert_allclose(ranges["kernel"], np.percentile(np.abs(x), 99.0), rtol=1e-6)
    made = export.quantize(params, ["kernel"], ranges=ranges)
    clipped = np.clip(x, -float(ranges["kernel"]), float(ranges["kernel"]))
    found, expected = (models.with_int8(network.apply, "static")(made, inputs) for inputs in (x, clipped))
    np.testing.assert_array_equal(found, expected)
    whole = export.quantize(params, ["kernel"], ranges=models.input_ranges(network.apply, params, x))
    rest, exact = np.delete(np.arange(4), 1), network.apply(params, x)
    near, far = (
        np.abs(models.with_int8(network.apply, "static")(own, x) - exact)[rest].mean() for own in (made, whole)
    )
    assert near < far / 4


def test_nan_is_not_rounded_away():
    network, params, x = linear(matrix(), np.ones((1, 24), np.float32))
    made = export.quantize(params, ["kernel"])
    x[0, 3] = np.nan
    assert np.isnan(models.with_int8(network.apply, "dynamic")(made, x)).all()


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_rounded_inputs_stay_near_the_model(mode):
    network, params, batch = model_of("bert")
    ranges = models.input_ranges(network.apply, params, batch)
    made = export.quantize(params, models.int8_paths(network.apply, params, batch), ranges=ranges)
    found, expected = models.with_int8(network.apply, mode)(made, batch), network.apply(params, batch)
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_both_know_the_same_range():
    assert quantization._MOST == models.int8._MOST
