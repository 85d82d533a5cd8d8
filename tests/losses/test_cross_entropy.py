import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.losses import cross_entropy, cross_entropy_weights

CLASSES = 5


def _case(seed, scale=1.0, batch=(3, 4)):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(*batch, CLASSES))).astype(np.float32)
    labels = rng.integers(0, CLASSES, size=batch)
    soft = rng.dirichlet(np.ones(CLASSES), size=batch).astype(np.float32)
    weights = rng.uniform(0.2, 3.0, size=CLASSES).astype(np.float32)
    return logits, labels, soft, weights


def _torch(logits, labels, reduction, upstream=None, **options):
    """torch's loss and its gradient in the logits; torch wants the classes second, so positions are flattened."""
    leaf = torch.tensor(logits, requires_grad=True)
    labels = torch.tensor(labels)
    labels = labels.reshape(-1, CLASSES) if labels.is_floating_point() else labels.reshape(-1)
    loss = torch.nn.functional.cross_entropy(leaf.reshape(-1, CLASSES), labels, reduction=reduction, **options)
    (loss.sum() if upstream is None else (loss * torch.tensor(upstream).reshape(-1)).sum()).backward()
    return loss.detach().numpy(), leaf.grad.numpy()


@pytest.mark.parametrize(
    "soft, weighted, smoothing, ignoring",
    [case for case in itertools.product([0, 1], [0, 1], [0.0, 0.1, 1.0], [0, 1]) if not (case[0] and case[3])],
)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_equals_torch(soft, weighted, smoothing, ignoring, scale):
    """Values and gradients against torch, for reduction none and mean."""
    logits, hard, probabilities, weights = _case(0, scale)
    labels = probabilities if soft else hard
    options, torch_options = {}, {"label_smoothing": smoothing}
    if weighted:
        options["class_weights"] = jnp.asarray(weights)
        torch_options["weight"] = torch.tensor(weights)
    if ignoring:
        labels = labels.copy()
        labels[0, :2] = -100
        options["ignore_index"] = torch_options["ignore_index"] = -100

    upstream = np.random.default_rng(1).normal(size=hard.shape).astype(np.float32)
    value, pullback = jax.vjp(lambda x: cross_entropy(x, labels, label_smoothing=smoothing, **options), logits)
    expected, expected_gradient = _torch(logits, labels, "none", upstream, **torch_options)
    np.testing.assert_allclose(value.reshape(-1), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pullback(upstream)[0], expected_gradient, rtol=1e-5, atol=1e-6)

    def mean(x):
        total = cross_entropy(x, labels, label_smoothing=smoothing, **options).sum()
        return total / cross_entropy_weights(labels, **options).sum()

    value, gradient = jax.value_and_grad(mean)(logits)
    expected, expected_gradient = _torch(logits, labels, "mean", **torch_options)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_small_differences_survive_large_logits():
    """Hand computation: both classes at 1e4 and 1e4 + 1 give log(1 + exp(-1)) and log(1 + e)."""
    loss = cross_entropy(jnp.array([[1e4, 1e4 + 1.0]] * 2), jnp.array([1, 0]))
    np.testing.assert_allclose(loss, [np.log1p(np.exp(-1.0)), np.log1p(np.e)], rtol=1e-6)


@pytest.mark.parametrize("fill", [1e30, np.inf, np.nan])
def test_ignored_positions_are_exactly_zero(fill):
    logits, labels, soft, weights = _case(2)
    valid = np.ones(labels.shape, bool)
    valid[1, 1:3] = False
    logits[~valid] = fill
    labels[~valid] = 10**6  # no class: harmless where ignored
    soft[~valid] = np.nan
    for targets in (labels, soft):
        for smoothing in (0.0, 0.2):
            loss, pullback = jax.vjp(
                lambda x, t=targets, s=smoothing: cross_entropy(
                    x, t, label_smoothing=s, class_weights=weights, valid=jnp.asarray(valid)
                ),
                logits,
            )
            (gradient,) = pullback(np.ones(labels.shape, np.float32))
            assert (np.asarray(loss)[~valid] == 0.0).all()
            assert (np.asarray(gradient)[~valid] == 0.0).all()
            assert np.isfinite(loss).all()
            assert np.isfinite(gradient).all()
            expected, _ = _torch(
                logits[valid], targets[valid], "none", label_smoothing=smoothing, weight=torch.tensor(weights)
            )
            np.testing.assert_allclose(np.asarray(loss)[valid], expected, rtol=1e-5)


