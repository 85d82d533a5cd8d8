"""Masks against torch's own pruning, movement scores against numpy, and zeros that nothing brings back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.nn.utils import prune

from jaxptft import optim

KERNELS = "**/kernel"


def tree(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    return {"a": {"kernel": draw(7, 5), "bias": draw(5)}, "b": {"kernel": 3 * draw(4, 6), "bias": draw(6)}}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.93])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_masks_are_torchs(scope, sparsity):
    params = tree()
    modules = {name: torch.nn.Linear(*part["kernel"].shape[::-1]) for name, part in params.items()}
    for name, module in modules.items():
        module.weight.data = torch.tensor(np.asarray(params[name]["kernel"]))
    if scope == "global":
        places = [(module, "weight") for module in modules.values()]
        prune.global_unstructured(places, pruning_method=prune.L1Unstructured, amount=sparsity)
    else:
        for module in modules.values():
            prune.l1_unstructured(module, "weight", amount=sparsity)
    masks = optim.magnitude_masks(params, KERNELS, sparsity, scope=scope)
    for name, module in modules.items():
        np.testing.assert_array_equal(masks[name]["kernel"], module.weight_mask.numpy().astype(bool))
        assert masks[name]["bias"] is None


def test_the_order_is_that_of_the_numbers_signs_zeros_and_infinities_included():
    values = np.array([-np.inf, -3.5, -1e-38, 0.0, 1e-45, 2.0, 1e38, np.inf], np.float32)
    shuffled = np.random.default_rng(0).permutation(values)
    from jaxptft.optim.pruning import _in_order, _kth

    keys = [_in_order(jnp.asarray(shuffled[:3])), _in_order(jnp.asarray(shuffled[3:]))]
    every = np.sort(np.concatenate([np.asarray(key) for key in keys]))
    assert [int(_kth(keys, jnp.int32(k))) for k in range(8)] == every.tolist()
    np.testing.assert_array_equal(np.argsort(np.concatenate(keys)), np.argsort(shuffled))


def test_equal_magnitudes_all_stay():
    masks = optim.magnitude_masks({"kernel": jnp.ones((3, 3))}, "kernel", 0.5)
    assert masks["kernel"].all()


@pytest.mark.parametrize(
    "step, expected",
    # s (1 - (1 - (t - t0) / (t1 - t0))^3) by hand, with s = 0.8, t0 = 2, t1 = 6
    [(0, 0.0), (2, 0.0), (3, 0.8 * (1 - 0.75**3)), (4, 0.8 * (1 - 0.5**3)), (6, 0.8), (9, 0.8)],
)
def test_sparsity_rises_as_a_cubic(step, expected):
    assert float(optim.cubic_sparsity(step, sparsity=0.8, begin=2, end=6)) == pytest.approx(expected, abs=1e-6)


def losses(params, target):
    return sum(jnp.sum((leaf - other) ** 2) for leaf, other in zip(jax.tree.leaves(params), target, strict=True))


def trained(optimizer, params, steps, *, seed=1):
    """Every state of a training that pulls all weights to random targets."""
    target = jax.tree.leaves(tree(seed))
    state, seen = optimizer.init(params), []

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(losses)(params, target), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
        seen.append((params, state))
    return seen


def zeros(params) -> int:
    return sum(zero for zero, _ in optim.zeros_by_path(params, KERNELS).values())


@pytest.mark.parametrize("method", ["magnitude", "movement"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_masked_weights_are_exactly_zero_after_every_step(method, scope):
    inner = optax.adamw(0.1, weight_decay=0.3)
    optimizer = optim.pruned(inner, method=method, patterns=KERNELS, sparsity=0.5, begin=2, end=8, every=2, scope=scope)
    total, last = 59, None
    for number, (params, state) in enumerate(trained(optimizer, tree(), 12), start=1):
        for name in ("a", "b"):
            kept, kernel = np.asarray(state.masks[name]["kernel"]), np.asarray(params[name]["kernel"])
            assert (kernel[~kept] == 0).all()
            assert (kernel[kept] != 0).all()
        wanted = 0.0 if number < 2 else float(optim.cubic_sparsity(number - number % 2, sparsity=0.5, begin=2, end=8))
        shares = {path: zero / size for path, (zero, size) in optim.zeros_by_path(params, KERNELS).items()}
        if scope == "global":
            assert zeros(params) == round(wanted * total)
        else:
            assert all(abs(share - wanted) < 0.5 / 24 + 1e-6 for share in shares.values())
        if number > 8:
            assert jax.tree.all(jax.tree.map(np.array_equal, state.masks, last))
        last = state.masks
    assert zeros(params) in (round(0.5 * total), 18 + 12)  # 35 and 24 weights: 17.5 rounds to the even 18


def test_until_it_begins_and_beside_what_it_prunes_the_optimizer_is_the_inner_one():
    inner = optax.adamw(0.1, weight_decay=0.3)
    optimizer = optim.pruned(inner, method="magnitude", patterns="a/kernel", sparsity=0.5, begin=5, end=6)
    ours, plain = trained(optimizer, tree(), 8), trained(inner, tree(), 8)
    for number, ((params, _), (others, _)) in enumerate(zip(ours, plain, strict=True), start=1):
        assert jax.tree.all(jax.tree.map(np.array_equal, params["b"], others["b"]))
        assert np.array_equal(params["a"]["kernel"], others["a"]["kernel"]) == (number < 6)


def test_movement_scores_are_the_papers_and_a_weight_may_come_back():
    """Sanh et al. 2020, equation 4: S = - sum over steps of w dL/dw', in numpy; plain gradient descent beside it."""
    params, rate = {"kernel": jnp.array([[1.0, -2.0, 0.3, 4.0]])}, 0.1
    gradients = np.array([[0.5, 0.1, -1.0, 0.2], [-3.0, 0.1, -1.0, 0.2], [-3.0, 4.0, -1.0, 0.2]], np.float32)[:, None]
    optimizer = optim.pruned(optax.sgd(rate), method="movement", patterns="kernel", sparsity=0.5, begin=1, end=3)
    state = optimizer.init(params)
    weights, scores, mask = np.asarray(params["kernel"]), np.zeros((1, 4), np.float32), np.ones((1, 4), bool)
    came_back = False
    for number, gradient in enumerate(gradients, start=1):
        updates, state = optimizer.update({"kernel": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        scores = scores - weights * gradient
        weights = weights - rate * gradient * mask
        gone = int(np.round(float(optim.cubic_sparsity(number, sparsity=0.5, begin=1, end=3)) * 4))
        renewed = scores >= np.sort(scores.ravel())[gone]
        came_back |= bool((renewed & ~mask).any())
        mask = renewed
        np.testing.assert_allclose(state.scores["kernel"], scores, rtol=1e-6)
        np.testing.assert_array_equal(state.masks["kernel"], mask)
        np.testing.assert_allclose(params["kernel"], weights * mask, rtol=1e-6)
        np.testing.assert_allclose(state.held["kernel"], weights, rtol=1e-6)
    assert came_back


def test_keep_holds_the_zeros_of_the_beginning():
    params = tree()
    params["a"]["kernel"] = params["a"]["kernel"].at[::2].set(0.0)
    optimizer = optim.pruned(optax.adamw(0.1), method="keep", patterns=KERNELS)
    for after, _ in trained(optimizer, params, 4):
        assert (np.asarray(after["a"]["kernel"])[::2] == 0).all()
        assert zeros(after) == 20
    assert not np.array_equal(after["a"]["kernel"][1], params["a"]["kernel"][1])


def test_numbers_and_patterns_that_do_not_fit_are_refused():
    inner, params = optax.sgd(0.1), tree()
    with pytest.raises(ValueError, match=r"sparsity is 1\.0; expected at least 0 and below 1"):
        optim.magnitude_masks(params, KERNELS, 1.0)
    with pytest.raises(ValueError, match="matches nothing"):
        optim.magnitude_masks(params, "c/kernel", 0.5)
    with pytest.raises(ValueError, match="more than 0 and less than 1"):
        optim.pruned(inner, method="movement", patterns=KERNELS, sparsity=0.0)
    with pytest.raises(ValueError, match="begins at 5 and ends at 4"):
        optim.pruned(inner, method="magnitude", patterns=KERNELS, begin=5, end=4)
    with pytest.raises(ValueError, match="every is 0"):
        optim.pruned(inner, method="magnitude", patterns=KERNELS, end=4, every=0)
    optimizer = optim.pruned(inner, method="keep", patterns=KERNELS)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(params, state)
