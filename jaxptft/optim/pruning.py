"""Pruning while training: masks over matrices, kept in the optimizer's state, that hold weights at exactly zero.

    magnitude   the smallest weights go (Han et al. 2015, arXiv:1506.02626), more and more of them: after t of n steps
                s_t = s (1 - (1 - t / n)^3) of all are zero (Zhu and Gupta 2017, arXiv:1710.01878, equation 1)
    movement    those go that the gradient moves towards zero: the scores S <- S - w dL/dw' are kept at the top, where
                w' = mask * w is what the model computes with; w of a masked weight is kept, and comes back when its
                score does (Sanh et al. 2020, arXiv:2005.07683, sections 3 and 4, straight-through)
    keep        what is zero at the start stays so

The scores' own learning rate in the paper is a constant factor, which changes no order; so it is left out.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxptft.optim.patterns import mask, paths
from jaxptft.optim.split_tree import merge, partition

Method = Literal["magnitude", "movement", "keep"]
Scope = Literal["global", "layer"]


class Pruned(NamedTuple):
    """The state of `pruned`; trees have None for leaves that no pattern matches."""

    count: Int[Array, ""]  # updates so far
    masks: PyTree[Bool[Array, "..."]]  # False: exactly zero
    scores: PyTree | None  # of movement
    held: PyTree | None  # of movement: the weights behind the masks
    inner: PyTree


def cubic_sparsity(step: int | Int[Array, ""], *, sparsity: float, begin: int, end: int) -> Float[Array, ""]:
    """The share of weights that are zero after so many steps: 0 before `begin`, `sparsity` from `end` on.

    Source: Zhu and Gupta 2017, equation 1, with an initial sparsity of 0.
    """
    gone = jnp.clip((step - begin) / max(1, end - begin), 0.0, 1.0)
    return jnp.where(step >= end, sparsity, sparsity * (1 - (1 - gone) ** 3))


def magnitude_masks(
    params: PyTree, patterns: str | Sequence[str], sparsity: float, *, scope: Scope = "global"
) -> PyTree[Bool[Array, "..."]]:
    """False at the share of smallest magnitudes among the matched leaves, None at leaves that are not matched.

    `global` compares weights of all leaves, `layer` those of each leaf alone. Of equal magnitudes all stay.

    Raises:
        ValueError: a pattern matches nothing, or the sparsity is not in [0, 1).

    >>> magnitude_masks({"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]])}, "kernel", 0.5)["kernel"].tolist()
    [[True, False], [False, True]]
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; expected at least 0 and below 1")
    return _largest(jax.tree.map(jnp.abs, _chosen(params, patterns)[0]), sparsity, scope)


def pruned(
    inner: optax.GradientTransformation,
    *,
    method: Method,
    patterns: str | Sequence[str],
    sparsity: float = 0.5,
    begin: int = 0,
    end: int = 0,
    every: int = 1,
    scope: Scope = "global",
) -> optax.GradientTransformation:
    """`inner`, after each update of which the masked weights of the matched leaves are exactly zero.

    The gradient of a masked weight does not reach `inner`, nor do its moments, weight decay or penalties bring it back.
    Masks are made anew `every` so many updates from `begin` on, and at `end`, with the sparsity of `cubic_sparsity`;
    from then on they stay. Under `magnitude` what was masked remains so; under `movement` it may come back until then.

    Raises:
        ValueError: at `init`, a pattern matches nothing; here, numbers that do not fit.
    """
    if method != "keep":
        if not 0 < sparsity < 1:
            raise ValueError(f"sparsity is {sparsity}; expected more than 0 and less than 1")
        if not 0 <= begin <= end:
            raise ValueError(f"pruning begins at {begin} and ends at {end}; expected 0 <= begin <= end")
        if every < 1:
            raise ValueError(f"every is {every}; expected at least 1")
    moves = method == "movement"

    def init(params: PyTree) -> Any:
        own, _ = _chosen(params, patterns)
        masks = jax.tree.map(lambda w: w != 0 if method == "keep" else jnp.ones(w.shape, bool), own)
        zeros = jax.tree.map(jnp.zeros_like, own) if moves else None
        return Pruned(jnp.zeros((), jnp.int32), masks, zeros, own if moves else None, inner.init(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("pruning needs the parameters: give them to update")
        (weights, others), (gradient, other_gradient) = (_chosen(tree, patterns) for tree in (params, updates))
        if state.held is not None:
            weights_behind = _where(state.masks, weights, state.held)
        else:
            weights_behind = weights
        live = jax.tree.map(lambda g, kept: jnp.where(kept, g, 0), gradient, state.masks)
        steps, inner_state = inner.update(merge(live, other_gradient), state.inner, merge(weights_behind, others))
        own_steps, other_steps = _chosen(steps, patterns)
        moved = jax.tree.map(jnp.add, weights_behind, own_steps)
        count, scores = state.count + 1, state.scores
        if moves:
            scores = jax.tree.map(lambda s, w, g: s - w * g, scores, weights_behind, gradient)
            keys = scores
        else:  # what is zero is below all others
            keys = jax.tree.map(lambda w, kept: jnp.where(kept, jnp.abs(w), -1.0), moved, state.masks)
        masks = state.masks
        if method != "keep":
            due = (count >= begin) & (count <= end) & (((count - begin) % every == 0) | (count == end))
            share = cubic_sparsity(count, sparsity=sparsity, begin=begin, end=end)
            masks = jax.lax.cond(due, lambda: _largest(keys, share, scope), lambda: state.masks)
            if not moves:
                masks = jax.tree.map(jnp.logical_and, masks, state.masks)
        changes = jax.tree.map(
            lambda kept, was, step, now, w: jnp.where(kept, jnp.where(was, step, now), -w),
            *(masks, state.masks, own_steps, moved, weights),
        )
        held = moved if moves else None
        return merge(changes, other_steps), Pruned(count, masks, scores, held, inner_state)

    return optax.GradientTransformation(init, update)


def zeros_by_path(params: PyTree, patterns: str | Sequence[str]) -> dict[str, tuple[int, int]]:
    """How many weights of each matched leaf are zero, and how many it has, by its path."""
    own, _ = _chosen(params, patterns)
    found = jax.device_get([jnp.sum(leaf == 0) for leaf in jax.tree.leaves(own)])
    sizes = [leaf.size for leaf in jax.tree.leaves(own)]
    return {path: (int(zero), size) for path, zero, size in zip(paths(own), found, sizes, strict=True)}


def _chosen(tree: PyTree, patterns: str | Sequence[str]) -> tuple[PyTree, PyTree]:
    return partition(tree, mask(tree, patterns))


def _where(masks: PyTree, first: PyTree, second: PyTree) -> PyTree:
    return jax.tree.map(jnp.where, masks, first, second)


def _largest(values: PyTree[Float[Array, "..."]], sparsity: float | Float[Array, ""], scope: Scope) -> PyTree:
    """True at all but the share of smallest values."""
    keys, structure = jax.tree.flatten(jax.tree.map(_in_order, values))
    groups = [keys] if scope == "global" else [[key] for key in keys]
    masks = []
    for group in groups:
        total = sum(key.size for key in group)
        least = _kth(group, jnp.minimum(jnp.round(sparsity * total).astype(jnp.int32), total - 1))
        masks += [key >= least for key in group]
    return jax.tree.unflatten(structure, masks)


def _in_order(x: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Integers in the order of the numbers: a float's bits are its magnitude's, behind the sign."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.where(bits >= 0, bits, bits ^ np.int32(2**31 - 1))


def _kth(keys: Sequence[Int[Array, "..."]], k: Int[Array, ""]) -> Int[Array, ""]:
    """The one that k others are below, of all together: bit by bit, which unlike sorting needs no memory."""

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)
        enough = sum(jnp.sum(key <= middle, dtype=jnp.int32) for key in keys) > k
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    limits = jnp.iinfo(jnp.int32)
    bounds = (jnp.int32(limits.min), jnp.int32(limits.max))
    return jax.lax.fori_loop(0, 32, halve, bounds)[1]
