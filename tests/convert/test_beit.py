"""BEiT's table: shared and absolute positions, pooling by the cls token, what older files hold, and the audit.

A bias for each layer, mean pooling and a grid that is no square are compared in test_parity.py.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert, models
from jaxptft.convert.engine import export_tensors
from jaxptft.convert.families import find_family

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
SIZES |= {"image_size": 8, "patch_size": 4, "vocab_size": 11, "use_mask_token": True}
OTHER = {
    "use_shared_relative_position_bias": True,
    "use_absolute_position_embeddings": True,
    "use_mean_pooling": False,
    "layer_scale_init_value": 0.0,
}
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
MASKED = np.array([[True, False, False, True], [False, True, False, False]])


@pytest.fixture
def make(folders):
    def make(architecture: str, dtype=torch.float32, **changes):
        torch.manual_seed(0)
        model = getattr(transformers, architecture)(transformers.BeitConfig(**(SIZES | changes))).eval()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.normal_(std=0.5)
        model.to(dtype).save_pretrained(folders.root / "source")
        return model, folders.root / "source"

    return make


@pytest.mark.parametrize(
    "architecture, task",
    [
        pytest.param("BeitForImageClassification", "classification", marks=pytest.mark.slow),
        ("BeitForMaskedImageModeling", "masked_image"),
    ],
)
def test_shared_positions_and_the_cls_token_are_torchs_with_every_gradient(make, folders, architecture, task):
    """The model in memory is the reference: transformers 5.23, reading its own file of BeitForMaskedImageModeling,
    exchanges the norm behind the encoder with that of the head."""
    model, source = make(architecture, **OTHER)
    checkpoint = convert.load(source)
    hidden = {} if task == "classification" else {"masked": MASKED}
    theirs = {"bool_masked_pos": torch.tensor(MASKED)} if hidden else {}
    out = model(torch.tensor(IMAGES).permute(0, 3, 1, 2), **theirs)
    expected = out.last_hidden_state if task == "encoder" else out.logits
    expected.square().mean().backward()
    ours = models.build(checkpoint.config, task, classes=2 if task == "classification" else None)

    def loss(params):
        found = ours.apply(params, {"image": IMAGES, **hidden})
        return jnp.square(found).mean(), found

    gradient, found = jax.grad(loss, has_aux=True)(checkpoint.params)
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-4, atol=1e-5)
    exported = export_tensors(find_family("beit"), checkpoint.config, jax.device_get(gradient), checkpoint.extras)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(folders.root / "gradients")
    wanted = folders.tensors(folders.root / "gradients")
    assert exported.keys() == wanted.keys()
    largest = max(np.abs(array).max() for array in wanted.values())
    for name, array in wanted.items():
        np.testing.assert_allclose(exported[name], array, rtol=1e-3, atol=1e-5 * largest, err_msg=name)
    # With names that are made here, and not those of the source.
    convert.save(
        folders.root / "fresh", convert.new_checkpoint(checkpoint.config, family="beit"), params=checkpoint.params
    )
    assert folders.tensors(folders.root / "fresh").keys() == wanted.keys()


def test_unmodified_is_byte_identical_with_what_older_files_hold(make, folders, assert_same_tensors):
    """Indices of positions, which follow from the grid; fields of a segmenter, which are not read."""
    _, source = make("BeitForMaskedImageModeling", torch.bfloat16, use_shared_relative_position_bias=True)
    index = np.arange(25).reshape(5, 5)
    name = "beit.encoder.relative_position_bias.relative_position_index"
    folders.rewrite(source, lambda tensors: {**tensors, name: index})
    folders.configure(source, drop_path_rate=0.3, segmentation_indices=[1, 2], use_auxiliary_head=False)
    manifest = convert.import_folder(source, folders.root / "native")
    assert (manifest.heads, manifest.unused) == (("mim",), ())
    convert.export_folder(folders.root / "native", folders.root / "back")
    assert_same_tensors(folders.tensors(source), folders.tensors(folders.root / "back"))
    read = [json.loads((folder / "config.json").read_text()) for folder in (source, folders.root / "back")]
    assert read[0] == read[1]


def test_a_pre_trained_model_gets_a_classifier_that_transformers_loads(make, folders):
    """The norm that the patches' mean goes through is new, as transformers would start it."""
    _, source = make("BeitForMaskedImageModeling", use_shared_relative_position_bias=True)
    backbone = convert.load(source, heads=())
    assert backbone.manifest is not None
    assert {entry.hf_name for entry in backbone.manifest.unused} == {
        *("layernorm.weight", "layernorm.bias", "lm_head.weight", "lm_head.bias")
    }
    tuned = convert.swap_head(convert.load(source), "classification", rng=jax.random.key(0), labels=["a", "b", "c"])
    convert.save(folders.root / "tuned", tuned)
    loader = transformers.AutoModelForImageClassification
    model, told = loader.from_pretrained(folders.root / "tuned", output_loading_info=True)
    assert type(model) is transformers.BeitForImageClassification
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert (model.beit.pooler.layernorm.weight == 1).all()


def test_absent_fields_are_transformers_defaults():
    usual = transformers.BeitConfig()
    config = find_family("beit").read_config({"model_type": "beit"})
    assert (config.mask_token, config.shared_relative_positions, config.relative_positions) == (False, False, False)
    assert (config.vocab_size, config.layer_scale) == (usual.vocab_size, usual.layer_scale_init_value)
    assert (config.image_size, config.patch_size, config.pooling) == (usual.image_size, usual.patch_size, "mean")
    written = find_family("beit").write_config(models.BeitConfig(layer_scale=0), {})
    assert transformers.BeitConfig(**written).use_shared_relative_position_bias


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"head_dim": 4}, "unknown field head_dim may change"),
        ({"use_mean_pooling": "yes"}, "use_mean_pooling must be True or False, got 'yes'"),
        ({"patch_size": [4, 2]}, "patch_size must be an integer of at least 1"),
        ({"layer_scale_init_value": -0.1}, "layer_scale_init_value must be a positive number"),
        ({"use_mask_token": None}, "use_mask_token must be True or False"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        find_family("beit").read_config({"model_type": "beit", **SIZES, **fields})
