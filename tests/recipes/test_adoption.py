"""Imported parameters taken over, and what they lack drawn."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft import models, objectives
from jaxptft.recipes import adoption

FRESH = {
    "backbone": {"embeddings": {"w": jnp.zeros(2)}, "layer_0": {"w": jnp.zeros(2)}, "pooler": {"w": jnp.zeros(2)}},
    "head": {"w": jnp.zeros(2)},
}


def test_imported_parameters_are_completed_and_what_the_task_does_not_use_stays():
    fresh = {"backbone": {key: FRESH["backbone"][key] for key in ("embeddings", "layer_0")}, "head": FRESH["head"]}
    kept = {"backbone": {"layer_0": {"w": jnp.ones(2)}, "pooler": {"w": jnp.ones(2)}}}
    params, trainable = adoption.adopt(kept, fresh, "none")
    assert float(params["backbone"]["layer_0"]["w"][0]) == 1
    assert float(params["backbone"]["embeddings"]["w"][0]) == 0
    assert trainable == {
        "backbone": {"embeddings": {"w": True}, "layer_0": {"w": True}, "pooler": {"w": False}},
        "head": {"w": True},
    }
    assert adoption.fresh_pieces(fresh, kept) == ["backbone/embeddings"]


KEPT = {"backbone": {key: FRESH["backbone"][key] for key in ("embeddings", "layer_0")}}


def test_a_frozen_backbone_is_what_was_imported_of_it():
    _, trainable = adoption.adopt(KEPT, FRESH, "backbone")
    assert trainable == {
        "backbone": {"embeddings": {"w": False}, "layer_0": {"w": False}, "pooler": {"w": True}},
        "head": {"w": True},
    }
    adoption.refuse_frozen_fresh(FRESH, trainable, KEPT, model="a/model", freeze="backbone")


def test_a_parameter_that_starts_afresh_must_train():
    _, trainable = adoption.adopt(KEPT, FRESH, "backbone/**")
    with pytest.raises(ValueError, match="backbone/pooler/w is not in a/model, so it starts afresh, and freeze="):
        adoption.refuse_frozen_fresh(FRESH, trainable, KEPT, model="a/model", freeze="backbone/**")


def test_what_is_missing_is_drawn_as_it_would_be_in_the_whole():
    config = models.BertConfig(vocab_size=20, width=8, layers=2, heads=2, mlp_width=12, positions=6)
    init = objectives.classification(models.bert.classifier(config, 3)).init
    batch = {"input_ids": jnp.ones((2, 6), int), "attention_mask": jnp.ones((2, 6), int), "label": jnp.zeros(2, int)}
    whole = init(jax.random.key(0), batch)
    kept = {"backbone": {name: part for name, part in whole["backbone"].items() if name != "layer_1"}}
    counted = []

    def compiled(function):
        def run(*arguments):
            counted.append(len(jax.tree.leaves(jax.eval_shape(function, *arguments))))
            return jax.jit(function)(*arguments)

        return run

    drawn = adoption.draw_missing(init, kept, jax.random.key(0), batch, compiled=compiled)
    params, _ = adoption.adopt(kept, drawn, "none")
    chex.assert_trees_all_close(params, whole, rtol=1e-6)
    assert counted == [len(jax.tree.leaves(whole)) - len(jax.tree.leaves(kept))]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(drawn["backbone"]["layer_0"]))
    again = adoption.draw_missing(init, whole, jax.random.key(0), batch, compiled=compiled)
    assert len(counted) == 1  # where nothing is missing nothing is compiled
    np.testing.assert_equal(jax.tree.structure(again), jax.tree.structure(whole))
