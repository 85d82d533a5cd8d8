"""MAE against transformers' ViTMAEForPreTraining under the same noise, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from chex import assert_trees_all_close
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from jaxptft import convert, models, objectives, train
from jaxptft.convert.engine import export_tensors
from jaxptft.convert.families import find_family
from jaxptft.objectives import Context, Mean

ROWS, PATCHES = 8, 16
IMAGES = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 1)).astype(np.uint8)
VALID = np.arange(ROWS) < 6
BATCH = {"image": IMAGES, "ids": np.where(VALID, 40 + np.arange(ROWS), -1).astype(np.int32), "valid": VALID}


def context(rng, training=True):
    return Context({}, None, rng, training, None)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The torch model with every tensor random, its folder, and the same imported."""
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=2,
        num_channels=1,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=12,
        mask_ratio=0.7,
        norm_pix_loss=True,
    )
    model = transformers.ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("mae")
    model.save_pretrained(folder / "source")
    return model, folder, convert.load(folder / "source")


@pytest.fixture(scope="module")
def objective(reference):
    config = reference[2].config
    model = models.build(config, "pretraining")
    return objectives.mae(model, patch_size=config.patch, mask_ratio=config.mask_ratio, normalise=config.normalise)


@pytest.fixture(scope="module")
def value_and_gradient(objective, quick):
    def loss(params, batch, rng):
        return objectives.total_loss(objective.loss(params, batch, context(rng))[0])

    return quick(jax.value_and_grad(loss))


@pytest.fixture(scope="module")
def measured(reference, value_and_gradient):
    return value_and_gradient(reference[2].params, BATCH, jax.random.key(3))


def drawn_visible(rng, ratio=0.7):
    """What the objective draws under this key."""
    return objectives.visible_patches(
        objectives.patch_noise(jax.random.split(rng, 3)[1], jnp.asarray(BATCH["ids"]), PATCHES), ratio
    )


def test_loss_and_gradient_are_transformers(reference, measured):
    """Theirs is of the valid rows alone, and of the noise that the objective draws; gradients by their names in files.

    Some gradients cancel to nearly nothing (of keys' biases, which the softmax does not see), so the tolerance is
    relative to the largest.
    """
    model, folder, checkpoint = reference
    noise = objectives.patch_noise(jax.random.split(jax.random.key(3), 3)[1], jnp.asarray(BATCH["ids"]), PATCHES)
    pixels = torch.tensor(IMAGES[VALID].astype(np.float32) / 255).permute(0, 3, 1, 2)
    expected = model(pixels, noise=torch.tensor(np.asarray(noise)[VALID]))
    value, gradient = measured
    np.testing.assert_allclose(value, expected.loss.item(), rtol=1e-5)
    np.testing.assert_array_equal(drawn_visible(jax.random.key(3)).masked[VALID], expected.mask)

    model.zero_grad()
    expected.loss.backward()
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(folder / "gradients")
    model.load_state_dict(weights)
    theirs = load_file(folder / "gradients" / "model.safetensors")
    ours = export_tensors(find_family("vit_mae"), checkpoint.config, jax.device_get(gradient), checkpoint.extras)
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(array).max() for array in theirs.values())
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-3, atol=1e-6 * largest, err_msg=name)
    assert np.abs(theirs["decoder.mask_token"]).max() > 1e-4


def test_eight_devices_hide_the_same_patches_and_learn_the_same(reference, value_and_gradient, measured):
    mesh = train.make_mesh(jax.devices())
    params = jax.device_put(reference[2].params, NamedSharding(mesh, PartitionSpec()))
    value, gradient = value_and_gradient(params, train.shard(BATCH, mesh), jax.random.key(3))
    np.testing.assert_allclose(value, measured[0], rtol=1e-6)
    assert_trees_all_close(jax.device_get(gradient), measured[1], rtol=1e-4, atol=1e-5)


def test_masks_go_by_the_id_and_the_key():
    ids = jnp.array([7, 3, 9])
    noise = objectives.patch_noise(jax.random.key(0), ids, 12)
    np.testing.assert_array_equal(objectives.patch_noise(jax.random.key(0), ids[::-1], 12), noise[::-1])
    assert (objectives.patch_noise(jax.random.key(1), ids, 12) != noise).all()
    visible = objectives.visible_patches(noise, 0.75)
    assert visible.keep.shape == (3, 3)
    np.testing.assert_array_equal(visible.masked.sum(1), [9, 9, 9])
    # numpy's argsort is the expected order; the inverse puts each patch back.
    np.testing.assert_array_equal(visible.keep, np.argsort(np.asarray(noise), axis=1)[:, :3])
    shuffled = np.argsort(np.asarray(noise), axis=1)
    np.testing.assert_array_equal(np.take_along_axis(shuffled, np.asarray(visible.restore), 1), [range(12)] * 3)


