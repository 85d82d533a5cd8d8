"""A parameter tree in two parts, and back.

Differentiating only the trainable part is what makes frozen parameters cost nothing: no gradient, no moment, no update.
Both parts keep the whole tree's structure, with None where the other part has the leaf, so their paths stay the same
and JAX sees fewer leaves, not smaller ones.
"""

import jax
from jaxtyping import PyTree


def partition(params: PyTree, mask: PyTree[bool]) -> tuple[PyTree, PyTree]:
    """`(trainable, frozen)`: the leaves where the mask is True, and the others, each with None in the other's places.

    The mask is a tree of Python bools with params' structure or a prefix of it. Leaves are passed on, not copied.

    Raises:
        ValueError: the mask's structure is no prefix of params' (raised by JAX).

    >>> partition({"backbone": 1, "classifier": 2}, {"backbone": False, "classifier": True})
    ({'backbone': None, 'classifier': 2}, {'backbone': 1, 'classifier': None})
    """
    full = jax.tree.map(lambda keep, part: jax.tree.map(lambda _: bool(keep), part), mask, params)
    trainable = jax.tree.map(lambda keep, leaf: leaf if keep else None, full, params)
    frozen = jax.tree.map(lambda keep, leaf: None if keep else leaf, full, params)
    return trainable, frozen


def merge(first: PyTree, second: PyTree) -> PyTree:
    """The inverse of `partition`: at each place the leaf of the tree that has one, None where neither has.

    Raises:
        ValueError: both trees have a leaf at the same place, or their structures differ.

    >>> merge({"backbone": None, "classifier": 2}, {"backbone": 1, "classifier": None})
    {'backbone': 1, 'classifier': 2}
    """

    def is_absent(leaf: object) -> bool:
        return leaf is None

    left, structure = jax.tree_util.tree_flatten_with_path(first, is_leaf=is_absent)
    right, other = jax.tree.flatten(second, is_leaf=is_absent)
    if structure != other:
        raise ValueError(
            f"the trees to merge must have one structure with None for absent leaves, got {structure} and {other}"
        )
    for (path, leaf), twin in zip(left, right, strict=True):
        if leaf is not None and twin is not None:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"both trees to merge have a leaf at '{name}': take it out of one")
    return jax.tree.unflatten(
        structure, [twin if leaf is None else leaf for (_, leaf), twin in zip(left, right, strict=True)]
    )
