"""Penalties on parameters: L2, L1, and L2 towards a pre-trained starting point, by leaf (L2-SP) or by element (EWC).
Each returns one scalar.

    l2                sum_i  w_i * ||theta_i||^2
    l1                sum_i  w_i * |theta_i|_1
    l2_to_pretrained  sum_shared  w_i * ||theta_i - theta_pre_i||^2  +  v * sum_new ||theta_i||^2
    elastic_weight    sum_ij  importance_ij * (theta_ij - theta_pre_ij)^2

L2-SP: Li, Grandvalet and Davoine 2018, arXiv:1802.01483, equations 3 and 4. The paper writes alpha/2 and beta/2; there
is no factor 1/2 here, so w = alpha / 2 and v = beta / 2. Sums, not means: they are accumulated in float32, and None
(an absent subtree) adds nothing.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Path = tuple[str, ...]


def _flatten(tree: PyTree) -> dict[Path, Any]:
    """Leaves by path; None counts as a leaf, so that what is absent still has a place."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)
    return {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in leaves}


def _prefixes(path: Path) -> Iterator[Path]:
    return (path[:length] for length in range(len(path), -1, -1))


def _spread(params: dict[Path, Any], weights: PyTree) -> dict[Path, Any]:
    """The weight of each present leaf of params; `weights` is a scalar or a tree that params' tree extends."""
    given = {path: weight for path, weight in _flatten(weights).items() if weight is not None}
    spread, used = {}, set()
    for path, leaf in params.items():
        source = next((prefix for prefix in _prefixes(path) if prefix in given), None)
        if source is not None:
            used.add(source)
            spread[path] = given[source]
        elif leaf is not None:
            raise ValueError(
                f"weights has nothing for '{'/'.join(path)}': give a float, or a tree of floats like params"
            )
    absent = {path for path, leaf in params.items() if leaf is None}
    for path in given:
        if path not in used and not any(prefix in absent for prefix in _prefixes(path)):
            raise ValueError(f"weights has '{'/'.join(path)}', which params does not have: make its tree from params")
    return spread


def _is_static_zero(weight: object) -> bool:
    return not isinstance(weight, jax.Array) and weight == 0


def _wide(leaf: Array) -> Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _weighted_sum(measure: Callable[[Array], Array], params: PyTree, weights: PyTree) -> Float[Array, ""]:
    leaves = _flatten(params)
    total = jnp.zeros((), jnp.float32)
    for path, weight in _spread(leaves, weights).items():
        leaf = leaves[path]
        if leaf is not None and not _is_static_zero(weight):
            total = total + weight * jnp.sum(measure(_wide(leaf)))
    return total


def l2(params: PyTree, weights: PyTree = 1.0) -> Float[Array, ""]:
    """Sum over leaves of weight * sum of squares (no factor 1/2).

    `weights` is a float, or a tree of floats with params' structure or a prefix of it. Leaves whose weight is a Python
    0 are not computed at all.

    Raises:
        ValueError: a leaf without weight, or a weight without leaf; the message names its path.

    >>> float(l2({"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([5.0])}, {"kernel": 2.0, "bias": 0.0}))
    50.0
    """
    return _weighted_sum(jnp.square, params, weights)


def l1(params: PyTree, weights: PyTree = 1.0) -> Float[Array, ""]:
    """Sum over leaves of weight * sum of absolute values; the gradient at 0 is 0. `weights` as in `l2`.

    Raises:
        ValueError: a leaf without weight, or a weight without leaf; the message names its path.

    >>> float(l1({"kernel": jnp.array([3.0, -4.0])}, 0.5))
    3.5
    """
    return _weighted_sum(jnp.abs, params, weights)