class Constant:
    """A model that draws one number everywhere."""

    @staticmethod
    def init(rng, batch):
        return {"value": jnp.zeros(())}

    @staticmethod
    def apply(params, batch, *, rng=None, train=False):
        return jnp.full((ROWS, PATCHES, 4), params["value"])


def test_evaluation_is_deterministic_and_sees_the_plain_view():
    """Against numpy. In training a view adds a number drawn for each image."""

    def shifted(key, image):
        return objectives.unchanged(key, image) + jax.random.uniform(key)

    objective = objectives.mae(Constant(), patch_size=2, mask_ratio=0.7, normalise=False, view=shifted)

    def errors(training):
        rng = context(jax.random.key(3), training)
        return np.asarray(objective.predict({"value": 0.25}, BATCH, rng)["error"])

    masked = np.asarray(drawn_visible(jax.random.key(3)).masked)
    pixels = IMAGES.reshape(ROWS, 4, 2, 4, 2).swapaxes(2, 3).reshape(ROWS, PATCHES, 4) / 255
    expected = [np.square(rows[hidden] - 0.25).mean() for rows, hidden in zip(pixels, masked, strict=True)]
    np.testing.assert_allclose(errors(False), expected, rtol=1e-5)
    assert (np.abs(errors(True) - expected)[VALID] > 1e-3).all()


def test_reconstructions_put_the_drawn_patches_among_the_seen():
    """Against numpy, with a model that draws the patch's number everywhere."""
    images = np.random.default_rng(1).normal(size=(2, 4, 6, 3)).astype(np.float32)
    numbers = np.broadcast_to(np.arange(6.0)[None, :, None], (2, 6, 12)).astype(np.float32)

    class Numbers:
        init = staticmethod(lambda rng, batch: {})
        apply = staticmethod(lambda params, batch, **options: jnp.asarray(numbers))

    visible = objectives.Visible(jnp.array([[5, 0], [1, 2]]), jnp.array([[1, 2, 3, 4, 5, 0], [2, 0, 1, 3, 4, 5]]))
    hidden = np.array([[0, 1, 1, 1, 1, 0], [1, 0, 0, 1, 1, 1]], bool)
    found = objectives.reconstruct(Numbers(), {}, jnp.asarray(images), visible, patch_size=2, normalise=False)
    spread = np.repeat(np.repeat(hidden.reshape(2, 2, 3), 2, 1), 2, 2)[..., None]
    pictured = np.repeat(np.repeat(np.arange(6.0).reshape(2, 3), 2, 0), 2, 1)[None, ..., None]
    np.testing.assert_array_equal(found.masked, np.where(spread, 0, images))
    np.testing.assert_array_equal(found.drawn, np.broadcast_to(pictured, images.shape))
    np.testing.assert_array_equal(found.completed, np.where(spread, pictured, images))
    scaled = objectives.reconstruct(Numbers(), {}, jnp.asarray(images), visible, patch_size=2, normalise=True)
    corner = images[0, :2, 2:4]  # patch 1, drawn one deviation above its mean
    np.testing.assert_allclose(
        scaled.drawn[0, :2, 2:4], np.full((2, 2, 3), corner.mean() + corner.std(ddof=1)), rtol=1e-5
    )


def test_fresh_parameters_are_those_of_the_viewed_image(objective):
    params = jax.eval_shape(objective.init, jax.random.key(0), BATCH)
    assert params.keys() == {"backbone", "decoder"}
    terms = jax.eval_shape(lambda p: objective.loss(p, BATCH, context(jax.random.key(0)))[0], params)
    assert isinstance(terms["mae"], Mean)


def test_mistakes_are_named(objective, reference):
    model = models.build(reference[2].config, "pretraining")
    with pytest.raises(ValueError, match=r"mask_ratio is 1.0; expected a share of the patches, between 0 and 1"):
        objectives.mae(model, patch_size=2, mask_ratio=1.0)
    with pytest.raises(ValueError, match="patch_size is 0; expected an integer of at least 1, or height and width"):
        objectives.mae(model, patch_size=0)
    with pytest.raises(ValueError, match=r"mask_ratio 0.9 leaves 0 of 4 patches visible"):
        objectives.visible_patches(jnp.zeros((1, 4)), 0.9)
    with pytest.raises(ValueError, match=r"mask_ratio 0.0 leaves 4 of 4 patches visible"):
        objectives.visible_patches(jnp.zeros((1, 4)), 0.0)
    with pytest.raises(ValueError, match="in whole patches of 3 x 3"):
        objectives.mae(model, patch_size=3).loss({}, BATCH, context(jax.random.key(0)))
