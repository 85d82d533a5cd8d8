"""BEiT against transformers' torch model: other image sizes, what it leaves behind, and the ways to enter it.

Outputs and gradients of every tensor are compared in tests/convert/test_parity.py and tests/convert/test_beit.py.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert, models

CONFIG = models.BeitConfig(image_size=8, patch_size=4, width=16, layers=2, heads=2, mlp_width=24, vocab_size=11)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)


def to_torch(images):
    return torch.tensor(images).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """transformers' model with every tensor random, all kinds of positions at once, and ours of its files."""
    torch.manual_seed(0)
    config = transformers.BeitConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        use_mask_token=True,
        use_absolute_position_embeddings=True,
        use_relative_position_bias=True,
        use_shared_relative_position_bias=True,
        attn_implementation="eager",
    )
    theirs = transformers.BeitModel(config).eval()
    with torch.no_grad():
        for tensor in theirs.parameters():
            tensor.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("beit")
    theirs.save_pretrained(folder)
    return theirs, convert.load(folder)


def test_images_of_another_size_have_their_positions_interpolated(both):
    theirs, ours = both
    images = RNG.normal(size=(2, 12, 4, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(to_torch(images)).last_hidden_state
    found = models.build(ours.config, "encoder").apply(ours.params, {"image": images})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_what_it_leaves_behind_and_its_poolings_are_torchs(both):
    """Hidden states before each layer and attention probabilities; poolings by numpy, on torch's hidden states."""
    theirs, ours = both
    with torch.no_grad():
        expected = theirs(to_torch(IMAGES), output_hidden_states=True, output_attentions=True)
    found = models.build(ours.config, "encoder", outputs=models.OUTPUTS).apply(ours.params, {"image": IMAGES})
    for index in range(2):
        np.testing.assert_allclose(found["hidden"][index], expected.hidden_states[index], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["attention"][index], expected.attentions[index], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        jax.nn.softmax(found["scores"], axis=-1), np.stack(expected.attentions), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(found["hidden"][2], expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["hidden"][2], found["logits"])
    hidden = expected.last_hidden_state.numpy()
    for pooling, vectors in {"first": hidden[:, 0], "mean": hidden[:, 1:].mean(1)}.items():
        pooled = models.pooled(ours.config, pooling).apply(ours.params, {"image": IMAGES})
        np.testing.assert_allclose(pooled, vectors, rtol=1e-4, atol=1e-5)
    shapes = jax.eval_shape(models.pooled(ours.config).init, jax.random.key(0), {"image": IMAGES})
    assert "pooler" not in shapes["backbone"]
    with pytest.raises(ValueError, match="the patches of an image have no last one"):
        models.pooled(ours.config, "last")


@pytest.mark.parametrize("depth", [1, 3])
def test_entered_above_a_frozen_prefix_it_is_the_same(both, depth):
    _, ours = both
    hidden = models.features(ours.config, stop=depth)(ours.params, {"image": IMAGES})
    entered = models.build(ours.config, "encoder", start=depth).apply(ours.params, {"hidden": hidden})
    whole = models.build(ours.config, "encoder").apply(ours.params, {"image": IMAGES})
    np.testing.assert_allclose(entered, whole, rtol=1e-6, atol=1e-6)


def test_a_frozen_prefix_runs_without_dropout(both):
    """Attention's dropout too, which takes another way through it."""
    config, params = replace(both[1].config, dropout=0.3, attention_dropout=0.3), both[1].params
    still = models.build(config, "encoder").apply(params, {"image": IMAGES})
    rng = {"rng": jax.random.key(1), "train": True}
    frozen = models.build(config, "encoder", frozen_layers=2).apply(params, {"image": IMAGES}, **rng)
    np.testing.assert_array_equal(frozen, still)
    nearly = replace(config, dropout=0.0, attention_dropout=1e-5)
    moving = models.build(nearly, "encoder", frozen_layers=1).apply(params, {"image": IMAGES}, **rng)
    np.testing.assert_allclose(moving, still, rtol=1e-3, atol=1e-3)  # biased there as well
    with pytest.raises(ValueError, match="train=True with dropout needs rng"):
        models.build(config, "encoder").apply(params, {"image": IMAGES}, train=True)


def test_masked_patches_are_not_seen():
    """Their pixels change no logits; where no patch is masked, it is as if there were no mask."""
    model = models.build(CONFIG, "masked_image")
    params = model.init(jax.random.key(0), {"image": IMAGES})
    assert params.keys() == {"backbone", "mim"}
    masked = np.zeros((3, 4), bool)
    whole = model.apply(params, {"image": IMAGES})
    assert (whole.shape, whole.dtype) == ((3, 4, 11), jnp.float32)
    np.testing.assert_array_equal(model.apply(params, {"image": IMAGES, "masked": masked}), whole)
    masked[:, 1] = True
    darkened = IMAGES.copy()
    darkened[:, :4, 4:] = 9.0
    seen = model.apply(params, {"image": IMAGES, "masked": masked})
    np.testing.assert_array_equal(model.apply(params, {"image": darkened, "masked": masked}), seen)
    assert np.abs(seen - whole).max() > 1e-4


def test_what_does_not_fit_is_named():
    model = models.build(CONFIG, "masked_image")
    params = jax.eval_shape(model.init, jax.random.key(0), {"image": IMAGES})
    without = models.build(replace(CONFIG, mask_token=False), "encoder")
    mask = np.zeros((3, 4), bool)
    cases = [
        (model, {"masked": mask[:, :3]}, r"masked is bool of shape \(3, 3\); expected bool of \(3, 4\)"),
        (model, {"masked": mask.astype(int)}, r"masked is int.. of shape"),
        (without, {"masked": mask}, "the batch has 'masked', but the model has no mask token"),
    ]
    for chosen, change, message in cases:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(chosen.apply, params, {"image": IMAGES, **change})
    entered = models.build(CONFIG, "encoder", start=1)
    with pytest.raises(ValueError, match=r"hidden has 2 patches, but entered midway .* distances of 2 x 2 alone"):
        jax.eval_shape(entered.apply, params, {"hidden": np.zeros((1, 3, 16), np.float32)})
    with pytest.raises(ValueError, match="BEiT has no task 'masked_lm': expected one of encoder, classification, mask"):
        models.build(CONFIG, "masked_lm")
    with pytest.raises(ValueError, match="BEiT's masked_image has no start, since other patches are masked each time"):
        models.build(CONFIG, "masked_image", start=0)
    with pytest.raises(ValueError, match=r"BeitConfig.mask_token is False, and masked_image puts it"):
        models.build(replace(CONFIG, mask_token=False), "masked_image")
    for change, message in [
        ({"patch_size": (4, 4)}, "BeitConfig.patch_size must be an integer of at least 1"),
        ({"image_size": 9}, "BeitConfig.image_size must be a multiple of patch_size"),
        ({"layer_scale": -1.0}, "BeitConfig.layer_scale must be a positive number, got -1.0"),
        ({"pooling": "max"}, "BeitConfig.pooling must be one of cls, mean, got 'max'"),
        ({"mask_token": 1}, "BeitConfig.mask_token must be True or False, got 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **change)
