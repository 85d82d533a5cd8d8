import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import euclidean_distances, linear_kernel, rbf_kernel

from jaxptft.losses import linear_mmd, median_squared_distance, squared_mmd

MULTIPLES = (0.5, 1.0, 3.0)
ROWS = {"source_valid": np.ones(7, bool), "target_valid": np.ones(5, bool)}  # all of them
COMPILED = jax.jit(squared_mmd, static_argnames="unbiased")


@pytest.fixture(scope="module")
def samples():
    """Two samples far from the origin, and which rows of them count."""
    rng = np.random.default_rng(0)
    source, target = rng.normal(10, 1, (7, 4)), rng.normal(10.5, 2, (5, 4))
    masks = np.array([True, True, False, True, True, False, True]), np.array([True, False, True, True, True])
    return source.astype(np.float32), target.astype(np.float32), *masks


def discrepancy(kernel, rows, unbiased):
    """Equations 3 and 5 of Gretton et al. 2012 from a kernel matrix, by numpy or torch."""
    within = []
    for block in (kernel[:rows, :rows], kernel[rows:, rows:]):
        count, trace = len(block), block.diagonal().sum()
        within.append((block.sum() - trace) / (count * (count - 1)) if unbiased else block.sum() / count**2)
    return sum(within) - 2 * kernel[:rows, rows:].mean()


