"""ResNet's table: training and gradients as in torch, both ways byte for byte, and the audit of its config."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from chex import assert_trees_all_equal

from jaxptft import convert, models
from jaxptft.convert.engine import export_tensors
from jaxptft.convert.families import FAMILIES
from jaxptft.models import ResNetConfig, resnet_config

VALUES = {"num_channels": 2, "embedding_size": 4, "hidden_sizes": [16, 24], "depths": [2, 1]}
FORMS = {
    "basic": {"layer_type": "basic", "hidden_act": "silu"},
    "v1.5": {"layer_type": "bottleneck", "hidden_act": "silu", "downsample_in_first_stage": True},
    "v1": {"layer_type": "bottleneck", "downsample_in_bottleneck": True},
}
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 6, 20, 16, 2)).astype(np.float32)


def first(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def make(folder, architecture, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    config = transformers.ResNetConfig(**{**VALUES, **changes}, num_labels=3)
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.5)
        for name, tensor in model.named_buffers():
            if name.endswith("running_mean"):
                tensor.normal_(std=0.5)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            else:
                tensor.fill_(7)
    model.to(dtype).save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=FORMS)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param.replace(".", "_")) / "source"
    torch_model = make(folder, "ResNetForImageClassification", **FORMS[request.param])
    checkpoint = convert.load(folder)
    ours = models.build(checkpoint.config, "classification", classes=3)
    return SimpleNamespace(torch=torch_model, folder=folder, checkpoint=checkpoint, ours=ours)


def test_every_stage_equals_torch(case):
    with torch.no_grad():
        theirs = case.torch.eval().resnet(first(IMAGES[0]), output_hidden_states=True).hidden_states
    assert len(theirs) == 3
    for stop, expected in enumerate(theirs):
        found = models.features(case.checkpoint.config, stop=stop)(case.checkpoint.params, {"image": IMAGES[0]})
        np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("case", ["v1.5"], indirect=True)
def test_training_its_gradients_and_two_steps_of_statistics_equal_torch(case):
    """Outputs and gradients of each parameter in train(); then running statistics after a second batch."""
    theirs, checkpoint, ours = case.torch.train(), case.checkpoint, case.ours
    given = ours.statistics(checkpoint.params)
    weights = np.array([[1.0, -2.0, 0.5]], np.float32)

    def loss(params):
        logits, renewed = ours.apply(params, {"image": IMAGES[0]}, train=True, statistics=given)
        return jnp.square(weights * logits).mean(), (logits, renewed)

    gradients, (logits, renewed) = jax.jit(jax.grad(loss, has_aux=True))(checkpoint.params)
    expected = theirs(first(IMAGES[0])).logits
    np.testing.assert_allclose(logits, expected.detach(), atol=2e-5 * float(expected.detach().abs().max()))
    theirs.zero_grad()
    (torch.tensor(weights) * expected).square().mean().backward()
    exported = export_tensors(FAMILIES["resnet"], checkpoint.config, jax.device_get(gradients), checkpoint.extras)
    slopes = {name: tensor.grad for name, tensor in theirs.named_parameters()}
    # What a later norm takes away again has no gradient but rounding.
    floor = 1e-2 * max(float(slope.abs().max()) for slope in slopes.values())
    for name, slope in slopes.items():
        scale = max(float(slope.abs().max()), floor)
        np.testing.assert_allclose(exported[name], slope, rtol=0, atol=1e-3 * scale, err_msg=name)

    with torch.no_grad():
        theirs(first(IMAGES[1]))
    _, renewed = ours.apply(checkpoint.params, {"image": IMAGES[1]}, train=True, statistics=renewed)
    trained = put(checkpoint.params, renewed)
    exported = export_tensors(FAMILIES["resnet"], checkpoint.config, trained, checkpoint.extras)
    compared = 0
    for name, tensor in theirs.named_buffers():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(exported[name], tensor, rtol=1e-4, atol=1e-5, err_msg=name)
            compared += 1
    assert compared == 2 * sum("running_mean" in name for name in exported)


def put(params, statistics):
    merged = dict(params)
    for name, value in statistics.items():
        merged[name] = put(params[name], value) if isinstance(value, dict) else np.asarray(value)
    return merged


@pytest.mark.parametrize(
    "architecture, dtype, heads",
    [
        ("ResNetModel", torch.bfloat16, ()),
        ("ResNetForImageClassification", torch.float32, ("classifier",)),
        ("ResNetForImageClassification", torch.float16, ("classifier",)),
    ],
)
def test_unmodified_is_byte_identical(folders, assert_same_tensors, architecture, dtype, heads):
    make(folders.root / "source", architecture, dtype, **FORMS["v1.5"])
    manifest = convert.import_folder(folders.root / "source", folders.root / "native")
    assert (manifest.heads, manifest.unused, manifest.missing) == (heads, (), ())
    convert.export_folder(folders.root / "native", folders.root / "back")
    source, back = (folders.tensors(folders.root / name) for name in ("source", "back"))
    assert_same_tensors(source, back)
    assert sum("num_batches_tracked" in name and array == 7 for name, array in back.items()) == len(manifest.kept) > 0
    read = [json.loads((folders.root / name / "config.json").read_text()) for name in ("source", "back")]
    assert read[0].items() <= read[1].items()


def test_a_new_model_and_one_with_a_new_head_load_in_transformers(folders):
    config = ResNetConfig(channels=2, stem_width=4, widths=(8,), depths=(1,), norm_momentum=0.2, zero_last_scale=True)
    model = models.build(config, "classification", classes=3)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0), {"image": IMAGES[0]}))
    convert.save(folders.root / "new", convert.new_checkpoint(config, family="resnet"), params=params)
    # How a model starts and renews its statistics is not written.
    read = convert.load(folders.root / "new").config
    assert read == ResNetConfig(channels=2, stem_width=4, widths=(8,), depths=(1,))

    swapped = convert.swap_head(convert.load(folders.root / "new"), "classification", rng=jax.random.key(1), classes=3)
    convert.save(folders.root / "swapped", swapped)
    for name, held in (("new", params), ("swapped", swapped.params)):
        loaded, told = transformers.AutoModelForImageClassification.from_pretrained(
            folders.root / name, output_loading_info=True
        )
        assert not any(told.values())
        with torch.no_grad():
            expected = loaded.eval()(first(IMAGES[0])).logits
        np.testing.assert_allclose(model.apply(held, {"image": IMAGES[0]}), expected, rtol=1e-4, atol=1e-6)
        counts = [array for key, array in folders.tensors(folders.root / name).items() if "num_batches" in key]
        assert {(array.dtype.name, array.shape, int(array)) for array in counts} == {("int64", (), 0)}


def test_the_published_config_and_transformers_defaults_are_understood():
    fields = {"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}
    fields |= {"depths": [3, 4, 6, 3], "downsample_in_first_stage": False, "embedding_size": 64, "hidden_act": "relu"}
    fields |= {"hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck", "num_channels": 3}
    table = FAMILIES["resnet"]
    assert table.read_config(fields) == resnet_config("resnet50") == ResNetConfig()
    assert fields.items() <= table.write_config(table.read_config(fields), fields).items()
    default = json.loads(transformers.ResNetConfig().to_json_string(use_diff=False))
    assert table.read_config({"model_type": "resnet"}) == table.read_config(default) == ResNetConfig()
    assert table.write_config(table.read_config(default), {}).items() <= default.items()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"layer_type": "wide"}, "layer_type must be one of basic, bottleneck, got 'wide'"),
        ({"hidden_act": "mish"}, "hidden_act must be one of"),
        ({"depths": [1, 2]}, "hidden_sizes must have one value for each of depths"),
        ({"depths": 3}, "depths must be a tuple of integers"),
        ({"groups": 32}, "unknown field groups may change what the model computes"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(fields, message):
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        FAMILIES["resnet"].read_config({"model_type": "resnet", **fields})


@pytest.mark.parametrize(
    "config, message",
    [
        (
            ResNetConfig(stem="cifar"),
            "cannot express ResNetConfig.stem 'cifar' .* its models have 'imagenet'",
        ),
        (ResNetConfig(norm_epsilon=1e-3), "family resnet cannot express ResNetConfig.norm_epsilon 0.001"),
        (models.BertConfig(), "family resnet has configs of type ResNetConfig, got BertConfig"),
    ],
)
def test_a_model_that_transformers_does_not_have_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        convert.new_checkpoint(config, family="resnet")


def test_what_does_not_fit_an_image_model_is_refused(case):
    with pytest.raises(ValueError, match="layers of a ResNet differ in shape from stage to stage"):
        convert.keep_layers(case.checkpoint, [0])
    with pytest.raises(ValueError, match="models of family resnet have no vocabulary to resize"):
        convert.resize_vocabulary(case.checkpoint, 10, rng=jax.random.key(0))


def test_a_stem_for_small_images_goes_out_and_comes_back_under_a_type_of_our_own(tmp_path):
    config = ResNetConfig(channels=1, stem="cifar", stem_width=4, widths=(4, 8), depths=(1, 1), block="basic")
    fresh = models.build(config, "encoder").init(jax.random.key(0), {"image": np.zeros((1, 8, 8, 1), np.float32)})
    params = jax.tree.map(np.asarray, fresh)
    convert.save(tmp_path / "model", convert.new_checkpoint(config, family="jaxptft_resnet"), params=params)
    read = convert.load(tmp_path / "model")
    assert read.config == config
    assert_trees_all_equal(read.params, params)
