"""The discrete autoencoder against the same network in torch, under the same Gumbel noise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, conv_transpose2d, one_hot, relu

from jaxptft import models, objectives
from jaxptft.objectives import Context

ROWS, VOCAB, WEIGHT = 8, 9, 0.05
IMAGES = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 4, 1)).astype(np.uint8)
VALID = np.arange(ROWS) < 6
BATCH = {"image": IMAGES, "ids": np.where(VALID, 40 + np.arange(ROWS), -1).astype(np.int32), "valid": VALID}
MODEL = models.dvae(models.DvaeConfig(patch_size=4, channels=1, vocab_size=VOCAB, width=16, blocks=1))
OBJECTIVE = objectives.dvae(MODEL, temperature=objectives.annealed(10), kl_weight=WEIGHT)


def context(training=True, temperature=0.7):
    return Context({"temperature": jnp.float32(temperature)}, None, jax.random.key(3), training, None)


@pytest.fixture(scope="module")
def params():
    """Every tensor random."""
    shapes = jax.eval_shape(OBJECTIVE.init, jax.random.key(0), BATCH)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def measured(params, quick):
    def loss(params, batch):
        terms, (metrics, _) = OBJECTIVE.loss(params, batch, context())
        return objectives.total_loss(terms), (terms, metrics)

    return quick(jax.value_and_grad(loss, has_aux=True))(params, BATCH)


def convolved(part, x, **options):
    return conv2d(x, part["kernel"].permute(3, 2, 0, 1), part["bias"], **options)


def block(part, x):
    return x + convolved(part["second"], relu(convolved(part["first"], relu(x), padding=1)), padding=1)


def encoded(params, images):
    """Torch's logits [batch, rows, columns, vocab]."""
    part = params["backbone"]
    x = convolved(part["down_0"], images, stride=2, padding=1)
    x = convolved(part["down_1"], relu(x), stride=2, padding=1)
    return convolved(part["words"], relu(block(part["block_0"], x))).permute(0, 2, 3, 1)


def decoded(params, words):
    part = params["decoder"]
    x = block(part["block_0"], (words @ part["codebook"]["kernel"]).permute(0, 3, 1, 2))
    for name in ("up_1", "up_0"):
        kernel = part[name]["kernel"].permute(2, 3, 0, 1).flip(2, 3)
        x = conv_transpose2d(relu(x), kernel, part[name]["bias"], stride=2, padding=1)
    return convolved(part["pixels"], relu(x), padding=1)


def test_loss_and_gradient_are_torchs(params, measured, repeat):
    """Over the valid rows alone."""
    (value, (terms, metrics)), gradient = measured
    leaves = repeat.leaves(params)
    images = torch.tensor(IMAGES[VALID].astype(np.float32) / 255).permute(0, 3, 1, 2)
    noise = objectives.gumbel_noise(jax.random.split(jax.random.key(3))[1], jnp.asarray(BATCH["ids"]), (2, 1, VOCAB))
    logits = encoded(leaves, images)
    words = torch.softmax((logits + torch.tensor(np.asarray(noise)[VALID])) / 0.7, -1)
    error = (decoded(leaves, words) - images).square().mean()
    q = logits.softmax(-1)
    divergence = (q * (q.log() + math.log(VOCAB))).sum(-1).mean()
    expected = error + WEIGHT * divergence
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(terms["dvae/kl"].value(), WEIGHT * divergence.item(), rtol=1e-5)
    repeat.assert_same_gradients(gradient, leaves)
    # Share and perplexity by numpy, of torch's likeliest words.
    counts = np.bincount(logits.argmax(-1).numpy().ravel(), minlength=VOCAB)
    share = counts[counts > 0] / counts.sum()
    np.testing.assert_allclose(metrics["dvae/used"].value(), (counts > 0).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["dvae/perplexity"].value(), np.exp(-(share * np.log(share)).sum()), rtol=1e-5)


def test_noise_goes_by_the_id_so_that_pmapped_devices_do_the_same(params, measured):
    """Under `pmap`, where words are counted over all devices; a gradient follows from the same terms."""
    split = {name: leaf.reshape(2, 4, *leaf.shape[1:]) for name, leaf in BATCH.items()}
    terms, (metrics, _) = jax.pmap(
        lambda rows: OBJECTIVE.loss(params, rows, context()._replace(axis_name="rows")), axis_name="rows"
    )(split)
    (value, (_, whole)), _ = measured
    spread = sum(term.total.sum() / term.count.sum() for term in terms.values())
    np.testing.assert_allclose(spread, value, rtol=1e-5)
    for name, mean in whole.items():
        np.testing.assert_allclose(metrics[name].total, [mean.total] * 2, rtol=1e-6)
    noise = objectives.gumbel_noise(jax.random.key(0), jnp.array([7, 3]), (2, 5))
    np.testing.assert_array_equal(objectives.gumbel_noise(jax.random.key(0), jnp.array([3, 7]), (2, 5)), noise[::-1])


def test_evaluation_takes_the_likeliest_word_alone(params, repeat):
    """Whatever the temperature and the key; torch's network again."""
    found = OBJECTIVE.predict(params, BATCH, context(training=False, temperature=9.0))
    with torch.no_grad():
        leaves = repeat.leaves(params)
        images = torch.tensor(IMAGES.astype(np.float32) / 255).permute(0, 3, 1, 2)
        words = encoded(leaves, images).argmax(-1)
        errors = (decoded(leaves, one_hot(words, VOCAB).float()) - images).square().mean((1, 2, 3))
    np.testing.assert_array_equal(found["words"], words.reshape(ROWS, -1))
    np.testing.assert_allclose(found["error"], errors, rtol=1e-4)
    seen = jnp.asarray(IMAGES, jnp.float32) / 255
    np.testing.assert_array_equal(objectives.visual_words(MODEL, params, seen), words.reshape(ROWS, -1))


def test_the_temperature_falls_by_a_factor_and_stays(params):
    """By hand: a power of its last value; `prepare` puts that of the step into the state."""
    state = OBJECTIVE.start(params, BATCH)
    assert float(state["temperature"]) == 1.0
    for step, expected in [(0, 1.0), (5, 0.25), (10, 0.0625), (50, 0.0625)]:
        found = OBJECTIVE.prepare(params, state, jnp.int32(step))["temperature"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    for arguments, message in [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"steps": 1, "first": 0.1, "last": 0.5}, "the temperature goes from 0.1 to 0.5; expected it to fall"),
    ]:
        with pytest.raises(ValueError, match=message):
            objectives.annealed(**arguments)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="kl_weight must be at least 0, got -1"):
        objectives.dvae(MODEL, temperature=objectives.annealed(1), kl_weight=-1)

    class Smaller:
        init = staticmethod(lambda rng, batch: {})
        apply = staticmethod(lambda params, batch, train: jnp.zeros((ROWS, 2, 2, 3)))

    small = objectives.dvae(Smaller(), temperature=objectives.annealed(1))
    with pytest.raises(ValueError, match=r"the model draws images of shape \(2, 2, 3\), and these have \(8, 4, 1\)"):
        small.loss({}, BATCH, context())