def test_valid_and_ignore_index_together():
    logits, labels, _, _ = _case(3)
    labels[0, 0] = 4
    valid = np.ones(labels.shape, bool)
    valid[2, 3] = False
    counts = np.asarray(cross_entropy_weights(labels, ignore_index=4, valid=valid))
    np.testing.assert_array_equal(counts, ((labels != 4) & valid).astype(np.float32))  # numpy
    np.testing.assert_array_equal(
        np.asarray(cross_entropy(logits, labels, ignore_index=4, valid=valid)) == 0, counts == 0
    )


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_impossible_class_is_as_if_deleted(soft, smoothing):
    """A class at -inf gives the loss and gradient of torch without that column, and no gradient itself."""
    logits, labels, probabilities, weights = _case(4, batch=(6,))
    kept = [0, 1, 2, 4]
    logits[:, 3] = -np.inf
    labels = np.where(labels == 3, 0, labels)
    probabilities[:, 3] = 0.0
    targets = probabilities if soft else labels
    reduced = torch.tensor(logits[:, kept], requires_grad=True)
    renumbered = torch.tensor(probabilities[:, kept] if soft else np.searchsorted(kept, labels))
    expected = torch.nn.functional.cross_entropy(
        reduced, renumbered, torch.tensor(weights[kept]), reduction="none", label_smoothing=smoothing
    )
    expected.sum().backward()

    def total(x):
        loss = cross_entropy(x, targets, label_smoothing=smoothing, class_weights=weights)
        return loss.sum(), loss

    gradient, loss = jax.grad(total, has_aux=True)(logits)
    np.testing.assert_allclose(loss, expected.detach(), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(gradient)[:, kept], reduced.grad, rtol=1e-5, atol=1e-6)
    assert (np.asarray(gradient)[:, 3] == 0.0).all()


def test_label_on_an_impossible_class_is_infinite():
    """By definition -log 0; torch agrees."""
    logits = jnp.array([[0.0, -jnp.inf]])
    assert cross_entropy(logits, jnp.array([1]))[0] == jnp.inf
    assert cross_entropy(logits, jnp.array([[0.5, 0.5]]))[0] == jnp.inf


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_label_that_is_no_class_gives_nan(label):
    assert np.isnan(cross_entropy(jnp.zeros((1, CLASSES)), jnp.array([label]))).all()


