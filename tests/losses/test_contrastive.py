from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

from jaxptft import losses

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(8, 5)).astype(np.float32)
VALID = np.array([True, True, False, False, True, True, True, True])
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEYS, QUEUE = (RNG.normal(size=(count, 5)).astype(np.float32) for count in (8, 12))


def test_nt_xent_and_its_gradient_equal_optax_and_torch():
    pairs = jnp.arange(8) // 2
    ours = quick(jax.value_and_grad(lambda rows: losses.nt_xent(rows, temperature=0.2).mean()))(ROWS)
    theirs = quick(jax.value_and_grad(lambda rows: optax.losses.ntxent(rows, pairs, temperature=0.2)))(ROWS)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-6)
    unit = F.normalize(torch.tensor(ROWS), dim=1)
    logits = (unit @ unit.T / 0.2).fill_diagonal_(-torch.inf)
    each = F.cross_entropy(logits, torch.arange(8) ^ 1, reduction="none")
    np.testing.assert_allclose(losses.nt_xent(ROWS, temperature=0.2), each, rtol=1e-5)


def test_rows_that_are_not_valid_are_neither_scored_nor_candidates():
    spoilt = np.where(VALID[:, None], ROWS, np.nan)
    run = lambda rows, valid: losses.nt_xent(rows, temperature=0.5, valid=valid).sum()  # noqa: E731
    value, gradient = quick(jax.value_and_grad(run))(spoilt, VALID)
    alone = quick(jax.value_and_grad(run))(ROWS[VALID], np.ones(6, bool))
    np.testing.assert_allclose(value, alone[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[VALID], alone[1], rtol=1e-5, atol=1e-7)
    assert not np.asarray(gradient)[~VALID].any()
    only = losses.nt_xent(ROWS, temperature=0.5, valid=np.arange(8) < 2)  # a pair without negatives: log 1
    np.testing.assert_array_equal(only, np.zeros(8))


def test_parts_scored_against_the_whole_have_the_losses_of_the_whole():
    whole = losses.nt_xent(ROWS, temperature=0.3, valid=VALID)
    queries = losses.info_nce(ROWS, KEYS, temperature=0.3, valid=VALID)
    for first in (0, 4):
        own = slice(first, first + 4)
        options = {"temperature": 0.3, "valid": VALID[own], "first": jnp.int32(first)}
        part = losses.nt_xent(ROWS[own], candidates=ROWS, candidates_valid=VALID, **options)
        np.testing.assert_allclose(part, whole[own], rtol=1e-6)
        part = losses.info_nce(ROWS[own], KEYS, keys_valid=VALID, **options)
        np.testing.assert_allclose(part, queries[own], rtol=1e-6)


def test_a_tiny_temperature_and_rows_of_any_length_stay_finite():
    """Against float64 numpy: logits reach 1e4."""
    lengths = np.array([1e-10, 1e10, 1, 1, 1e5, 1e-5, 3, 0])[:, None]
    spread = (ROWS * lengths).astype(np.float32)
    value, gradient = quick(jax.value_and_grad(lambda rows: losses.nt_xent(rows, temperature=1e-4).sum()))(spread)
    unit = (ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)).astype(np.float64)
    unit[-1] = 0  # a row of zeros is like no other row
    logits = unit @ unit.T / 1e-4
    np.fill_diagonal(logits, -np.inf)
    normalizer = np.logaddexp.reduce(logits, axis=1)
    np.testing.assert_allclose(value, (normalizer - logits[np.arange(8), np.arange(8) ^ 1]).sum(), rtol=1e-5)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[2:7]).min() > 0


def test_info_nce_with_a_queue_and_its_gradient_equal_torch():
    """As in the pseudocode of He et al. 2020, algorithm 1: the logits are q k+ and q queue, the label is 0."""
    q, k = (torch.tensor(rows, requires_grad=True) for rows in (ROWS, KEYS))
    unit = F.normalize(q, dim=1)
    positive = (unit * F.normalize(k, dim=1)).sum(1, keepdim=True)
    logits = torch.cat([positive, unit @ F.normalize(torch.tensor(QUEUE), dim=1).T], 1) / 0.07
    each = F.cross_entropy(logits, torch.zeros(8, dtype=torch.long), reduction="none")
    (each * torch.tensor(VALID)).sum().backward()

    def ours(rows, keys):
        return losses.info_nce(rows, keys, negatives=QUEUE, temperature=0.07, valid=VALID)

    np.testing.assert_allclose(ours(ROWS, KEYS), (each * torch.tensor(VALID)).detach(), rtol=1e-5)
    gradients = quick(jax.grad(lambda *both: ours(*both).sum(), argnums=(0, 1)))(ROWS, KEYS)
    for own, other in zip(gradients, (q, k), strict=True):
        np.testing.assert_allclose(own, other.grad, rtol=1e-4, atol=1e-5)


