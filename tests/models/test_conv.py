"""Small image models: against torch, from the image up and from the code down, and what they refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxptft import models
from jaxptft.models import ConvConfig

RNG = np.random.default_rng(0)
SIZES = {"image_size": (7, 10), "channels": 2, "widths": (3, 4), "features": 5, "latent": 6}
CONV = ConvConfig(**SIZES, norm="layer")
MLP = ConvConfig(**SIZES, kind="mlp", activation="tanh", features_activation="sigmoid")
BATCHED = ConvConfig(**SIZES, norm="batch")
BATCH = {"image": RNG.random((4, 7, 10, 2)).astype(np.float32), "features": RNG.normal(size=(4, 6)).astype(np.float32)}
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_params(*made):
    """Parameters with every leaf drawn, norms and biases too; variances positive."""
    rng, params = np.random.default_rng(1), {}
    for model in made:
        params |= jax.eval_shape(lambda model=model: model.init(jax.random.key(0), BATCH))

    def draw(path, leaf):
        values = rng.normal(0, 0.5, leaf.shape)
        return (np.abs(values) + 0.1 if "running_var" in str(path) else values).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, params)


def torch_layer(layer, x, activation, stride):
    """The layer in torch, channels first; linear where there is no activation."""
    if "conv" in layer:
        kernel = torch.tensor(layer["conv"]["kernel"]).permute(3, 2, 0, 1)
        bias = layer["conv"].get("bias")
        x = F.conv2d(x, kernel, None if bias is None else torch.tensor(bias), stride=stride, padding=1)
    else:
        rows = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
        x = rows.flatten(1) @ torch.tensor(layer["dense"]["kernel"]) + torch.tensor(layer["dense"].get("bias", 0.0))
    if "norm" in layer:
        rows = x.movedim(1, -1)
        scale, bias = (torch.tensor(layer["norm"][name]) for name in ("scale", "bias"))
        x = F.layer_norm(rows, rows.shape[-1:], scale, bias, 1e-5).movedim(-1, 1)
    return x if activation is None else activation(x)


@pytest.mark.parametrize("config", [CONV, MLP], ids=["conv", "mlp"])
def test_vectors_logits_and_drawn_images_are_torchs(config):
    task = models.build(config, "classification", classes=3)
    drawing = models.build(config, "decoder")
    params = random_params(task, drawing)
    activation = torch.relu if config is CONV else torch.tanh
    x = torch.tensor(BATCH["image"]).permute(0, 3, 1, 2)
    backbone = params["backbone"]
    x = torch_layer(backbone["stem"], x, activation, 2)
    x = torch_layer(backbone["layer_0"], x, activation, 2)
    x = torch_layer(backbone["layer_1"], x, None if config is CONV else torch.sigmoid, 0)
    found = quick(models.pooled(config).apply)(params, BATCH)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)
    head = params["classifier"]
    np.testing.assert_allclose(
        quick(task.apply)(params, BATCH), x.numpy() @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5
    )

    x, decoder = torch.tensor(BATCH["features"]), params["decoder"]
    if config is MLP:
        for index in range(2):
            x = torch_layer(decoder[f"layer_{index}"], x, activation, 0)
        expected = torch_layer(decoder["layer_2"], x, None, 0).reshape(4, 7, 10, 2)
    else:
        first = {name: part for name, part in decoder["layer_0"].items() if name == "dense"}
        rows = torch_layer(first, x, None, 0).reshape(4, 2, 3, 4)  # 7 x 10 -> 4 x 5 -> 2 x 3, four channels
        norm = [torch.tensor(decoder["layer_0"]["norm"][name]) for name in ("scale", "bias")]
        x = torch.relu(F.layer_norm(rows, (4,), *norm, 1e-5)).permute(0, 3, 1, 2)
        for index, (height, width) in ((1, (4, 5)), (2, (7, 10))):
            x = F.interpolate(x, scale_factor=2, mode="nearest")[:, :, :height, :width]
            x = torch_layer(decoder[f"layer_{index}"], x, torch.relu if index == 1 else None, 1)
        expected = x.permute(0, 2, 3, 1)
    found = quick(drawing.apply)(params, BATCH)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # The generator is the same, read from the noise under a key of its own.
    noise = {"noise": BATCH["features"]}
    again = quick(models.build(config, "generator").apply)({"generator": decoder}, noise)
    np.testing.assert_array_equal(again, found)


def test_heads_stand_on_the_vectors():
    """Dense layers by hand, of the lengths that their readers expect."""
    discriminator, mean = models.build(CONV, "discriminator"), models.build(CONV, "latent_mean")
    params = random_params(discriminator, mean)
    vectors = np.asarray(models.pooled(CONV).apply(params, BATCH))
    for model, key, squeezed in ((discriminator, "discriminator", True), (mean, "latent_mean", False)):
        head = params[key]["out"]
        expected = vectors @ head["kernel"] + head["bias"]
        assert expected.shape == (4, 1 if squeezed else 6)
        found = model.apply(params, BATCH)
        np.testing.assert_allclose(found, expected[:, 0] if squeezed else expected, rtol=1e-4, atol=1e-5)


def test_batch_norms_learn_in_training_and_frozen_layers_keep_theirs():
    model = models.build(BATCHED, "classification", classes=3, frozen_layers=0)
    params = random_params(model, models.build(BATCHED, "decoder"))
    given = models.pooled(BATCHED).statistics(params)
    assert sorted(given) == ["backbone", "decoder"]
    _, renewed = quick(partial(model.apply, train=True))(params, BATCH, statistics=given)
    moved = lambda *path: any(  # noqa: E731
        (one != other).any()
        for one, other in zip(*(jax.tree.leaves(tree[path[0]][path[1]]) for tree in (given, renewed)), strict=True)
    )
    assert [moved("backbone", "stem"), moved("backbone", "layer_0"), moved("decoder", "layer_0")] == [
        False,
        True,
        False,
    ]
    drawn, renewed = models.build(BATCHED, "decoder").apply(params, BATCH, train=True, statistics=given)
    assert drawn.shape == (4, 7, 10, 2)
    assert [moved("backbone", "layer_0"), moved("decoder", "layer_0"), moved("decoder", "layer_1")] == [
        False,
        True,
        True,
    ]
    # What is drawn in training is normalized by the batch: by hand, the first layer's channels at all places.
    dense = params["decoder"]["layer_0"]["dense"]["kernel"]
    rows = (BATCH["features"] @ dense).reshape(-1, 4)
    expected = 0.9 * given["decoder"]["layer_0"]["norm"]["running_mean"] + 0.1 * rows.mean(0)
    np.testing.assert_allclose(renewed["decoder"]["layer_0"]["norm"]["running_mean"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [BATCHED, MLP], ids=["conv", "mlp"])
def test_entered_above_any_layer_it_is_the_same(config):
    model = models.build(config, "classification", classes=3)
    params = random_params(model)
    expected = model.apply(params, BATCH)
    for start in range(3):
        entered = {"hidden": models.features(config, stop=start)(params, BATCH)}
        above = models.build(config, "classification", classes=3, frozen_layers=start, start=start)
        np.testing.assert_allclose(above.apply(params, entered), expected, rtol=1e-5, atol=1e-6)
    shapes = [
        models.features(BATCHED, stop=stop)(random_params(models.build(BATCHED, "encoder")), BATCH).shape
        for stop in range(3)
    ]
    assert shapes == [(4, 4, 5, 3), (4, 2, 3, 4), (4, 5)]
    half = models.pooled(config, dtype="bfloat16").apply(params, BATCH)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, models.pooled(config).apply(params, BATCH), atol=0.05 * np.abs(half).max())


def test_the_usual_widths_are_written_into_the_config():
    assert (ConvConfig().widths, ConvConfig(kind="mlp").widths) == ((32, 64), (512, 256))
    assert (ConvConfig().code, ConvConfig(latent=8).code, CONV.places) == (128, 8, ((7, 10), (4, 5), (2, 3)))
    start = quick(models.build(CONV, "encoder").init)(jax.random.key(0), BATCH)
    assert sorted(start["backbone"]) == ["layer_0", "layer_1", "stem"]
    wide = ConvConfig(kind="mlp", image_size=(16, 16), widths=(200,), features=100)
    start = quick(models.build(wide, "encoder").init)(
        jax.random.key(0), {"image": np.zeros((1, 16, 16, 1), np.float32)}
    )
    deviations = [start["backbone"][name]["dense"]["kernel"].std() for name in ("stem", "layer_0")]
    # He et al. 2015, equation 10, in front of a ReLU; 1 / sqrt(inputs) where none follows.
    np.testing.assert_allclose(deviations, [(2 / 256) ** 0.5, (1 / 200) ** 0.5], rtol=0.03)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "resnet"}, "kind must be one of conv, mlp, got 'resnet'"),
        ({"image_size": 8}, "image_size must be a pair of integers of at least 1, height and width, got 8"),
        ({"image_size": (8, 8, 1)}, r"image_size must be a pair of integers .*, got \(8, 8, 1\)"),
        ({"widths": [4]}, r"widths must be a tuple of integers of at least 1, one a layer, got \[4\]"),
        ({"widths": (4, 0)}, r"widths must be a tuple of integers of at least 1, one a layer, got \(4, 0\)"),
        ({"features": 0}, "features must be an integer of at least 1, got 0"),
        ({"latent": 0}, "latent must be an integer of at least 1, got 0"),
        ({"activation": "mish"}, "activation must be one of"),
        ({"features_activation": "softmax"}, "features_activation must be one of none, sigmoid, gelu"),
        ({"norm": "group"}, "norm must be one of none, layer, batch, got 'group'"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_configs_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"ConvConfig.{message}"):
        ConvConfig(**changes)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="has no task 'masked_lm': expected one of encoder, classification, decoder"):
        models.build(CONV, "masked_lm")
    with pytest.raises(ValueError, match="classes must be an integer of at least 1, got None"):
        models.build(CONV, "classification")
    with pytest.raises(ValueError, match=r"gives no outputs hidden: .* features\(config, stop=k\)"):
        models.build(CONV, "encoder", outputs=("hidden",))
    with pytest.raises(ValueError, match="task 'decoder' has no backbone to freeze or enter"):
        models.build(CONV, "decoder", frozen_layers=1)
    with pytest.raises(ValueError, match="frozen_layers must be an integer from 0 to 3"):
        models.build(CONV, "encoder", frozen_layers=4)
    with pytest.raises(ValueError, match="start must be an integer from 0 to 2"):
        models.build(CONV, "encoder", start=3)
    with pytest.raises(ValueError, match="stop must be an integer from 0 to 2"):
        models.features(CONV, stop=3)
    with pytest.raises(ValueError, match="gives one vector, and has no 'first': use pooling 'mean'"):
        models.pooled(CONV, "first")
    model = models.build(CONV, "encoder")
    with pytest.raises(ValueError, match=r"image has shape \(4, 10, 7, 2\); expected \[batch, 7, 10, 2\]"):
        model.init(jax.random.key(0), {"image": np.zeros((4, 10, 7, 2), np.float32)})
    with pytest.raises(ValueError, match="image holds uint8; expected floats"):
        model.init(jax.random.key(0), {"image": np.zeros((4, 7, 10, 2), np.uint8)})
    with pytest.raises(ValueError, match=r"features have shape \(4, 5\); expected \[batch, 6\], the length of a code"):
        models.build(CONV, "decoder").init(jax.random.key(0), {"features": np.zeros((4, 5), np.float32)})
