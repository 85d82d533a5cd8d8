"""BEiT's pre-training against transformers' BeitForMaskedImageModeling under the same mask and words."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from chex import assert_trees_all_close
from safetensors.numpy import load_file

from jaxptft import augment, convert, models, objectives, train
from jaxptft.convert.engine import export_tensors
from jaxptft.convert.families import find_family
from jaxptft.objectives import Context

ROWS, GRID, VOCAB = 8, (4, 4), 5
IMAGES = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 1)).astype(np.uint8)
VALID = np.arange(ROWS) < 6
BATCH = {"image": IMAGES, "ids": np.where(VALID, 40 + np.arange(ROWS), -1).astype(np.int32), "valid": VALID}
RNG = jax.random.key(3)


def context(objective, training=True):
    return Context({}, objective.constants, RNG, training, None)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The torch model with every tensor random, its folder, and the same imported."""
    torch.manual_seed(0)
    config = transformers.BeitConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=2,
        num_channels=1,
        vocab_size=VOCAB,
        use_mask_token=True,
        use_shared_relative_position_bias=True,
    )
    model = transformers.BeitForMaskedImageModeling(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("beit")
    model.save_pretrained(folder / "source")
    return model, folder, convert.load(folder / "source")


@pytest.fixture(scope="module")
def words():
    """A tokenizer with random weights."""
    model = models.dvae(models.DvaeConfig(patch_size=2, channels=1, vocab_size=VOCAB, width=8, blocks=0))
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"image": jnp.zeros((1, 8, 8, 1))})
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda leaf: rng.normal(0, 0.7, leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def objective(reference, words):
    return objectives.beit(models.build(reference[2].config, "masked_image"), words=words, mask_ratio=0.5)


@pytest.fixture(scope="module")
def value_and_gradient(objective, quick):
    def loss(params, constants, batch):
        terms, (metrics, _) = objective.loss(params, batch, Context({}, constants, RNG, True, None))
        return objectives.total_loss(terms), metrics

    return quick(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def measured(reference, objective, value_and_gradient):
    return value_and_gradient(reference[2].params, objective.constants, BATCH)


def drawn_masks(ratio=0.5):
    """What the objective hides under its key."""
    blocks = objectives.plan_blocks(GRID, ratio)
    return np.asarray(objectives.block_masks(jax.random.split(RNG, 3)[1], jnp.asarray(BATCH["ids"]), GRID, blocks))


def test_loss_and_gradient_are_transformers(reference, words, measured):
    """Theirs is of the valid rows alone; gradients by their names in files."""
    model, folder, checkpoint = reference
    seen = IMAGES.astype(np.float32) / 255
    labels = np.asarray(objectives.visual_words(*words, jnp.asarray(seen)))
    assert len(np.unique(labels)) > 2
    masked = drawn_masks()[VALID]
    pixels = torch.tensor(seen[VALID]).permute(0, 3, 1, 2)
    expected = model(
        pixels,
        bool_masked_pos=torch.tensor(masked),
        labels=torch.tensor(labels[VALID][masked].astype(np.int64)),
    )
    (value, metrics), gradient = measured
    np.testing.assert_allclose(value, expected.loss.item(), rtol=1e-5)
    right = (expected.logits.argmax(-1).numpy() == labels[VALID])[masked]
    np.testing.assert_allclose(metrics["beit/accuracy"].value(), right.mean(), rtol=1e-6)

    model.zero_grad()
    expected.loss.backward()
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(folder / "gradients")
    model.load_state_dict(weights)
    theirs = load_file(folder / "gradients" / "model.safetensors")
    ours = export_tensors(find_family("beit"), checkpoint.config, jax.device_get(gradient), checkpoint.extras)
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(array).max() for array in theirs.values())
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-3, atol=1e-6 * largest, err_msg=name)
    assert np.abs(theirs["beit.embeddings.mask_token"]).max() > 1e-4