def test_symmetric_info_nce_and_its_gradient_equal_torch():
    """As in the pseudocode of Chen, Xie and He 2021, algorithm 1: ctr(q1, k2) + ctr(q2, k1), each times 2 tau."""
    q = torch.tensor(ROWS, requires_grad=True)

    def ctr(q, k):
        logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / 0.2
        return 2 * 0.2 * F.cross_entropy(logits, torch.arange(8))

    other = torch.tensor(QUEUE[:8])
    theirs = ctr(q, torch.tensor(KEYS)) + ctr(q * 2 + other, other)
    theirs.backward()

    def ours(rows):
        return losses.symmetric_info_nce((rows, rows * 2 + QUEUE[:8]), (QUEUE[:8], KEYS), temperature=0.2).mean()

    value, gradient = quick(jax.value_and_grad(ours))(ROWS)
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, q.grad, rtol=1e-4, atol=1e-6)


def test_keys_that_are_not_valid_are_nobodys_candidates():
    options = {"temperature": 0.5, "valid": VALID}
    alone = losses.info_nce(ROWS[VALID], KEYS[VALID], temperature=0.5)
    np.testing.assert_allclose(losses.info_nce(ROWS, KEYS, **options)[VALID], alone, rtol=1e-6)


def test_the_normalized_squared_error_and_its_gradient_equal_torchs_cosine():
    """Grill et al. 2020, equation 2: 2 - 2 cos."""
    q = torch.tensor(ROWS, requires_grad=True)
    each = 2 - 2 * F.cosine_similarity(q, torch.tensor(KEYS))
    (each * torch.tensor(VALID)).sum().backward()
    spoilt = np.where(VALID[:, None], KEYS, np.inf)
    ours = lambda rows: losses.normalized_squared_error(rows, spoilt, valid=VALID)  # noqa: E731
    np.testing.assert_allclose(ours(ROWS)[VALID], each.detach()[VALID], rtol=1e-5)
    gradient = quick(jax.grad(lambda rows: ours(rows).sum()))(ROWS)
    np.testing.assert_allclose(gradient, q.grad, rtol=1e-4, atol=1e-6)


def test_uniformity_is_that_of_wang_and_isola():
    """Their figure 5 in torch: pdist of unit rows, squared, times -2, exp, mean, log."""
    unit = F.normalize(torch.tensor(ROWS[VALID]), dim=1)
    expected = torch.pdist(unit, p=2).pow(2).mul(-2).exp().mean().log()
    np.testing.assert_allclose(losses.uniformity(ROWS, VALID), expected, rtol=1e-5)
    assert float(losses.uniformity(ROWS, np.arange(8) < 1)) == 0.0


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        losses.nt_xent(ROWS, temperature=0.0)
    with pytest.raises(ValueError, match="the two views of each example below each other, got 3 rows"):
        losses.nt_xent(ROWS[:3], temperature=1.0)
    with pytest.raises(ValueError, match=r"rows must be floating of shape \(rows, width\), got int32 of shape \(8,\)"):
        losses.nt_xent(jnp.arange(8), temperature=1.0)
    with pytest.raises(ValueError, match=r"the mask of rows must be bool of shape \(8,\), got int32"):
        losses.nt_xent(ROWS, temperature=1.0, valid=jnp.arange(8))
    with pytest.raises(ValueError, match=r"rows of shape \(8, 5\) cannot be compared with others of shape \(8, 3\)"):
        losses.info_nce(ROWS, KEYS[:, :3], temperature=1.0)
    with pytest.raises(ValueError, match=r"each query needs one key, got shapes \(8, 5\) and \(7, 5\)"):
        losses.info_nce(ROWS, KEYS[:7], negatives=QUEUE, temperature=1.0)
    with pytest.raises(ValueError, match=r"predictions and targets must have one shape, got \(8, 5\) and \(2, 5\)"):
        losses.normalized_squared_error(ROWS, KEYS[:2])
