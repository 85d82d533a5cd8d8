"""Layers that are scanned, or computed again, against the same layers run one by one, of every family.

What runs one by one is compared with torch in the families' own tests.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_close, assert_trees_all_equal

from jaxptft import models, optim

TEXT = {"vocab_size": 30, "width": 8, "heads": 2, "mlp_width": 12, "positions": 10}
IMAGE = {"image_size": 8, "patch_size": 4, "width": 8, "heads": 2, "mlp_width": 12}
DROPS = {"dropout": 0.3, "attention_dropout": 0.2}
BERT = models.BertConfig(**TEXT, layers=4, **DROPS)
CASES = {
    "bert": (BERT, "masked_lm"),
    "albert": (replace(BERT, layer_groups=1, embedding_width=4), "masked_lm"),
    "albert of groups": (replace(BERT, layers=5, layer_groups=2), "classification"),
    "modernbert": (
        models.ModernBertConfig(
            **TEXT, layers=5, local_attention=2, pad_id=0, mlp_dropout=0.3, attention_dropout=0.2, norm_bias=True
        ),
        "masked_lm",
    ),
    "gpt2": (models.Gpt2Config(**TEXT, layers=3, scale_attention=False, residual_dropout=0.3), "causal_lm"),
    "vit": (models.VitConfig(**IMAGE, layers=3, **DROPS), "classification"),
    "mae": (
        models.MaeConfig(
            **IMAGE, layers=3, decoder_width=4, decoder_heads=2, decoder_layers=2, decoder_mlp_width=6, **DROPS
        ),
        "pretraining",
    ),
    "beit": (models.BeitConfig(**IMAGE, layers=3, relative_positions=True, **DROPS), "classification"),
}
WAYS = {
    "scan": {"scan_layers": True},
    "scan and remat": {"scan_layers": True, "remat": "full"},
    "remat": {"remat": "dots"},
}
DRAW = np.random.default_rng(0)
IDS = DRAW.integers(1, 30, (3, 7)).astype(np.int32)
MASK = np.array([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]], np.int32)
IMAGES = DRAW.normal(size=(3, 8, 8, 3)).astype(np.float32)


def batch_of(config):
    return {"image": IMAGES} if models.reads_images(config) else {"input_ids": IDS, "attention_mask": MASK}


def built(config, task, **options):
    return models.build(config, task, classes=4 if task == "classification" else None, **options)


@cache
def params_of(name):
    """Every parameter random, so that no two layers compute the same."""
    config, task = CASES[name]
    shapes = jax.eval_shape(built(config, task).init, jax.random.key(0), batch_of(config))
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape) * 0.3, jnp.float32), shapes)


def loss_of(config, task, *, train=True, **options):
    model, batch = built(config, task, **options), batch_of(config)

    def loss(params):
        result = model.apply(params, batch, rng=jax.random.key(3), train=train)
        return jnp.square(result - 0.5).mean(), result

    return loss


@cache
def one_by_one(name):
    (_, result), gradient = jax.jit(jax.value_and_grad(loss_of(*CASES[name]), has_aux=True))(params_of(name))
    return result, gradient


# Unscanned, the families differ in nothing that remat sees: one each of layers alike, shared and of two kinds.
PAIRS = [(name, way) for name in CASES for way in WAYS if way != "remat" or name in ("bert", "albert of groups")]
QUICK = {("bert", "scan and remat"), ("gpt2", "scan")}


def marked(pairs):
    """Each is compiled twice: some every day, the others too where there is time."""
    return [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(("name", "way"), marked([*PAIRS, ("modernbert", "remat")]))
def test_outputs_and_gradients_are_those_of_layers_one_by_one_with_the_same_dropout(name, way):
    config, task = CASES[name]
    loss = loss_of(replace(config, **WAYS[way]), task)
    (_, result), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params_of(name))
    expected, expected_gradient = one_by_one(name)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    assert_trees_all_close(gradient, expected_gradient, rtol=1e-3, atol=1e-6)
    still = built(config, task).apply(params_of(name), batch_of(config))
    assert np.abs(expected - still).max() > 1e-2  # dropout changes what is compared


@pytest.mark.parametrize("name", CASES)
def test_fresh_parameters_are_the_same_and_each_layers_own(name):
    config, task = CASES[name]
    one, other = (
        built(changed, task).init(jax.random.key(0), batch_of(config))
        for changed in (config, replace(config, scan_layers=True, remat="full"))
    )
    assert_trees_all_equal(one, other)
    stored = getattr(config, "layer_groups", None) or config.layers
    assert {key for key in other["backbone"] if key.startswith("layer_")} == {f"layer_{i}" for i in range(stored)}


def products(config, task, **options):
    """How many matrix products a program holds."""
    model, batch = built(config, task, **options), batch_of(config)
    params = jax.eval_shape(model.init, jax.random.key(0), batch)
    return str(jax.make_jaxpr(lambda params: model.apply(params, batch))(params)).count(" dot_general[")


@pytest.mark.parametrize("name", ["bert", "albert", "gpt2", "vit", "beit"])
def test_a_deeper_program_holds_no_more_layers(name):
    config, task = CASES[name]
    scanned = replace(config, scan_layers=True)
    counts = [products(replace(scanned, layers=layers), task) for layers in (3, 9)]
    assert counts[0] == counts[1]
    one = products(replace(config, layers=1), task)
    assert products(replace(config, layers=9), task) - one == 8 * (products(replace(config, layers=2), task) - one)
    assert counts[0] == one


def test_layers_of_both_kinds_are_one_body_in_modernbert_but_for_the_first():
    config, task = CASES["modernbert"]
    counts = [products(replace(config, layers=layers, scan_layers=True), task) for layers in (3, 9)]
    assert counts[0] == counts[1] == products(replace(config, layers=2), task)


NAMES = ["bert", "albert of groups", "modernbert", "gpt2", "vit", "beit"]


@pytest.mark.parametrize(("name", "way"), marked([(name, way) for name in NAMES for way in WAYS]))
def test_what_layers_leave_behind_is_the_same_in_the_same_order(name, way):
    config, task = CASES[name]
    expected, found = (
        built(changed, task, outputs=models.OUTPUTS).apply(params_of(name), batch_of(config))
        for changed in (config, replace(config, **WAYS[way]))
    )
    assert found.keys() == expected.keys()
    assert expected["attention"].shape[0] == config.layers
    for kind in expected:
        np.testing.assert_allclose(found[kind], expected[kind], rtol=1e-4, atol=1e-5, err_msg=kind)


def test_frozen_layers_are_a_scan_of_their_own_that_nothing_differentiates():
    config, task = CASES["bert"]
    params = params_of("bert")
    trainable = optim.trainable_mask(params, "backbone/{embeddings,layer_0,layer_1}/**")
    learnt, frozen = optim.partition(params, trainable)

    def slope(config):
        loss = loss_of(config, task, frozen_layers=2)
        return jax.grad(lambda learnt: loss(optim.merge(learnt, frozen))[0])

    scanned = replace(config, scan_layers=True)
    assert_trees_all_close(jax.jit(slope(scanned))(learnt), jax.jit(slope(config))(learnt), rtol=1e-3, atol=1e-6)
    program = str(jax.make_jaxpr(slope(scanned))(learnt))
    assert program.count("reverse=False") == 2  # forward, below and above
    assert program.count("reverse=True") == 1  # back, above alone


def test_a_part_that_is_frozen_in_all_layers_gets_no_gradient_in_the_scan():
    """As under BitFit: the products that kernels' gradients are made of are not in the program."""
    config, task = CASES["bert"]
    params = params_of("bert")
    mask = jax.tree.map_with_path(lambda path, _: path[-1].key == "bias", params)

    def count(mask):
        learnt, frozen = optim.partition(params, mask)
        loss = loss_of(replace(config, scan_layers=True), task)
        program = jax.make_jaxpr(jax.grad(lambda learnt: loss(optim.merge(learnt, frozen))[0]))(learnt)
        return str(program).count(" dot_general[")

    kernels = 6  # of a layer
    assert count(mask) <= count(jax.tree.map(lambda _: True, params)) - kernels


