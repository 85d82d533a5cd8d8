"""ViT against transformers' torch model: other image sizes, what it leaves behind, and the ways to enter it.

Outputs and gradients of every tensor are compared in tests/convert/test_parity.py.
"""

from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert, models

SIZES = {"width": 16, "layers": 2, "heads": 2, "mlp_width": 24}
CONFIG = models.VitConfig(image_size=8, patch_size=4, **SIZES)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)


def to_torch(images):
    return torch.tensor(images).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """transformers' model with every tensor random, and ours of its files."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        attn_implementation="eager",
    )
    theirs = transformers.ViTModel(config).eval()
    with torch.no_grad():
        for tensor in theirs.parameters():
            tensor.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("vit")
    theirs.save_pretrained(folder)
    return theirs, convert.load(folder)


def test_images_of_another_size_have_their_positions_interpolated(both):
    theirs, ours = both
    images = RNG.normal(size=(3, 12, 4, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(to_torch(images), interpolate_pos_encoding=True).last_hidden_state
    found = models.build(ours.config, "encoder").apply(ours.params, {"image": images})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_what_it_leaves_behind_is_torchs(both):
    """Hidden states before each layer and attention probabilities; the last state is normed."""
    theirs, ours = both
    with torch.no_grad():
        expected = theirs(to_torch(IMAGES), output_hidden_states=True, output_attentions=True)
    found = models.build(ours.config, "encoder", outputs=models.OUTPUTS).apply(ours.params, {"image": IMAGES})
    for index in range(2):
        np.testing.assert_allclose(found["hidden"][index], expected.hidden_states[index], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["attention"][index], expected.attentions[index], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["hidden"][2], expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["hidden"][2], found["logits"])
    assert found["scores"].shape == (2, 3, 2, 5, 5)
    assert found["qkv"].shape == (2, 3, 3, 5, 2, 8)


def test_poolings_are_torchs_and_numpys(both):
    theirs, ours = both
    with torch.no_grad():
        expected = theirs(to_torch(IMAGES))
    hidden = expected.last_hidden_state.numpy()
    wanted = {"first": hidden[:, 0], "mean": hidden[:, 1:].mean(1), "pooler": expected.pooler_output.numpy()}
    for pooling, vectors in wanted.items():
        found = models.pooled(ours.config, pooling).apply(ours.params, {"image": IMAGES})
        np.testing.assert_allclose(found, vectors, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="the patches of an image have no last one"):
        models.pooled(ours.config, "last")
    with pytest.raises(ValueError, match="pooling 'pooler' needs a model with a pooler"):
        models.pooled(replace(ours.config, pooler=False), "pooler")


def test_the_classifier_reads_the_cls_token_or_the_mean_of_the_patches(both):
    """Against numpy, on torch's hidden states."""
    theirs, ours = both
    with torch.no_grad():
        hidden = theirs(to_torch(IMAGES)).last_hidden_state.numpy()
    kernel, bias = RNG.normal(size=(16, 3)).astype(np.float32), np.arange(3, dtype=np.float32)
    params = {"backbone": ours.params["backbone"], "classifier": {"kernel": kernel, "bias": bias}}
    for pooling, vectors in {"cls": hidden[:, 0], "mean": hidden[:, 1:].mean(1)}.items():
        model = models.build(replace(ours.config, pooling=pooling), "classification", classes=3)
        np.testing.assert_allclose(
            model.apply(params, {"image": IMAGES}), vectors @ kernel + bias, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_entered_above_a_frozen_prefix_it_is_the_same(both, depth):
    _, ours = both
    hidden = models.features(ours.config, stop=depth)(ours.params, {"image": IMAGES})
    entered = models.build(ours.config, "encoder", start=depth).apply(ours.params, {"hidden": hidden})
    whole = models.build(ours.config, "encoder").apply(ours.params, {"image": IMAGES})
    np.testing.assert_allclose(entered, whole, rtol=1e-6, atol=1e-6)


def test_patches_that_are_not_seen_change_nothing(both):
    """All patches in another order give the same cls token; one left out is as if it were not there."""
    _, ours = both
    model = models.build(ours.config, "encoder")
    keep = np.array([[2, 0, 3, 1]] * 3)  # patches 1 and 3 are the right half
    whole = np.asarray(model.apply(ours.params, {"image": IMAGES}))
    seen = np.asarray(model.apply(ours.params, {"image": IMAGES, "keep": keep}))
    np.testing.assert_allclose(seen[:, 0], whole[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen[:, 1:], whole[:, 1:][:, keep[0]], rtol=1e-4, atol=1e-5)
    some = np.asarray(model.apply(ours.params, {"image": IMAGES, "keep": keep[:, :2]}))
    darkened = IMAGES.copy()
    darkened[:, :, 4:] = 9.0
    unchanged = model.apply(ours.params, {"image": darkened, "keep": keep[:, :2]})
    np.testing.assert_array_equal(some, unchanged)
    assert np.abs(some[:, 0] - whole[:, 0]).max() > 0.01


def test_a_frozen_prefix_runs_without_dropout(both):
    config, params = replace(both[1].config, dropout=0.3), both[1].params
    still = models.build(config, "encoder").apply(params, {"image": IMAGES})
    rng = {"rng": jax.random.key(1), "train": True}
    frozen = models.build(config, "encoder", frozen_layers=2).apply(params, {"image": IMAGES}, **rng)
    np.testing.assert_array_equal(frozen, still)
    moving = models.build(config, "encoder", frozen_layers=1).apply(params, {"image": IMAGES}, **rng)
    assert (np.asarray(moving) != np.asarray(still)).any()
    with pytest.raises(ValueError, match="train=True with dropout needs rng"):
        models.build(config, "encoder").apply(params, {"image": IMAGES}, train=True)


def test_grey_images_patches_that_are_no_squares_and_a_narrow_dtype():
    config = models.VitConfig(image_size=(6, 8), patch_size=(3, 2), channels=1, dtype="bfloat16", **SIZES)
    model = models.build(config, "encoder")
    # Whole numbers are enough for fresh parameters, whose shapes are all that counts.
    params = jax.eval_shape(model.init, jax.random.key(0), {"image": np.zeros((1, 6, 8, 1), np.uint8)})
    assert params["backbone"]["embeddings"]["patch"]["kernel"].shape == (3, 2, 1, 16)
    assert params["backbone"]["embeddings"]["positions"].shape == (9, 16)
    hidden = jax.eval_shape(model.apply, params, {"image": np.zeros((1, 6, 8, 1), np.float32)})
    assert (hidden.shape, hidden.dtype) == ((1, 9, 16), "bfloat16")


def test_images_that_do_not_fit_are_named():
    model = models.build(CONFIG, "encoder")
    params = jax.eval_shape(model.init, jax.random.key(0), {"image": IMAGES})
    cases = [
        ({"image": np.zeros((1, 8, 10, 3))}, "images of 8 x 10 pixels are no whole number of patches of 4 x 4"),
        ({"image": np.zeros((1, 8, 8, 1))}, r"image has shape \(1, 8, 8, 1\); expected \[batch, height, width, 3\]"),
        ({"image": np.zeros((8, 8, 3))}, r"image has shape \(8, 8, 3\)"),
        ({"image": np.zeros((1, 8, 8, 3), np.uint8)}, "image holds uint8; expected normalized floats"),
        ({"pixels": IMAGES}, r"the batch has \['pixels'\] but no 'image'"),
    ]
    for batch, message in cases:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.apply, params, batch)


def test_what_cannot_be_built_is_named():
    with pytest.raises(ValueError, match="ViT has no task 'masked_lm': expected one of encoder, classification"):
        models.build(CONFIG, "masked_lm")
    with pytest.raises(ValueError, match="start must be an integer from 0 to 3 for 2 layers, got 4"):
        models.build(CONFIG, "encoder", start=4)
    cases = [
        ({"image_size": 9}, r"VitConfig.image_size must be a multiple of patch_size, got \(9, 9\) and patches of"),
        ({"patch_size": (4, 0)}, r"VitConfig.patch_size must be an integer of at least 1, or a pair"),
        ({"channels": 2}, r"VitConfig.channels must be 1 \(grey\) or 3 \(colour\), got 2"),
        ({"heads": 3}, "VitConfig.width must be a multiple of heads, got width 16 and 3 heads"),
        ({"width": 6, "fixed_positions": True}, "VitConfig.width must be a multiple of 4 for fixed positions"),
        ({"pooling": "max"}, "VitConfig.pooling must be one of cls, mean, got 'max'"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **change)
