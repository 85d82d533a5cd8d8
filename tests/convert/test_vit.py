"""The tables of ViT and of its masked autoencoder: what travels with them, spellings, the audit, and `as_vit`.

Bytes, outputs and gradients of each architecture are compared in test_parity.py.
"""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert, models

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
SIZES |= {"image_size": 8, "patch_size": 4}
DECODER = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
DECODER |= {"decoder_intermediate_size": 12}
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


@pytest.fixture
def make(folders):
    def make(architecture: str, dtype=torch.float32, **changes):
        torch.manual_seed(0)
        kind = transformers.ViTMAEConfig if "MAE" in architecture else transformers.ViTConfig
        config = kind(**(SIZES | (DECODER if "MAE" in architecture else {}) | changes))
        model = getattr(transformers, architecture)(config).eval()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.normal_(std=0.5)
        model.to(dtype).save_pretrained(folders.root / "source")
        (folders.root / "source" / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
        return folders.root / "source"

    return make


def as_published(tensors):
    """As facebook/vit-mae-base has them: transformers 5 writes decoder.decoder_encoder.layer instead."""
    return {name.replace("decoder_encoder.layer.", "decoder_layers."): array for name, array in tensors.items()}


@pytest.mark.parametrize(
    "architecture, dtype, change, heads",
    [
        ("ViTForImageClassification", torch.bfloat16, {"image_size": [8, 8], "qkv_bias": False}, ("classifier",)),
        ("ViTMAEForPreTraining", torch.float16, {"norm_pix_loss": True, "mask_ratio": 0.6}, ("decoder",)),
    ],
)
def test_unmodified_is_byte_identical(make, folders, assert_same_tensors, architecture, dtype, change, heads):
    source = make(architecture, dtype, **change)
    if "MAE" in architecture:
        folders.rewrite(source, as_published)
    manifest = convert.import_folder(source, folders.root / "native")
    assert (manifest.heads, manifest.unused) == (heads, ())
    convert.export_folder(folders.root / "native", folders.root / "back")
    assert_same_tensors(folders.tensors(source), folders.tensors(folders.root / "back"))
    read = [json.loads((folder / "config.json").read_text()) for folder in (source, folders.root / "back")]
    assert read[0].items() <= read[1].items()
    assert read[1].keys() - read[0].keys() <= {"architectures", "id2label", "label2id"}
    for name in ("native", "back"):  # how images are prepared comes along
        assert (folders.root / name / "preprocessor_config.json").read_text() == '{"image_mean": [0.5, 0.5, 0.5]}'


def test_the_decoders_fields_are_read(make):
    config = convert.load(make("ViTMAEForPreTraining", mask_ratio=0.6, norm_pix_loss=True)).config
    assert (config.decoder_width, config.decoder_layers, config.decoder_heads) == (8, 1, 2)
    assert (config.decoder_mlp_width, config.mask_ratio, config.normalise) == (12, 0.6, True)


def test_a_masked_autoencoders_encoder_becomes_a_vision_transformer(make, folders):
    """transformers' own masked autoencoder with nothing hidden, and its vision transformer, are the expected values."""
    source = make("ViTMAEForPreTraining", mask_ratio=0.0)
    checkpoint = convert.as_vit(convert.load(source))
    assert checkpoint.params["backbone"]["embeddings"].keys() == {"cls_token", "patch", "positions"}
    pixels = torch.tensor(IMAGES).permute(0, 3, 1, 2)
    with torch.no_grad():
        mae = transformers.ViTMAEModel.from_pretrained(source).eval()
        expected = mae(pixels, noise=torch.arange(8.0).reshape(2, 4)).last_hidden_state
    found = models.build(checkpoint.config, "encoder").apply(checkpoint.params, {"image": IMAGES})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    tuned = convert.swap_head(checkpoint, "classification", rng=jax.random.key(0), labels=["a", "b", "c"])
    convert.save(folders.root / "tuned", tuned)
    loader = transformers.AutoModelForImageClassification
    model, told = loader.from_pretrained(folders.root / "tuned", output_loading_info=True)
    assert type(model) is transformers.ViTForImageClassification
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    with torch.no_grad():
        theirs = model.eval()(pixels).logits
    ours = models.build(tuned.config, "classification", classes=3).apply(tuned.params, {"image": IMAGES})
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    fields = json.loads((folders.root / "tuned" / "config.json").read_text())
    assert not {name for name in fields if name.startswith("decoder_")} | {"mask_ratio"} & fields.keys()
    assert (folders.root / "tuned" / "preprocessor_config.json").is_file()


def test_a_backbone_without_a_pooler_and_with_fixed_positions_comes_back(folders):
    """The two fields of config.json that are ours; transformers loads the tensors there are."""
    config = models.VitConfig(
        image_size=8, patch_size=4, width=16, layers=1, heads=2, mlp_width=24, pooler=False, fixed_positions=True
    )
    shapes = jax.eval_shape(models.pooled(config).init, jax.random.key(0), {"image": IMAGES})
    params = jax.tree.map(lambda leaf: np.random.default_rng(1).normal(size=leaf.shape).astype(np.float32), shapes)
    convert.save(folders.root / "new", convert.new_checkpoint(config, family="vit"), params=params)
    back = convert.load(folders.root / "new")
    assert back.config == config
    assert jax.tree.structure(back.params) == jax.tree.structure(params)
    theirs, told = transformers.ViTModel.from_pretrained(folders.root / "new", output_loading_info=True)
    assert set(told["missing_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(IMAGES).permute(0, 3, 1, 2)).last_hidden_state
    found = models.build(config, "encoder").apply(params, {"image": IMAGES})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_hugging_face_would_compute_otherwise_is_not_written(folders):
    config = models.VitConfig(image_size=8, patch_size=4, width=16, layers=1, heads=2, mlp_width=24, pooling="mean")
    with pytest.raises(ValueError, match=r"family vit cannot express VitConfig.pooling 'mean'"):
        convert.new_checkpoint(config, family="vit")
    with pytest.raises(ValueError, match="as_vit takes a checkpoint of family vit_mae, got vit"):
        convert.as_vit(convert.new_checkpoint(replace(config, pooling="cls"), family="vit"))


@pytest.mark.parametrize(
    "architecture, fields, message",
    [
        ("ViTModel", {"pooler_act": "relu"}, "pooler_act is 'relu', which changes"),
        ("ViTModel", {"pooler_output_size": 4}, "pooler_output_size is 4, which changes .* hidden_size, 16"),
        ("ViTModel", {"head_dim": 4}, "unknown field head_dim may change"),
        ("ViTModel", {"num_channels": 4}, "num_channels must be 1"),
        ("ViTModel", {"patch_size": 3}, "image_size must be a multiple of patch_size"),
        ("ViTMAEModel", {"decoder_hidden_size": 6}, "decoder_hidden_size must be a multiple of 4"),
        ("ViTMAEModel", {"encoder_stride": 16}, "unknown field encoder_stride may change"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(make, folders, architecture, fields, message):
    source = make(architecture)
    folders.configure(source, **fields)
    with pytest.raises(ValueError, match=message):
        convert.load(source)
