"""Softmax cross-entropy with integer or soft labels, label smoothing, class weights and ignored positions.

    loss = - sum_c  w_c * t_c * log softmax(logits)_c        t = (1 - s) * label + s / classes

`cross_entropy` gives the loss of each position and `cross_entropy_weights` what each position counts in the mean, so
that `sum(cross_entropy(...)) / sum(cross_entropy_weights(...))` is `torch.nn.functional.cross_entropy` with
`reduction="mean"`. Ignored positions are 0 in both.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer
from numpy.typing import ArrayLike

Labels = Integer[Array, "*batch"] | Float[Array, "*batch classes"]


def _counted(
    labels: Array, ignore_index: int | None, valid: Bool[Array, "*batch"] | None
) -> Bool[Array, "*batch"] | None:
    """Where a position counts; None means everywhere, and spares the selects."""
    counted = None
    if valid is not None:
        counted = jnp.asarray(valid)
        expected = labels.shape[:-1] if jnp.issubdtype(labels.dtype, jnp.floating) else labels.shape
        if counted.dtype != jnp.bool_ or counted.shape != expected:
            raise ValueError(
                f"valid must be bool of shape {expected}, one for each position, "
                f"got {counted.dtype} of shape {counted.shape}"
            )
    if ignore_index is not None:
        if jnp.issubdtype(labels.dtype, jnp.floating):
            raise ValueError("ignore_index needs integer labels, got soft ones: mark the positions with valid= instead")
        kept = labels != ignore_index
        counted = kept if counted is None else counted & kept
    return counted


def _check(logits: Array, labels: Array, label_smoothing: ArrayLike) -> None:
    if logits.ndim == 0 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"logits must be floating with classes as the last axis, got {logits.dtype} of shape {logits.shape}"
        )
    soft = jnp.issubdtype(labels.dtype, jnp.floating)
    if not soft and not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integer (class numbers) or floating (probabilities), got {labels.dtype}")
    expected = logits.shape if soft else logits.shape[:-1]
    if labels.shape != expected:
        kind = "soft (floating)" if soft else "integer"
        raise ValueError(
            f"{kind} labels must have shape {expected} for logits of shape {logits.shape}, got {labels.shape}"
        )
    if isinstance(label_smoothing, int | float) and not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")


def _class_weights(class_weights: ArrayLike | None, classes: int | None) -> Float[Array, " classes"] | None:
    if class_weights is None:
        return None
    weights = jnp.asarray(class_weights, jnp.float32)
    if weights.ndim != 1 or (classes is not None and weights.shape != (classes,)):
        wanted = "(classes,)" if classes is None else f"({classes},)"
        raise ValueError(f"class_weights must have shape {wanted}, one for each class, got {weights.shape}")
    return weights


def _log_probabilities_parts(logits: Float[Array, "*batch classes"]) -> tuple[Array, Array]:
    """`shifted` and `normalizer`, with log softmax = shifted - normalizer.

    The maximum is taken away from every logit first: `logsumexp(logits) - logits[label]`, as optax has it, loses all
    digits below 1e-3 once logits reach 1e4.
    """
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    shifted = logits - top
    return shifted, jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))


@jax.custom_jvp
def _of_labels(
    logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], counted: Bool[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """-log softmax(logits)[label] where `counted`, else 0; NaN where the label is no class.

    The slope is written out, softmax - onehot, because it is then one pass over the logits, from which alone it
    follows: differentiating the steps above takes five passes and four arrays as large.
    """
    shifted, normalizer = _log_probabilities_parts(logits)
    inside = _inside(labels, logits.shape[-1])
    chosen = jnp.take_along_axis(shifted, jnp.where(inside, labels, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(counted, jnp.where(inside, normalizer - chosen, jnp.nan), 0.0)


@_of_labels.defjvp
def _of_labels_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    logits, labels, counted = primals
    shifted, normalizer = _log_probabilities_parts(logits)
    own = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    slope = jnp.exp(shifted - normalizer[..., None]) - own
    # Selected, not multiplied: NaN and inf at uncounted positions stay out of the gradient.
    slope = jnp.where((counted & _inside(labels, logits.shape[-1]))[..., None], slope, 0.0)
    return _of_labels(logits, labels, counted), jnp.sum(slope * tangents[0], axis=-1)


def _inside(labels: Integer[Array, "*batch"], classes: int) -> Bool[Array, "*batch"]:
    return (labels >= 0) & (labels < classes)


def cross_entropy_weights(
    labels: Labels,
    *,
    class_weights: Float[Array, " classes"] | None = None,
    ignore_index: int | None = None,
    valid: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """What each position counts in the mean of `cross_entropy`: the divisor is the sum of these.

    An integer label counts its class weight (1 without `class_weights`), a soft label counts 1 whatever the class
    weights, an ignored position counts 0: the rules of `torch.nn.functional.cross_entropy(reduction="mean")`.
    Arguments are those of `cross_entropy`; the result never depends on logits.

    Raises:
        ValueError: class_weights or valid has another shape, or ignore_index came with soft labels.

    >>> cross_entropy_weights(jnp.array([1, 0, -100]), class_weights=jnp.array([2.0, 3.0]), ignore_index=-100).tolist()
    [3.0, 2.0, 0.0]
    """
    labels = jnp.asarray(labels)
    soft = jnp.issubdtype(labels.dtype, jnp.floating)
    counted = _counted(labels, ignore_index, valid)
    weights = _class_weights(class_weights, labels.shape[-1] if soft else None)
    if soft or weights is None:
        result = jnp.ones(labels.shape[:-1] if soft else labels.shape, jnp.float32)
    else:
        result = weights.at[labels].get(mode="clip")
    return result if counted is None else jnp.where(counted, result, 0.0)


def cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Labels,
    *,
    label_smoothing: float = 0.0,
    class_weights: Float[Array, " classes"] | None = None,
    ignore_index: int | None = None,
    valid: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Softmax cross-entropy of each position, in nats, unreduced; equal to torch's with `reduction="none"`.

    Labels are class numbers when their dtype is integer, probabilities when it is floating. Positions where `valid` is
    False, or whose label is `ignore_index`, give exactly 0 and send back exactly no gradient, whatever their logits
    and labels. A class whose logit is -inf is impossible: it takes no part, in label smoothing neither (whose share
    goes to the possible classes). A label outside [0, classes) at a counted position gives NaN, never another
    class's loss. bfloat16 and float16 logits are accumulated in float32, and the result is float32.

    Raises:
        ValueError: shapes or dtypes that do not fit, label_smoothing outside [0, 1], ignore_index with soft labels.

    Label smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7.

    >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
    >>> [round(loss, 4) for loss in cross_entropy(logits, jnp.array([0, 1])).tolist()]
    [0.1269, 0.6931]
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    _check(logits, labels, label_smoothing)
    classes = logits.shape[-1]
    weights = _class_weights(class_weights, classes)
    counted = _counted(labels, ignore_index, valid)
    smooth = not isinstance(label_smoothing, int | float) or label_smoothing > 0.0

    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if not smooth and jnp.issubdtype(labels.dtype, jnp.integer):
        everywhere = jnp.ones(labels.shape, bool) if counted is None else counted
        loss = _of_labels(logits, labels, everywhere)
        return loss if weights is None else loss * weights[jnp.where(_inside(labels, classes), labels, 0)]
    if counted is not None:
        # Selecting before the softmax, not after, is what keeps NaN and inf out of the gradient.
        logits = jnp.where(counted[..., None], logits, 0.0)
    shifted, normalizer = _log_probabilities_parts(logits)
    possible = logits > -jnp.inf

    if jnp.issubdtype(labels.dtype, jnp.floating):
        targets = labels.astype(logits.dtype)
        if counted is not None:
            targets = jnp.where(counted[..., None], targets, 0.0)
        if smooth:
            share = possible / jnp.sum(possible, axis=-1, keepdims=True)
            targets = (1.0 - label_smoothing) * targets + label_smoothing * share
        weighted = targets if weights is None else targets * weights
        # 0 * -inf is NaN: an impossible class that the label rules out as well adds nothing.
        negative_log = jnp.where(possible | (targets != 0.0), normalizer[..., None] - shifted, 0.0)
        loss = jnp.sum(weighted * negative_log, axis=-1)
    else:
        inside = _inside(labels, classes)
        index = jnp.where(inside, labels, 0)
        loss = normalizer - jnp.take_along_axis(shifted, index[..., None], axis=-1)[..., 0]
        if weights is not None:
            loss = loss * weights[index]
        spread = jnp.where(possible, normalizer[..., None] - shifted, 0.0)
        spread = jnp.sum(spread if weights is None else spread * weights, axis=-1) / jnp.sum(possible, axis=-1)
        loss = (1.0 - label_smoothing) * loss + label_smoothing * spread
        loss = jnp.where(inside, loss, jnp.nan)
    return loss if counted is None else jnp.where(counted, loss, 0.0)
