"""Small image models as folders: the same bits back, head by head, and what a folder may not say."""

import json

import jax
import numpy as np
import pytest

from jaxptft import convert, models
from jaxptft.convert.families import FAMILIES
from jaxptft.models import ConvConfig

TINY = ConvConfig(image_size=(5, 6), widths=(2, 3), features=4, latent=3, norm="batch")
BATCH = {name: np.zeros((1, 3), np.float32) for name in ("features", "noise")}
BATCH["image"] = np.zeros((1, 5, 6, 1), np.float32)
TASKS = {
    "ConvModel": ("encoder",),
    "ConvForImageClassification": ("classification",),
    "ConvAutoencoder": ("encoder", "decoder"),
    "ConvVariationalAutoencoder": ("latent_mean", "latent_log_variance", "decoder"),
    "ConvVariationalAutoencoderWithVariance": ("latent_mean", "latent_log_variance", "decoder"),
    "ConvDiscriminator": ("discriminator",),
    "ConvAdversarialNetworks": ("discriminator", "generator"),
}


def params_of(architecture, config=TINY):
    """Every leaf drawn, so that no two are alike."""
    rng, params = np.random.default_rng(0), {}
    for task in TASKS[architecture]:
        classes = 3 if task == "classification" else None
        model = models.build(config, task, classes=classes)
        params |= jax.eval_shape(lambda model=model: model.init(jax.random.key(0), BATCH))
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    return drawn | ({"likelihood": {"log_variance": np.array([-2.0], np.float32)}} if "With" in architecture else {})


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("architecture", TASKS)
def test_what_is_saved_is_loaded_to_the_bit(tmp_path, architecture):
    params, config = params_of(architecture), TINY
    labels = ["a", "b", "c"] if "classifier" in params else None
    empty = convert.new_checkpoint(config, family="jaxptft_conv")
    manifest = convert.save(tmp_path / "one", empty, params=params, labels=labels)
    assert set(manifest.heads) == set(params) - {"backbone"}
    written = json.loads((tmp_path / "one" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == ("jaxptft_conv", [architecture])
    loaded = convert.load(tmp_path / "one")
    assert (loaded.config, loaded.labels, loaded.manifest.unused) == (config, labels, ())
    assert_same(loaded.params, params)
    # Our own folder in between, and out again: the same file.
    convert.import_folder(tmp_path / "one", tmp_path / "native")
    convert.export_folder(tmp_path / "native", tmp_path / "two")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second


def test_a_backbone_leaves_its_heads_and_is_given_another(tmp_path):
    config = ConvConfig(kind="mlp", image_size=(5, 6), widths=(2,), features=4, latent=3)
    params = params_of("ConvAdversarialNetworks", config)
    convert.save(tmp_path / "gan", convert.new_checkpoint(config, family="jaxptft_conv"), params=params)
    alone = convert.load(tmp_path / "gan", heads=())
    assert_same(alone.params, {"backbone": params["backbone"]})
    swapped = convert.swap_head(alone, "classification", rng=jax.random.key(0), labels=["cat", "dog"])
    convert.save(tmp_path / "classifier", swapped)
    again = convert.load(tmp_path / "classifier")
    assert (again.labels, sorted(again.params)) == (["cat", "dog"], ["backbone", "classifier"])
    assert_same(again.params["backbone"], params["backbone"])
    fresh = convert.reinitialize(
        convert.load(tmp_path / "gan"), lambda path: path.startswith("generator/layer_0"), rng=jax.random.key(1)
    )
    assert (
        fresh.params["generator"]["layer_0"]["dense"]["kernel"] != params["generator"]["layer_0"]["dense"]["kernel"]
    ).all()
    assert_same(fresh.params["generator"]["layer_1"], params["generator"]["layer_1"])


def test_every_field_of_a_config_survives(tmp_path):
    other = ConvConfig(
        kind="mlp", image_size=(4, 9), channels=3, widths=(7,), features=6, latent=None, activation="tanh",
        features_activation="sigmoid", norm="layer", norm_epsilon=1e-3, norm_momentum=0.5,
    )  # fmt: skip
    fields = json.loads(json.dumps(FAMILIES["jaxptft_conv"].write_config(other, {})))
    assert FAMILIES["jaxptft_conv"].read_config(fields) == other


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"kind": "vit"}, "config.json: kind must be one of conv, mlp, got 'vit'"),
        ({"hidden_sizes": [0]}, r"config.json: hidden_sizes must be a tuple of integers of at least 1, one a layer"),
        ({"dilation": 2}, "config.json: unknown field dilation may change what the model computes"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FAMILIES["jaxptft_conv"].read_config({"model_type": "jaxptft_conv", **fields})


def test_tensors_and_heads_that_do_not_fit_are_named(tmp_path):
    params = params_of("ConvAutoencoder")
    empty = convert.new_checkpoint(TINY, family="jaxptft_conv")
    with pytest.raises(
        ValueError, match="no architecture of family jaxptft_conv has the heads classifier and generator"
    ):
        convert.save(
            tmp_path / "x",
            empty,
            params=params_of("ConvForImageClassification")
            | {"generator": params_of("ConvAdversarialNetworks")["generator"]},
        )
    wrong = {**params, "decoder": {**params["decoder"], "layer_9": {"dense": {"bias": np.zeros(3, np.float32)}}}}
    with pytest.raises(ValueError, match="no rule of family jaxptft_conv takes parameter decoder/layer_9/dense/bias"):
        convert.save(tmp_path / "x", empty, params=wrong)
    convert.save(tmp_path / "folder", empty, params=params)
    file = tmp_path / "folder" / "config.json"
    file.write_text(file.read_text().replace('"latent_size": 3', '"latent_size": 2'))
    with pytest.raises(
        ValueError, match=r"decoder.layer_0.dense.kernel has shape \(3, 12\) where the config asks for \(2, 12\)"
    ):
        convert.load(tmp_path / "folder")
    with pytest.raises(ValueError, match="the layers of a small image model differ in shape"):
        convert.keep_layers(convert.load(tmp_path / "folder", heads=()), [0])