def l2_to_pretrained(
    params: PyTree, pretrained: PyTree, weights: PyTree = 1.0, new_weight: float = 0.0
) -> Float[Array, ""]:
    """Sum over shared leaves of weight * ||theta - theta_pre||^2, no factor 1/2; new leaves get plain L2 or nothing.

    A leaf is shared when both trees have its path; one that `pretrained` lacks (a new head) adds `new_weight` times its
    sum of squares, and one that params lacks is ignored. `weights` is as in `l2`, and is read for shared leaves only.
    `pretrained` is not differentiated.

    Raises:
        ValueError: the shapes at a path differ, or no path is shared, or a leaf without weight or the reverse.

    >>> pretrained = {"backbone": {"kernel": jnp.array([1.0, 1.0])}}
    >>> params = {"backbone": {"kernel": jnp.array([1.0, 3.0])}, "classifier": {"kernel": jnp.array([2.0])}}
    >>> float(l2_to_pretrained(params, pretrained)), float(l2_to_pretrained(params, pretrained, new_weight=0.5))
    (4.0, 6.0)
    """
    leaves = _flatten(params)
    start = {path: leaf for path, leaf in _flatten(pretrained).items() if leaf is not None}
    spread = _spread(leaves, weights)
    # A frozen leaf may be absent (None) from params: it is shared all the same, and adds nothing.
    absent = {path for path, leaf in leaves.items() if leaf is None}
    shared = [path for path in start if leaves.get(path) is not None]
    if not shared and not any(prefix in absent for path in start for prefix in _prefixes(path)):
        raise ValueError(
            f"params and pretrained share no leaf: params has {_some(leaves)}, pretrained has {_some(start)}; "
            "give both the same layout"
        )
    for path in shared:
        here, there = jnp.shape(leaves[path]), jnp.shape(start[path])
        if here != there:
            raise ValueError(
                f"'{'/'.join(path)}' has shape {here} in params and {there} in pretrained: drop it from one"
            )

    total = jnp.zeros((), jnp.float32)
    for path, leaf in leaves.items():
        if leaf is None:
            continue
        weight = spread[path] if path in start else new_weight
        if _is_static_zero(weight):
            continue
        difference = _wide(leaf)
        if path in start:
            difference = difference - jax.lax.stop_gradient(_wide(start[path]))
        total = total + weight * jnp.sum(jnp.square(difference))
    return total


def elastic_weight(params: PyTree, reference: PyTree, importance: PyTree) -> Float[Array, ""]:
    """Sum of importance * (theta - theta_ref)^2, element by element, no factor 1/2.

    Kirkpatrick et al. 2017, arXiv:1612.00796, equation 3, has lambda / 2 * F in place of importance, F the diagonal of
    the Fisher information at `reference`: give lambda / 2 times F here, or a weight of lambda / 2 outside.

    `importance` says which leaves count: those it has. A leaf of params that is None (frozen, so it has not moved) adds
    nothing. `reference` and `importance` are not differentiated.

    Raises:
        ValueError: a path of `importance` that params or `reference` lacks, or shapes that differ at a path.

    >>> float(elastic_weight({"w": jnp.array([1.0, 4.0])}, {"w": jnp.array([0.0, 1.0])}, {"w": jnp.array([2.0, 0.5])}))
    6.5
    """
    leaves, start = _flatten(params), _flatten(reference)
    absent = {path for path, leaf in leaves.items() if leaf is None}
    total = jnp.zeros((), jnp.float32)
    for path, weight in _flatten(importance).items():
        if weight is None or any(prefix in absent for prefix in _prefixes(path)):
            continue
        name = "/".join(path)
        for tree, where in ((leaves, "params"), (start, "the reference")):
            if tree.get(path) is None:
                raise ValueError(f"importance has '{name}', which {where} does not have: make all three from one model")
            if jnp.shape(tree[path]) != jnp.shape(weight):
                raise ValueError(
                    f"'{name}' has shape {jnp.shape(tree[path])} in {where} and {jnp.shape(weight)} in the importance: "
                    "make all three from one model"
                )
        difference = _wide(leaves[path]) - jax.lax.stop_gradient(_wide(start[path]))
        total = total + jnp.sum(jax.lax.stop_gradient(_wide(weight)) * jnp.square(difference))
    return total


def _some(leaves: dict[Path, Any]) -> str:
    names = ["/".join(path) for path in leaves]
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
