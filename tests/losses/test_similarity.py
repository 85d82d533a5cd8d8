"""Linear CKA against Gram matrices in numpy, as Kornblith et al. 2019 and Song et al. 2012 define them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft.losses import linear_cka

RNG = np.random.default_rng(0)
X = RNG.normal(5, 2, (9, 4))
Y = np.concatenate([X[:, :2] ** 2, RNG.normal(-3, 1, (9, 3))], axis=1)
VALID = np.array([True, True, False, True, True, True, False, True, True])
both = jax.jit(lambda x, y, valid: [linear_cka(x, y, valid=valid, debiased=debiased) for debiased in (False, True)])


def hsic(k, le):
    """tr(KHLH) / (n - 1)^2."""
    n = len(k)
    h = np.eye(n) - 1 / n
    return np.trace(k @ h @ le @ h) / (n - 1) ** 2


def unbiased_hsic(k, le):
    """Of kernels whose diagonals are set to 0; they are not centred."""
    n, one = len(k), np.ones(len(k))
    k, le = k - np.diag(np.diag(k)), le - np.diag(np.diag(le))
    product = (
        np.trace(k @ le) + one @ k @ one * (one @ le @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ le @ one
    )
    return product / (n * (n - 3))


def cka(x, y, measure):
    k, le = x @ x.T, y @ y.T
    return measure(k, le) / np.sqrt(measure(k, k) * measure(le, le))


def test_features_give_what_gram_matrices_give():
    dirty = [np.where(VALID[:, None], rows, np.nan).astype(np.float32) for rows in (X, Y)]
    for found, measure in zip(both(*dirty, VALID), (hsic, unbiased_hsic), strict=True):
        np.testing.assert_allclose(found, cka(X[VALID], Y[VALID], measure), rtol=2e-5)
    assert cka(X, Y, hsic) > cka(X, Y, unbiased_hsic) + 0.05  # so that the two are told apart


def test_rotations_shifts_and_scales_change_nothing():
    rotation = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    everything = np.ones(9, bool)
    before = both(X.astype(np.float32), Y.astype(np.float32), everything)
    after = both((1e6 * X).astype(np.float32), (0.001 * Y @ rotation + 0.4).astype(np.float32), everything)
    np.testing.assert_allclose(after, before, rtol=2e-4)
    # Of features and what they are turned into, it is 1.
    turned = both(Y.astype(np.float32), (7 * Y @ rotation).astype(np.float32), everything)
    np.testing.assert_allclose(turned, [1.0, 1.0], atol=1e-5)


def test_the_debiased_one_is_about_0_for_features_that_have_nothing_in_common():
    """Many columns and few rows: the other one is above 0.8 there."""
    x, y = RNG.normal(size=(2, 20, 200)).astype(np.float32)
    assert linear_cka(x, y) > 0.8
    assert abs(linear_cka(x, y, debiased=True)) < 0.1


def test_where_there_is_no_answer_it_is_0_and_nan_is_seen():
    x = X.astype(np.float32)
    assert linear_cka(x, jnp.ones((9, 2))) == 0
    assert linear_cka(x, x, valid=jnp.arange(9) == 1) == 0
    assert linear_cka(x, x, valid=jnp.arange(9) < 3, debiased=True) == 0
    assert jnp.isnan(linear_cka(x, np.where(x == x[0, 0], np.nan, x)))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"y must be floating of shape \(rows, width\), got int32 of shape \(2,\)"):
        linear_cka(X, jnp.ones(2, jnp.int32))
    with pytest.raises(ValueError, match="must be of the same rows, got 9 and 8"):
        linear_cka(X, Y[1:])
    with pytest.raises(ValueError, match=r"valid must be bool of shape \(9,\), got float32 of shape \(9,\)"):
        linear_cka(X, Y, valid=jnp.ones(9))