@pytest.mark.parametrize("unbiased", [True, False])
def test_value_is_scikit_learns_kernels_and_gradient_torchs(samples, unbiased):
    source, target, *masks = samples
    kept = np.concatenate([source[masks[0]], target[masks[1]]])
    distances = euclidean_distances(kept.astype(np.float64), squared=True)
    median = np.median(distances[np.triu_indices(len(kept), 1)])
    kernel = sum(rbf_kernel(kept.astype(np.float64), gamma=1 / (2 * m * median)) for m in MULTIPLES)
    expected = discrepancy(kernel, masks[0].sum(), unbiased)

    def ours(source, target):
        options = {"multiples": MULTIPLES, "unbiased": unbiased}
        return squared_mmd(source, target, source_valid=masks[0], target_valid=masks[1], **options)

    # What does not count may be anything.
    dirty = np.where(masks[0][:, None], source, np.nan), np.where(masks[1][:, None], target, 1e30)
    value, gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(*dirty)
    np.testing.assert_allclose(value, expected, rtol=1e-4)

    leaf = torch.tensor(kept, dtype=torch.float64, requires_grad=True)
    squares = ((leaf[:, None] - leaf[None]) ** 2).sum(-1)
    discrepancy(sum(torch.exp(-squares / (2 * m * median)) for m in MULTIPLES), masks[0].sum(), unbiased).backward()
    assert not any(gradient[~mask].any() for gradient, mask in zip(gradients, masks, strict=True))
    found = np.concatenate([gradient[mask] for gradient, mask in zip(gradients, masks, strict=True)])
    np.testing.assert_allclose(found, leaf.grad.numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("unbiased", [True, False])
def test_linear_value_and_gradient(samples, unbiased):
    source, target, *masks = samples
    kept = np.concatenate([source[masks[0]], target[masks[1]]]).astype(np.float64)
    valid = {"source_valid": masks[0], "target_valid": masks[1], "unbiased": unbiased}
    value, gradient = jax.jit(jax.value_and_grad(lambda source: linear_mmd(source, target, **valid)))(source)
    np.testing.assert_allclose(value, discrepancy(linear_kernel(kept), masks[0].sum(), unbiased), rtol=1e-3)
    leaf = torch.tensor(kept, requires_grad=True)
    discrepancy(leaf @ leaf.T, masks[0].sum(), unbiased).backward()
    np.testing.assert_allclose(gradient[masks[0]], leaf.grad.numpy()[: masks[0].sum()], rtol=1e-3, atol=1e-5)


def test_the_median_is_scipys_over_pairs_of_valid_rows(samples):
    source, _, mask, _ = samples
    median = jax.jit(median_squared_distance)
    for rows in (mask, mask & (np.arange(7) != 3)):  # an even and an odd number of pairs
        kept = source[rows].astype(np.float64)
        distances = euclidean_distances(kept, squared=True)[np.triu_indices(len(kept), 1)]
        np.testing.assert_allclose(median(source, rows), np.median(distances), rtol=1e-5)
    assert median(source, np.arange(7) == 0) == 0


def draws(shift, count=4000, rows=(6, 9)):
    """Pairs of samples of a two-dimensional normal distribution, the second one moved."""
    first, second = jax.random.split(jax.random.key(0))
    moved = jax.random.normal(second, (count, rows[1], 2)) + jnp.asarray(shift)
    return jax.random.normal(first, (count, rows[0], 2)), moved


def z_score(values, expected):
    values = np.asarray(values, np.float64)
    return (values.mean() - expected) / (values.std(ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize("kind", ["median", "linear"])
def test_the_unbiased_estimate_is_zero_on_average_without_a_difference(kind):
    estimate = linear_mmd if kind == "linear" else squared_mmd
    both = jax.jit(jax.vmap(lambda *pair: (estimate(*pair), estimate(*pair, unbiased=False))))
    unbiased, biased = map(np.asarray, both(*draws((0.0, 0.0))))
    assert abs(z_score(unbiased, 0.0)) < 3
    assert min(unbiased) < 0
    assert z_score(biased, 0.0) > 30  # the check above can fail
    assert min(biased) > -1e-6


def test_a_known_shift_gives_the_value_of_the_closed_form():
    """Of N(0, I) and N(shift, I): E k = (s / (s + 2))^(width / 2) exp(-||shift||^2 / (2 (s + 2)))."""
    shift = np.array([1.0, -0.5])
    expected = sum(2 * s / (s + 2) * (1 - np.exp(-(shift @ shift) / (2 * (s + 2)))) for s in (0.75, 1.5, 4.5))
    estimate = jax.vmap(lambda *pair: squared_mmd(*pair, squared_bandwidth=1.5, multiples=MULTIPLES))
    values = jax.jit(estimate)(*draws(shift))
    assert abs(z_score(values, expected)) < 3
    assert abs(z_score(values, 0.9 * expected)) > 3
    linear = jax.jit(jax.vmap(linear_mmd))(*draws(shift))
    assert abs(z_score(linear, shift @ shift)) < 3


def test_the_order_of_rows_does_not_matter_and_the_samples_may_change_places(samples):
    source, target, *_ = samples
    value = COMPILED(source, target, **ROWS)
    np.testing.assert_allclose(COMPILED(source[::-1].copy(), np.roll(target, 2, axis=0), **ROWS), value, rtol=1e-4)
    swapped = COMPILED(target, source, source_valid=ROWS["target_valid"], target_valid=ROWS["source_valid"])
    np.testing.assert_allclose(swapped, value, rtol=1e-4)


def test_fewer_than_two_rows_have_no_discrepancy(samples):
    source, target, *_ = samples
    one, two = (
        ROWS | {"source_valid": np.arange(7) == 3},
        {"source_valid": np.arange(7) < 2, "target_valid": np.arange(5) < 2},
    )
    value, gradient = jax.jit(jax.value_and_grad(lambda rows: squared_mmd(rows, target, **one)))(source)
    assert value == 0
    assert not gradient.any()
    assert COMPILED(source, target, **one, unbiased=False) > 0
    assert COMPILED(source, target, **ROWS | {"source_valid": np.zeros(7, bool)}, unbiased=False) == 0
    # Two rows each are enough; rows that are all one point have no median, yet no difference either.
    assert COMPILED(source, target, **two) != 0
    assert COMPILED(np.ones((7, 4), np.float32), np.ones((5, 4), np.float32), **ROWS) == 0


def test_half_precision_is_accumulated_in_single(samples):
    source, target, *_ = samples
    halves = jnp.asarray(source, jnp.bfloat16), jnp.asarray(target, jnp.bfloat16)
    value = squared_mmd(*halves)
    assert value.dtype == jnp.float32
    assert value == squared_mmd(*(half.astype(jnp.float32) for half in halves))


def test_mistakes_are_named(samples):
    source, target, *_ = samples
    with pytest.raises(ValueError, match=r"\[rows, width\] of one width, got shapes \(7, 4\) and \(5, 3\)"):
        squared_mmd(source, target[:, :3])
    with pytest.raises(ValueError, match="must be floating, got float32 and int32"):
        linear_mmd(source, target.astype(np.int32))
    with pytest.raises(ValueError, match=r"target_valid must be bool of shape \(5,\), got bool of shape \(7,\)"):
        squared_mmd(source, target, target_valid=jnp.ones(7, bool))
    with pytest.raises(ValueError, match=r"multiples must be positive, and at least one, got \(\)"):
        squared_mmd(source, target, multiples=())
    with pytest.raises(ValueError, match="squared_bandwidth must be positive, got 0"):
        squared_mmd(source, target, squared_bandwidth=0.0)
