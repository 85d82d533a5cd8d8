import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.losses import elastic_weight, l1, l2, l2_to_pretrained


def _tree(seed):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "backbone": {"layer_0": {"kernel": draw(3, 4), "bias": draw(4)}, "pooler": {"kernel": draw(4, 4)}},
        "classifier": {"kernel": draw(4, 2)},
    }


WEIGHTS = {
    "backbone": {"layer_0": {"kernel": 0.5, "bias": 0.0}, "pooler": 2.0},  # the last one stands for a subtree
    "classifier": {"kernel": 3.0},
}


@pytest.mark.parametrize("penalty, power", [(l2, 2), (l1, 1)])
def test_norms_equal_torch(penalty, power):
    params = _tree(0)
    value, gradient = jax.value_and_grad(penalty)(params, WEIGHTS)
    leaves = [torch.tensor(leaf, requires_grad=True) for leaf in jax.tree.leaves(params)]
    weights = [0.0, 0.5, 2.0, 3.0]  # bias, kernel, pooler, classifier: the order of jax.tree.leaves
    expected = sum(weight * (leaf.abs() ** power).sum() for weight, leaf in zip(weights, leaves, strict=True))
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(gradient), leaves, strict=True):
        np.testing.assert_allclose(ours, theirs.grad, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        penalty(params, 0.1), 0.1 * sum((np.abs(leaf) ** power).sum() for leaf in jax.tree.leaves(params)), rtol=1e-6
    )


def test_l2_to_pretrained_equals_torch():
    """The equations written out in torch, gradients too: two shared kernels, a new head, a head that was dropped."""
    params, pretrained = _tree(0), _tree(1)
    del pretrained["classifier"]
    pretrained["mlm"] = {"kernel": np.ones((9, 9), np.float32)}
    value, gradient = jax.value_and_grad(l2_to_pretrained)(params, pretrained, WEIGHTS, 0.25)

    layer, start = params["backbone"], pretrained["backbone"]
    kernel, pooler = (
        torch.tensor(x, requires_grad=True) for x in (layer["layer_0"]["kernel"], layer["pooler"]["kernel"])
    )
    head = torch.tensor(params["classifier"]["kernel"], requires_grad=True)
    expected = (
        0.5 * (kernel - torch.tensor(start["layer_0"]["kernel"])).square().sum()
        + 2.0 * (pooler - torch.tensor(start["pooler"]["kernel"])).square().sum()
        + 0.25 * head.square().sum()
    )
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient["backbone"]["layer_0"]["kernel"], kernel.grad, rtol=1e-6)
    np.testing.assert_allclose(gradient["backbone"]["pooler"]["kernel"], pooler.grad, rtol=1e-6)
    np.testing.assert_allclose(gradient["classifier"]["kernel"], head.grad, rtol=1e-6)
    assert (gradient["backbone"]["layer_0"]["bias"] == 0.0).all()


def test_at_the_start_only_new_leaves_count():
    params = _tree(0)
    pretrained = {"backbone": params["backbone"]}
    assert l2_to_pretrained(params, pretrained) == 0.0
    np.testing.assert_allclose(
        l2_to_pretrained(params, pretrained, new_weight=1.0), np.square(params["classifier"]["kernel"]).sum(), rtol=1e-6
    )


