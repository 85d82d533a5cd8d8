"""The blocks by themselves: dropout's statistics, activations and LayerNorm against torch, masked attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from jaxptft.models.layers import (
    ACTIVATIONS,
    LayerNorm,
    TracedRate,
    attend,
    attention_mask,
    dropout,
    position_ids,
    rate_threshold,
)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("width", [1, 7, 64])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate, width):
    x = jnp.full((40_000 // width, width), 3.0)
    y = np.asarray(dropout(x, rate, jax.random.key(0)))
    assert y.shape == x.shape
    # Binomial: 5 standard errors, and 2**-17 for the rate's rounding.
    assert abs((y == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / y.size) + 2**-17
    np.testing.assert_allclose(y[y != 0], 3 / (1 - rate), rtol=2**-16 / (1 - rate))


def test_dropout_draws_elements_independently():
    dropped = np.asarray(dropout(jnp.ones((20_000, 4)), 0.5, jax.random.key(1))) == 0
    # Correlations of independent columns are normal(0, 1 / sqrt(20,000)); the bound is 5 of those.
    correlations = np.corrcoef(dropped.T) - np.eye(4)
    assert np.abs(correlations).max() < 5 / np.sqrt(20_000)


def test_a_rate_below_its_resolution_is_the_identity():
    x = jnp.arange(6.0)
    np.testing.assert_array_equal(dropout(x, 1e-7, jax.random.key(0)), x)


@pytest.mark.parametrize("shape", [(64, 1024), (16, 4, 32, 32), (3, 21_845)])
def test_dropped_elements_are_as_independent_as_coin_tosses(shape):
    """Counts of agreement between neighbours at many distances, along each axis, the halves of a word, and two keys:
    each is binomial, so all of some thousand z scores stay below 5."""
    masks = [np.asarray(dropout(jnp.ones(shape), 0.5, jax.random.key(seed))) == 0 for seed in range(12)]
    scores = []

    def compare(one, other):
        scores.append(((one == other).mean() - 0.5) * 2 * np.sqrt(one.size))

    for number, mask in enumerate(masks):
        flat = mask.ravel()
        scores.append((flat.mean() - 0.5) * 2 * np.sqrt(flat.size))
        for distance in [*range(1, 18), *(2**power for power in range(5, 15))]:
            compare(flat[distance:], flat[:-distance])
        for axis in range(mask.ndim):
            if mask.shape[axis] > 1:
                compare(np.delete(mask, 0, axis), np.delete(mask, -1, axis))
        for bit in range(15):  # every element against the one whose number differs in one bit
            partner = np.arange(flat.size) ^ (1 << bit)
            once = (partner < flat.size) & (partner > np.arange(flat.size))
            compare(flat[once], flat[partner[once]])
        for other in masks[:number]:
            compare(mask, other)
    assert len(scores) > 500
    assert np.abs(scores).max() < 5
    assert 0.8 < np.std(scores) < 1.2


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_those_of_transformers(name):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), ACT2FN[name](torch.tensor(x)).numpy(), atol=2e-6)


def test_layer_norm_equals_torch_far_from_zero():
    # A mean of 1000 with deviations of 1 is where a one-pass variance in float32 fails.
    x = 1000 + np.random.default_rng(0).normal(size=(5, 33)).astype(np.float32)
    ours = LayerNorm(1e-12, "float32").apply({"params": {"scale": jnp.ones(33), "bias": jnp.zeros(33)}}, x)
    theirs = torch.nn.functional.layer_norm(torch.tensor(x, dtype=torch.float64), (33,), eps=1e-12)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-3)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.37, 0.9])
def test_a_rate_that_is_an_argument_drops_the_same(rate):
    x, rng = jax.random.normal(jax.random.key(0), (7, 33)), jax.random.key(1)
    told = jax.jit(lambda threshold: dropout(x, TracedRate(threshold), rng))(rate_threshold(rate))
    np.testing.assert_allclose(told, dropout(x, rate, rng), rtol=1e-6)
    assert 0 < TracedRate(jnp.int32(0)) < 1  # to a config it is on, whatever it comes to
    assert TracedRate(jnp.int32(0)) != TracedRate(jnp.int32(0))


def test_the_two_attentions_agree_and_ignore_masked_positions():
    q, k, v = (jax.random.normal(jax.random.key(index), (2, 5, 3, 4)) for index in range(3))
    mask = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    fused = attend(q, k, v, mask)
    np.testing.assert_allclose(attend(q, k, v, mask, drop=lambda p: p), fused, atol=1e-6)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(np.asarray(x)).transpose(1, 2) for x in (q, k, v)),
        attn_mask=torch.tensor(np.asarray(mask))[:, None, None, :],
    ).transpose(1, 2)
    np.testing.assert_allclose(fused, theirs.numpy(), atol=1e-6)


def test_attention_takes_a_mask_with_or_without_the_axes_that_share_it():
    q, k, v = (jax.random.normal(jax.random.key(index), (2, 5, 3, 4)) for index in range(3))
    mask = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    expected = attend(q, k, v, mask)
    np.testing.assert_array_equal(attend(q, k, v, mask[:, None]), expected)
    np.testing.assert_array_equal(attend(q, k, v, mask[:, None, None]), expected)
    np.testing.assert_allclose(attend(q, k, v, jnp.tile(mask[:, None], (1, 5, 1))), expected, atol=1e-6)


def test_masks_and_positions_come_from_the_batch():
    # By hand: two texts of 2 and 1 tokens, and one place of padding.
    packed = {"segment_ids": jnp.array([[1, 1, 2, 0]]), "position_ids": jnp.array([[0, 1, 0, 0]])}
    expected = [[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]]
    np.testing.assert_array_equal(attention_mask({**packed, "attention_mask": jnp.ones((1, 4))}, (1, 4)), expected)
    np.testing.assert_array_equal(position_ids(packed, 4), packed["position_ids"])
    np.testing.assert_array_equal(attention_mask({"attention_mask": jnp.array([[1, 0]])}, (1, 2)), [[[True, False]]])
    np.testing.assert_array_equal(attention_mask({}, (1, 2)), [[[True, True]]])
    np.testing.assert_array_equal(position_ids({}, 3), [[0, 1, 2]])
