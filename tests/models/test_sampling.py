"""Filters against transformers' logits warpers, and draws against the probabilities they are made from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from jaxptft.models.sampling import Sampling, keep_top_k, keep_top_p, sample, with_temperature

LOGITS = np.random.default_rng(0).normal(scale=3.0, size=(6, 50)).astype(np.float32)


def warped(warper) -> np.ndarray:
    return warper(None, torch.tensor(LOGITS)).numpy()


@pytest.mark.parametrize("k", [1, 2, 7, 50, 80])
def test_top_k_is_transformers(k):
    np.testing.assert_array_equal(keep_top_k(jnp.asarray(LOGITS), k), warped(TopKLogitsWarper(k)))


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_is_transformers(p):
    np.testing.assert_array_equal(keep_top_p(jnp.asarray(LOGITS), p), warped(TopPLogitsWarper(p)))


def test_top_p_of_one_keeps_all_and_of_a_masked_row_adds_none():
    np.testing.assert_array_equal(keep_top_p(jnp.asarray(LOGITS), 1.0), LOGITS)
    masked = keep_top_k(jnp.asarray(LOGITS), 3)
    np.testing.assert_array_equal(keep_top_p(masked, 1.0), masked)


def test_temperature_is_transformers():
    np.testing.assert_allclose(
        with_temperature(jnp.asarray(LOGITS), 0.7), warped(TemperatureLogitsWarper(0.7)), rtol=1e-6
    )


def test_ties_with_the_last_kept_stay():
    logits = jnp.array([[2.0, 1.0, 1.0, 0.0]])
    kept = [[2.0, 1.0, 1.0, -np.inf]]
    np.testing.assert_array_equal(keep_top_k(logits, 2), kept)
    # By hand: the probabilities are 0.53, 0.20, 0.20, 0.07, so the second takes the sum beyond 0.6.
    np.testing.assert_array_equal(keep_top_p(logits, 0.6), kept)


def test_temperature_zero_takes_the_likeliest_without_a_key():
    tokens = sample(jax.random.split(jax.random.key(0), 6), jnp.asarray(LOGITS), Sampling(temperature=0.0))
    np.testing.assert_array_equal(tokens, LOGITS.argmax(-1))  # numpy


def test_draws_have_the_probabilities_of_temperature_then_top_k_then_top_p():
    """Expected: transformers' warpers in its own order, and torch's softmax."""
    scores = torch.tensor(LOGITS[:1])
    for warper in (TemperatureLogitsWarper(2.0), TopKLogitsWarper(8), TopPLogitsWarper(0.8)):
        scores = warper(None, scores)
    probabilities = scores.double().softmax(-1)[0].numpy()
    draws = 20000
    keys = jax.random.split(jax.random.key(1), draws)
    rows = jnp.broadcast_to(jnp.asarray(LOGITS[0]), (draws, 50))
    counts = np.bincount(sample(keys, rows, Sampling(2.0, 8, 0.8)), minlength=50)
    drawn = probabilities > 0
    assert 1 < drawn.sum() < 8
    assert counts[~drawn].sum() == 0
    assert chisquare(counts[drawn], draws * probabilities[drawn]).pvalue > 1e-3


@pytest.mark.parametrize(
    "sampling, message",
    [
        (Sampling(temperature=-1.0), "temperature must be above 0 to draw, got -1.0"),
        (Sampling(top_k=0), "top_k must be at least 1, got 0"),
        (Sampling(top_p=0.0), "top_p must be above 0 and at most 1, got 0.0"),
        (Sampling(top_p=1.5), "top_p must be above 0 and at most 1, got 1.5"),
    ],
)
def test_values_out_of_range_are_refused(sampling, message):
    with pytest.raises(ValueError, match=message):
        sample(jax.random.split(jax.random.key(0), 6), jnp.asarray(LOGITS), sampling)