def test_eight_devices_hide_the_same_patches_and_learn_the_same(reference, objective, value_and_gradient, measured):
    mesh = train.make_mesh(jax.devices())
    whole = train.replicate((reference[2].params, objective.constants), mesh)
    (value, _), gradient = value_and_gradient(*whole, train.shard(BATCH, mesh))
    np.testing.assert_allclose(value, measured[0][0], rtol=1e-6)
    assert_trees_all_close(jax.device_get(gradient), measured[1], rtol=1e-4, atol=1e-5)


class Unsure:
    """A model without an opinion, which remembers what it was shown."""

    def __init__(self, vocab=VOCAB, patches=16):
        self.shown, self.vocab, self.patches = {}, vocab, patches

    def init(self, rng, batch):
        return {"shape": jnp.zeros(batch["image"].shape)}

    def apply(self, params, batch, *, rng=None, train=False):
        self.shown = batch
        return jnp.zeros((ROWS, self.patches, self.vocab))


def test_evaluation_is_deterministic_and_sees_the_plain_view():
    """In training a view adds a number drawn for each image; the words are of the same view, in their own way."""
    told = {}

    def say(params, batch, train):
        told.update(batch)
        return jnp.broadcast_to(jnp.arange(VOCAB) * params["sign"], (ROWS, *GRID, VOCAB))

    def shifted(key, image):
        return objectives.unchanged(key, image) + jax.random.uniform(key)

    model = Unsure()
    objective = objectives.beit(
        model,
        words=(SimpleNamespace(init=None, apply=say), {"sign": jnp.float32(1)}),
        mask_ratio=0.25,
        view=shifted,
        words_view=augment.normalise(0.5, 0.5),
    )
    for training in (True, False):
        found = objective.predict({}, BATCH, context(objective, training))["error"]
        np.testing.assert_allclose(found[:6], np.log(VOCAB), rtol=1e-6)  # of a uniform guess, by hand
        np.testing.assert_array_equal(model.shown["masked"], drawn_masks(0.25))
        assert (np.asarray(model.shown["masked"]).sum(1) == 4).all()
        plain = np.asarray(model.shown["image"]) - IMAGES / np.float32(255)
        assert (np.abs(plain).max() > 1e-3) == training
        np.testing.assert_allclose(told["image"], (model.shown["image"] - 0.5) / 0.5, rtol=1e-5, atol=1e-6)
    # What words there are is no part of the program: another tokenizer's params give other labels.
    logits = jnp.arange(VOCAB, dtype=jnp.float32)
    model.apply = lambda params, batch, **options: jnp.broadcast_to(logits, (ROWS, 16, VOCAB))
    for sign, label in ((1, VOCAB - 1), (-1, 0)):
        other = context(objective)._replace(constants={"words": {"sign": jnp.float32(sign)}})
        expected = -float(jax.nn.log_softmax(logits)[label])
        terms, _ = objective.loss({}, BATCH, other)
        np.testing.assert_allclose(terms["beit"].value(), expected, rtol=1e-6)
        assert float(terms["beit"].count) == 6 * 4
    assert jax.eval_shape(objective.init, RNG, BATCH)["shape"].shape == (ROWS, 8, 8, 1)


def test_mistakes_are_named(words):
    with pytest.raises(ValueError, match=r"mask_ratio is 1; expected a share of the patches, between 0 and 1"):
        objectives.beit(Unsure(), words=words, mask_ratio=1)
    for model, message in [
        (Unsure(vocab=4), r"the model gave logits of shape \(8, 16, 4\); expected \(8, 16, 5\), as the words have it"),
        (Unsure(patches=4), r"the model gave logits of shape \(8, 4, 5\); expected \(8, 16, 5\)"),
    ]:
        objective = objectives.beit(model, words=words)
        with pytest.raises(ValueError, match=message):
            objective.loss({}, BATCH, context(objective))