def test_bfloat16_is_accumulated_in_float32():
    """Against the float32 loss of the same, already rounded, logits; 4,096 classes would be lost in bfloat16 sums."""
    logits = jnp.asarray(np.random.default_rng(5).normal(size=(4, 4096)), jnp.bfloat16)
    labels = jnp.array([0, 1, 2, 4095])
    for smoothing in (0.0, 0.1):
        loss = cross_entropy(logits, labels, label_smoothing=smoothing)
        assert loss.dtype == jnp.float32
        expected = torch.nn.functional.cross_entropy(
            torch.tensor(np.asarray(logits, np.float32)),
            torch.tensor(np.asarray(labels), dtype=torch.long),
            reduction="none",
            label_smoothing=smoothing,
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    gradient = jax.grad(lambda x: cross_entropy(x, labels).sum())(logits)
    assert gradient.dtype == jnp.bfloat16


def test_soft_labels_are_differentiated():
    """d loss / d label_c = -log p_c also where the label is 0 (log_softmax of jax)."""
    logits = jnp.array([1.0, -2.0, 0.5])
    gradient = jax.grad(lambda labels: cross_entropy(logits, labels))(jnp.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(gradient, -jax.nn.log_softmax(logits), rtol=1e-6)


def test_weights_of_soft_labels_count_positions():
    """torch divides soft labels by the number of positions, whatever the class weights."""
    soft = jnp.full((2, 3), 1 / 3)
    np.testing.assert_array_equal(cross_entropy_weights(soft, class_weights=jnp.array([9.0, 9.0, 9.0])), [1.0, 1.0])
    np.testing.assert_array_equal(cross_entropy_weights(soft, valid=jnp.array([True, False])), [1.0, 0.0])


def test_traced_smoothing():
    """One program for many smoothings gives what the static ones give."""
    logits, labels, _, _ = _case(6)
    traced = jax.jit(lambda s: cross_entropy(logits, labels, label_smoothing=s))
    for smoothing in (0.0, 0.3):
        np.testing.assert_allclose(
            traced(smoothing), cross_entropy(logits, labels, label_smoothing=smoothing), rtol=1e-6
        )


LOGITS, LABELS = jnp.zeros((2, 3)), jnp.array([0, 1])


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((jnp.zeros((2, 3), int), LABELS), {}, r"logits must be floating .* got int32 of shape \(2, 3\)"),
        ((jnp.zeros(()), LABELS), {}, r"logits must be floating .* got float32 of shape \(\)"),
        ((LOGITS, jnp.array([True, False])), {}, "labels must be integer .* got bool"),
        ((LOGITS, jnp.array([0, 1, 2])), {}, r"integer labels must have shape \(2,\) for logits .* got \(3,\)"),
        ((LOGITS, jnp.zeros((2, 3), int)), {}, r"integer labels must have shape \(2,\)"),
        ((LOGITS, jnp.zeros(2)), {}, r"soft \(floating\) labels must have shape \(2, 3\) .* got \(2,\)"),
        ((LOGITS, LABELS), {"label_smoothing": -0.1}, r"label_smoothing must lie in \[0, 1\], got -0.1"),
        ((LOGITS, LABELS), {"label_smoothing": 1.5}, "label_smoothing must lie"),
        ((LOGITS, LABELS), {"class_weights": jnp.ones(2)}, r"class_weights must have shape \(3,\).* got \(2,\)"),
        (
            (LOGITS, LABELS),
            {"valid": jnp.ones(3, bool)},
            r"valid must be bool of shape \(2,\).* got bool of shape \(3,\)",
        ),
        ((LOGITS, LABELS), {"valid": jnp.ones(2)}, "valid must be bool .* got float32"),
        ((LOGITS, jnp.zeros((2, 3))), {"ignore_index": 0}, "ignore_index needs integer labels"),
    ],
)
def test_errors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(*arguments, **options)


def test_weights_error():
    with pytest.raises(ValueError, match=r"class_weights must have shape \(classes,\)"):
        cross_entropy_weights(LABELS, class_weights=jnp.ones((2, 2)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_forward_mode_and_second_derivatives_are_those_of_the_formula(dtype):
    """The slope is written out by hand; JAX differentiates log_softmax for comparison."""
    rng = np.random.default_rng(0)
    logits, other = jnp.asarray(rng.standard_normal((2, 6, 5)) * 3, dtype)
    labels, valid = jnp.asarray(rng.integers(0, 5, 6)), jnp.asarray([True, True, False, True, True, True])

    def ours(logits):
        return cross_entropy(logits, labels, valid=valid).sum()

    def plain(logits):
        found = jax.nn.log_softmax(logits.astype(jnp.float32))[jnp.arange(6), labels]
        return -jnp.where(valid, found, 0.0).sum()

    for value, expected in zip(jax.jvp(ours, (logits,), (other,)), jax.jvp(plain, (logits,), (other,)), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    if dtype == "float32":
        np.testing.assert_allclose(jax.hessian(ours)(logits), jax.hessian(plain)(logits), atol=1e-6)
    batched = jax.vmap(jax.grad(ours))(jnp.stack([logits, other]))
    np.testing.assert_allclose(batched[1].astype("f4"), jax.grad(plain)(other).astype("f4"), rtol=2e-2, atol=1e-6)