@pytest.mark.parametrize("scan_layers", [False, True])
def test_remat_keeps_less_for_the_backward_pass(scan_layers):
    config, task = CASES["bert"]

    def kept(remat):
        loss = loss_of(replace(config, scan_layers=scan_layers, remat=remat), task)
        residuals = jax.eval_shape(lambda params: jax.vjp(lambda p: loss(p)[0], params)[1], params_of("bert"))
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    sizes = [kept(remat) for remat in ("full", "dots_no_batch", "dots", "none")]
    assert sizes == sorted(set(sizes))


def test_entered_midway_the_layers_above_are_the_same():
    config, task = CASES["gpt2"]
    scanned, params, batch = replace(config, scan_layers=True), params_of("gpt2"), batch_of(CASES["gpt2"][0])
    hidden = jax.jit(models.features(scanned, stop=1))(params, batch)
    np.testing.assert_allclose(hidden, models.features(config, stop=1)(params, batch), rtol=1e-4, atol=1e-5)
    above = models.build(scanned, task, start=1).apply(params, {**batch, "hidden": hidden})
    np.testing.assert_allclose(above, models.build(config, task).apply(params, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [case[0] for case in CASES.values()], ids=list(CASES))
def test_other_ways_are_refused(config):
    kind = type(config).__name__
    with pytest.raises(ValueError, match=f"{kind}.remat must be one of none, full, dots, dots_no_batch, got 'some'"):
        replace(config, remat="some")
    with pytest.raises(ValueError, match=f"{kind}.scan_layers must be True or False, got 1"):
        replace(config, scan_layers=1)


def test_layers_that_divide_by_their_number_are_not_scanned():
    config = models.Gpt2Config(**TEXT, layers=2, scale_by_layer=True)
    with pytest.raises(ValueError, match="scan_layers runs layers that compute alike, and under scale_by_layer each"):
        replace(config, scan_layers=True)
    other = replace(config, remat="full")
    params = built(config, "causal_lm").init(jax.random.key(0), batch_of(config))
    expected, found = (built(own, "causal_lm").apply(params, batch_of(config)) for own in (config, other))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
