"""ResNet: its shapes, its stages one by one, frozen ones, and what is refused. Parity is in tests/convert."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxptft import models
from jaxptft.models import ResNetConfig, resnet_config

TINY = ResNetConfig(channels=2, stem="cifar", stem_width=4, widths=(4, 8, 8), depths=(2, 1, 1), block="basic")
RNG = np.random.default_rng(0)
BATCH = {"image": RNG.normal(size=(5, 8, 8, 2)).astype(np.float32), "valid": np.arange(5) < 4}


@pytest.fixture(scope="module")
def params():
    """Far from where they begin: statistics too."""
    made = jax.jit(models.build(TINY, "classification", classes=3).init)(jax.random.key(0), BATCH)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + RNG.uniform(0, 0.3, leaf.shape).astype(np.float32), made)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_usual_ones_have_as_many_parameters_as_transformers(name):
    config = resnet_config(name)
    fields = {"depths": list(config.depths), "hidden_sizes": list(config.widths), "layer_type": config.block}
    with torch.device("meta"):
        theirs = transformers.ResNetForImageClassification(transformers.ResNetConfig(**fields, num_labels=1000))
    model = models.build(config, "classification", classes=1000)
    image = {"image": jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)}
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    assert model.statistics is not None
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert count(shapes) - count(model.statistics(shapes)) == sum(leaf.numel() for leaf in theirs.parameters())
    last = jax.eval_shape(models.build(config, "encoder").apply, shapes, image)
    assert last.shape == (1, 2, 2, config.width)


def test_the_deep_ones_are_those_of_the_paper():
    """He et al. 2016, table 1: layers with weights, the classifier and the stem included."""
    for name, layers in {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152}.items():
        config = resnet_config(name, stem="cifar")
        assert config.layers * (2 if config.block == "basic" else 3) + 2 == layers
        assert (config.stem, config.stages) == ("cifar", 4)


def test_the_small_stem_keeps_the_image_and_each_further_stage_halves_it(params):
    shapes = [jax.eval_shape(models.features(TINY, stop=stop), params, BATCH).shape for stop in range(4)]
    assert shapes == [(5, 8, 8, 4), (5, 8, 8, 4), (5, 4, 4, 8), (5, 2, 2, 8)]
    assert sorted(params["backbone"]) == ["stage_0", "stage_1", "stage_2", "stem"]
    assert sorted(params["backbone"]["stage_1"]["layer_0"]) == ["shortcut", "unit_0", "unit_1"]
    assert "shortcut" not in params["backbone"]["stage_0"]["layer_0"]


def test_pooled_is_the_mean_over_all_places(params):
    model = models.pooled(TINY)
    hidden = models.build(TINY, "encoder").apply(params, BATCH)
    found = model.apply(params, BATCH)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.asarray(hidden, np.float64).mean((1, 2)), rtol=1e-5, atol=1e-6)
    vectors, renewed = model.apply(params, BATCH, train=True, statistics=model.statistics(params))
    assert vectors.shape == (5, 8)
    assert jax.tree.structure(renewed) == jax.tree.structure(model.statistics(params))
    logits = models.build(TINY, "classification", classes=3).apply(params, BATCH)
    head = params["classifier"]
    np.testing.assert_allclose(logits, found @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)
    half = models.build(TINY, "encoder", dtype="bfloat16").apply(params, BATCH)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), hidden, atol=0.1 * np.abs(hidden).max())


@pytest.mark.parametrize("frozen", [None, 0, 2, 4])
def test_frozen_stages_run_on_their_running_statistics_and_keep_them(params, frozen):
    model = models.build(TINY, "classification", classes=3, frozen_layers=frozen)
    given = model.statistics(params)
    logits, renewed = model.apply(params, BATCH, train=True, statistics=given)
    pieces = ["stem", "stage_0", "stage_1", "stage_2"]
    still = pieces[: 0 if frozen is None else frozen + 1]
    for piece in pieces:
        moved = [
            (np.asarray(one) != np.asarray(other)).any()
            for one, other in zip(*(jax.tree.leaves(tree["backbone"][piece]) for tree in (given, renewed)), strict=True)
        ]
        assert not any(moved) if piece in still else all(moved)
    if frozen is None:
        return
    # Entered above them, all is the same.
    start = min(frozen, TINY.stages)
    entered = {"hidden": models.features(TINY, stop=start)(params, BATCH), "valid": BATCH["valid"]}
    above = models.build(TINY, "classification", classes=3, frozen_layers=frozen, start=start)
    found, also = above.apply(params, entered, train=True, statistics=given)
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)
    for one, other in zip(jax.tree.leaves(also), jax.tree.leaves(renewed), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_with_zero_last_scales_a_block_starts_as_what_passes_it_by():
    config = ResNetConfig(stem_width=4, widths=(4,), depths=(2,), block="bottleneck", zero_last_scale=True)
    image = {"image": RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)}
    params = models.build(config, "encoder").init(jax.random.key(0), image)
    below, above = (np.asarray(models.features(config, stop=stop)(params, image)) for stop in (0, 1))
    assert np.abs(below).max() > 0.1
    np.testing.assert_array_equal(above, below)  # behind the stem's ReLU and a maximum, so the sum's ReLU changes none
    assert not params["backbone"]["stage_0"]["layer_1"]["unit_2"]["norm"]["scale"].any()
    assert params["backbone"]["stage_0"]["layer_1"]["unit_1"]["norm"]["scale"].all()


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"widths": [4, 8]},
            r"widths must be a tuple of integers of at least 4, one a stage, got \[4, 8\]",
        ),
        ({"depths": ()}, r"depths must be a tuple of integers of at least 1, one a stage, got \(\)"),
        ({"depths": (1, 2)}, r"widths must have one value for each of depths, got .* and \(1, 2\)"),
        ({"stem": "small"}, "stem must be one of imagenet, cifar, got 'small'"),
        ({"block": "wide"}, "block must be one of basic, bottleneck, got 'wide'"),
        ({"channels": 0}, "channels must be an integer of at least 1, got 0"),
        ({"zero_last_scale": 1}, "zero_last_scale must be True or False, got 1"),
        ({"norm_momentum": 1.0}, "norm_momentum must be a probability"),
        ({"norm_epsilon": 0.0}, "norm_epsilon must be a positive number"),
        ({"activation": "mish"}, "activation must be one of"),
    ],
)
def test_configs_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**changes)


def test_mistakes_are_named(params):
    with pytest.raises(ValueError, match=r"name must be one of resnet18, .*, got 'resnet20'"):
        resnet_config("resnet20")
    with pytest.raises(ValueError, match="ResNet has no task 'masked_lm': expected one of encoder, classification"):
        models.build(TINY, "masked_lm")
    with pytest.raises(ValueError, match="classes must be an integer of at least 1, got None"):
        models.build(TINY, "classification")
    with pytest.raises(ValueError, match=r"ResNet gives no outputs hidden: .* features\(config, stop=k\)"):
        models.build(TINY, "encoder", outputs=("hidden",))
    with pytest.raises(ValueError, match="frozen_layers must be an integer from 0 to 4"):
        models.build(TINY, "encoder", frozen_layers=5)
    with pytest.raises(ValueError, match="start must be an integer from 0 to 3"):
        models.build(TINY, "encoder", start=4)
    with pytest.raises(ValueError, match="stop must be an integer from 0 to 3"):
        models.features(TINY, stop=4)
    with pytest.raises(ValueError, match="mean over all places, and has no 'first': use pooling 'mean'"):
        models.pooled(TINY, "first")
    model = models.build(TINY, "encoder")
    with pytest.raises(ValueError, match=r"image has shape \(5, 8, 8, 3\); expected \[batch, height, width, 2\]"):
        model.apply(params, {"image": np.zeros((5, 8, 8, 3), np.float32)})
    with pytest.raises(ValueError, match="image holds uint8; expected normalized floats"):
        model.apply(params, {"image": np.zeros((5, 8, 8, 2), np.uint8)})
