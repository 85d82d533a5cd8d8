from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import norm

from jaxptft.recipes.importance import Weighted, features_of_rows, importance_weights


def domains(shift, rows=(1500, 900), width=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows[0], width)), rng.normal(size=(rows[1], width)) + shift


def test_weights_are_the_ratio_of_the_densities():
    """Of N(0, I) and N(shift, I) that is exp(<shift, x> - |shift|^2 / 2), by hand."""
    shift = np.array([0.8, -0.4])
    # So many rows that the coefficients' standard errors, about 0.015, are small beside the tolerances.
    source, target = domains(shift, rows=(15000, 9000))
    found = importance_weights(source, target, clip=100.0)
    expected = np.exp(source @ shift - shift @ shift / 2)
    assert found.weights.dtype == np.float32
    np.testing.assert_allclose(found.weights.mean(), 1.0, rtol=1e-6)
    assert np.corrcoef(np.log(found.weights), np.log(expected))[0, 1] > 0.99
    np.testing.assert_allclose(np.log(found.weights), np.log(expected), atol=0.25)
    # So weighted, the source has the target's mean, and it effectively has n / E w^2 = n exp(-|shift|^2) rows.
    np.testing.assert_allclose(found.weights @ source / len(source), shift, atol=0.06)
    np.testing.assert_allclose(found.effective_rows, len(source) * np.exp(-shift @ shift), rtol=0.15)
    np.testing.assert_allclose(found.separation, norm.cdf(np.sqrt(shift @ shift / 2)), atol=0.01)  # scipy


def test_domains_that_are_alike_weigh_alike_whatever_the_number_of_features():
    source, target = domains(0.0, rows=(100, 150), width=60)
    found = importance_weights(source, target, strength=0.01)
    assert abs(found.separation - 0.5) < 0.1  # judged on its own rows, the classifier is near 1 here
    assert found.effective_rows > 80


def test_no_row_counts_more_than_the_clip_says():
    source, target = domains(np.array([3.0, 0.0]))
    free, clipped = (importance_weights(source, target, clip=clip) for clip in (1e6, 2.0))
    assert clipped.weights.max() < free.weights.max() / 10
    top = clipped.weights == clipped.weights.max()
    assert top.sum() > 1  # all that was above
    assert (free.weights[top] > free.weights[~top].max()).all()
    assert clipped.effective_rows > free.effective_rows


def batches():
    ids = [np.array([2, 0]), np.array([1, -1])]
    return SimpleNamespace(
        tokenized=[None] * 3,
        steps_per_epoch=2,
        fingerprint="one",
        batch_at=lambda step: {"ids": ids[step], "valid": ids[step] >= 0, "x": ids[step][:, None] * [10.0, 1.0]},
    )


def test_weights_and_features_follow_the_rows():
    source = batches()
    weighted = Weighted(source, np.array([0.5, 1.5, 1.0]))
    assert [weighted.batch_at(step)["weight"].tolist() for step in (0, 1)] == [[1.0, 0.5], [1.5, 0.0]]
    assert weighted.steps_per_epoch == 2
    assert weighted.batch_at(0)["weight"].dtype == np.float32
    assert len({source.fingerprint, weighted.fingerprint, Weighted(source, np.ones(3)).fingerprint}) == 3
    features = SimpleNamespace(init=lambda rng, batch: {}, apply=lambda params, batch, *, rng, train: batch["x"] + 1)
    found = features_of_rows(features, {}, (source.batch_at(step) for step in range(2)))
    assert found.tolist() == [[1.0, 1.0], [11.0, 2.0], [21.0, 3.0]]


def test_mistakes_are_named():
    source, target = domains(0.0, rows=(6, 6))
    with pytest.raises(ValueError, match=r"of one width, got shapes \(6, 2\) and \(6, 1\)"):
        importance_weights(source, target[:, :1])
    with pytest.raises(ValueError, match="the features hold NaN or infinity"):
        importance_weights(source, target * np.nan)
    with pytest.raises(ValueError, match=r"clip is 0\.5; expected at least 1"):
        importance_weights(source, target, clip=0.5)
    with pytest.raises(ValueError, match="6 source and 3 target rows do not make 5 folds"):
        importance_weights(source, target[:3])
    with pytest.raises(ValueError, match=r"weights have shape \(2,\) for 3 rows"):
        Weighted(batches(), np.ones(2))
