import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxptft import losses

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    """transformers' masked autoencoder, for its patches."""
    config = transformers.ViTMAEConfig(
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        decoder_hidden_size=4,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=1,
        decoder_intermediate_size=4,
        image_size=8,
        patch_size=2,
    )
    return transformers.ViTMAEForPreTraining(config)


def test_patches_are_transformers_and_back(reference):
    theirs = reference.patchify(torch.tensor(IMAGES).permute(0, 3, 1, 2)).numpy()
    patches = losses.patchify(jnp.asarray(IMAGES), (2, 2))
    np.testing.assert_array_equal(patches, theirs)
    np.testing.assert_array_equal(losses.unpatchify(patches, (2, 2), (8, 8)), IMAGES)


def test_neither_images_nor_patches_need_be_square():
    """Against numpy's slices."""
    images = IMAGES[:, :6]
    patches = np.asarray(losses.patchify(jnp.asarray(images), (3, 2)))
    assert patches.shape == (2, 8, 18)
    np.testing.assert_array_equal(patches[1, 5], images[1, 3:6, 2:4].reshape(-1))
    np.testing.assert_array_equal(losses.unpatchify(jnp.asarray(patches), (3, 2), (6, 8)), images)


def test_the_normalised_target_is_torchs_and_finite_on_one_colour():
    patches = RNG.normal(3, 2, size=(2, 4, 12)).astype(np.float32)
    theirs = torch.tensor(patches)
    # As in transformers' forward_loss.
    expected = (theirs - theirs.mean(-1, keepdim=True)) / (theirs.var(-1, keepdim=True) + 1e-6) ** 0.5
    np.testing.assert_allclose(losses.normalise_patches(jnp.asarray(patches)), expected, rtol=1e-5, atol=1e-6)
    mean, deviation = losses.patch_moments(jnp.asarray(patches))
    np.testing.assert_allclose(np.asarray(expected) * deviation + mean, patches, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(losses.normalise_patches(jnp.full((1, 1, 4), 7.0)), np.zeros((1, 1, 4)))


def test_the_error_is_the_masked_patches_mean_of_each_image():
    """Against numpy; an image without a masked patch counts 0."""
    one, other = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    masked = np.array([[True, False, False, True], [False] * 4, [True] * 4])
    squares = np.square(one - other).mean(-1)
    expected = [squares[0, [0, 3]].mean(), 0.0, squares[2].mean()]
    np.testing.assert_allclose(losses.masked_patch_error(one, other, jnp.asarray(masked)), expected, rtol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"images have shape \(2, 8, 8, 3\); .* in whole patches of 3 x 4"):
        losses.patchify(jnp.asarray(IMAGES), (3, 4))
    with pytest.raises(ValueError, match=r"patches have shape \(1, 3, 8\); expected \[batch, 4, 4 x channels\]"):
        losses.unpatchify(jnp.zeros((1, 3, 8)), (2, 2), (4, 4))
    with pytest.raises(ValueError, match=r"one shape \[batch, patches, pixels\] and masked its first two axes"):
        losses.masked_patch_error(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), bool))
