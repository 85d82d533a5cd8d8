import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft.optim import merge, partition

PARAMS = {"backbone": {"kernel": np.ones((2, 2)), "bias": np.zeros(2)}, "head": [np.full(3, 2.0), None]}
MASK = {"backbone": {"kernel": False, "bias": True}, "head": [True, None]}


def test_partition_and_back():
    trainable, frozen = partition(PARAMS, MASK)
    assert trainable["backbone"]["kernel"] is None
    assert trainable["backbone"]["bias"] is PARAMS["backbone"]["bias"]
    assert frozen == {"backbone": {"kernel": PARAMS["backbone"]["kernel"], "bias": None}, "head": [None, None]}
    for whole in (merge(trainable, frozen), merge(frozen, trainable)):
        assert jax.tree.structure(whole) == jax.tree.structure(PARAMS)
        assert all(a is b for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(PARAMS), strict=True))


def test_a_mask_may_be_a_prefix():
    trainable, frozen = partition(PARAMS, {"backbone": False, "head": True})
    assert trainable["backbone"] == {"kernel": None, "bias": None}
    assert frozen["head"] == [None, None]
    assert len(jax.tree.leaves(merge(trainable, frozen))) == 3


def test_gradient_of_the_trainable_part_under_jit():
    """d sum(x^2) = 2x for trainable leaves (hand computation); none exists for the frozen one."""

    @jax.jit
    def gradient(params):
        trainable, frozen = partition(params, MASK)
        return jax.grad(lambda part: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(merge(part, frozen))))(trainable)

    result = gradient(PARAMS)
    assert result["backbone"]["kernel"] is None
    np.testing.assert_array_equal(result["head"][0], np.full(3, 4.0))


def test_errors():
    with pytest.raises(ValueError, match="both trees to merge have a leaf at 'backbone/bias'"):
        merge(PARAMS, partition(PARAMS, MASK)[0])
    with pytest.raises(ValueError, match="the trees to merge must have one structure with None for absent leaves"):
        merge({"backbone": None}, {"backbone": None, "head": 1})
    with pytest.raises(ValueError, match="different numbers of pytree children"):
        partition(PARAMS, {"backbone": True})