def test_pretrained_is_not_differentiated():
    gradient = jax.grad(l2_to_pretrained, argnums=1)(_tree(0), _tree(1))
    assert all((leaf == 0.0).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("absent", [{"layer_0": None}, {"layer_0": {"kernel": None, "bias": None}}])
def test_absent_leaves_add_nothing(absent):
    """A tree with None, as a split into trainable and frozen leaves gives, costs what its present leaves cost."""
    params, pretrained = _tree(0), _tree(1)
    del pretrained["classifier"]
    partial = {**params, "backbone": {**params["backbone"], **absent}}
    present = {"backbone": {"pooler": params["backbone"]["pooler"]}, "classifier": params["classifier"]}
    assert l2(partial, WEIGHTS) == l2(present, {"backbone": {"pooler": 2.0}, "classifier": 3.0})
    assert l1(partial) == l1(present)
    assert l2_to_pretrained(partial, pretrained) == l2_to_pretrained(present, pretrained)
    # A backbone that is frozen throughout is still the shared part: no error, nothing to add.
    assert l2_to_pretrained({"backbone": None, "classifier": params["classifier"]}, pretrained) == 0.0
    assert l2_to_pretrained(params, {**pretrained, "classifier": None}, new_weight=0.0) > 0.0


def _operations(function, *arguments):
    return str(jax.make_jaxpr(function)(*arguments)).count("reduce_sum")


def test_static_zero_weights_cost_nothing():
    """Sums in the jaxpr: one for each leaf with a weight, none for a weight of 0; a traced weight always counts."""
    params, pretrained = _tree(0), _tree(1)
    assert _operations(lambda p: l2(p, WEIGHTS), params) == 3
    assert _operations(lambda p: l2(p, 0.0), params) == 0
    assert _operations(lambda p: l2_to_pretrained(p, pretrained, WEIGHTS), params) == 3
    assert _operations(lambda p, w: l2(p, w), params, 0.0) == 4
    assert l2(params, 0.0) == 0.0


def test_bfloat16_is_accumulated_in_float32():
    """Hand computation: 4,096 ones; a bfloat16 sum stops at 256."""
    params = {"kernel": jnp.ones(4096, jnp.bfloat16)}
    for penalty in (l2(params), l1(params), l2_to_pretrained(params, {"kernel": jnp.zeros(4096)})):
        assert penalty.dtype == jnp.float32
        assert penalty == 4096.0


def test_weights_errors():
    params = _tree(0)
    with pytest.raises(ValueError, match="weights has nothing for 'classifier/kernel'"):
        l2(params, {"backbone": 1.0})
    with pytest.raises(ValueError, match="weights has 'clasifier', which params does not have"):
        l1(params, {"backbone": 1.0, "classifier": 1.0, "clasifier": 1.0})


def test_pretrained_errors():
    params = _tree(0)
    with pytest.raises(
        ValueError, match=r"'classifier/kernel' has shape \(4, 2\) in params and \(4, 3\) in pretrained"
    ):
        l2_to_pretrained(params, {**_tree(1), "classifier": {"kernel": np.zeros((4, 3))}})
    with pytest.raises(
        ValueError,
        match=r"share no leaf: params has 'backbone/layer_0/bias', .* and 1 more, pretrained has 'bert/kernel'",
    ):
        l2_to_pretrained(params, {"bert": {"kernel": np.zeros(3)}})


def test_elastic_weight_equals_torch_and_passes_over_what_has_no_importance():
    params, start = _tree(0), _tree(1)
    importance = jax.tree.map(np.square, {"backbone": _tree(2)["backbone"]})
    importance["backbone"]["pooler"]["kernel"] = None
    value, gradient = jax.value_and_grad(elastic_weight)(params, start, importance)
    leaves, theirs = {}, 0.0
    for name in ("kernel", "bias"):
        leaf = torch.tensor(params["backbone"]["layer_0"][name], requires_grad=True)
        difference = leaf - torch.tensor(start["backbone"]["layer_0"][name])
        theirs = theirs + (torch.tensor(importance["backbone"]["layer_0"][name]) * difference**2).sum()
        leaves[name] = leaf
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-6)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(gradient["backbone"]["layer_0"][name], leaf.grad, rtol=1e-5)
    assert not gradient["backbone"]["pooler"]["kernel"].any()
    assert not gradient["classifier"]["kernel"].any()


def test_elastic_weight_of_ones_is_l2_to_pretrained_and_a_frozen_leaf_adds_nothing():
    params, start = _tree(0), _tree(1)
    ones = jax.tree.map(np.ones_like, start)
    np.testing.assert_allclose(elastic_weight(params, start, ones), l2_to_pretrained(params, start), rtol=1e-6)
    partly = params | {"backbone": None}
    expected = np.square(params["classifier"]["kernel"] - start["classifier"]["kernel"]).sum()  # numpy
    np.testing.assert_allclose(elastic_weight(partly, start, ones), expected, rtol=1e-6)


def test_elastic_weight_refuses_trees_of_different_models():
    params = _tree(0)
    with pytest.raises(ValueError, match="importance has 'mlm/kernel', which params does not have"):
        elastic_weight(params, params, {"mlm": {"kernel": np.ones(2)}})
    lacking = {"backbone": params["backbone"]}
    with pytest.raises(ValueError, match="'classifier/kernel', which the reference does not have"):
        elastic_weight(params, lacking, {"classifier": {"kernel": np.ones((4, 2))}})
    with pytest.raises(ValueError, match=r"has shape \(4, 2\) in params and \(4, 3\) in the importance"):
        elastic_weight(params, params, {"classifier": {"kernel": np.ones((4, 3))}})
