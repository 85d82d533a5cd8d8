"""What every training recipe shares: depths that are frozen, and configs changed."""

from dataclasses import replace

import jax.numpy as jnp
import pytest

from jaxptft import models, objectives, optim
from jaxptft.recipes import computing, settings, training
from jaxptft.recipes.training_settings import LearningSettings


@pytest.mark.parametrize(
    ("groups", "freeze", "depth"),
    [
        (None, "none", None),
        (None, "backbone/{embeddings,layer_0}/**", 1),
        (None, "backbone", 3),
        (1, "backbone/embeddings/**", 0),
        (1, "backbone/{embeddings,layer_0}/**", 2),
        (1, "backbone", 3),
    ],
)
def test_the_frozen_depth_counts_the_models_layers_not_the_stored_ones(groups, freeze, depth):
    config = models.BertConfig(vocab_size=9, width=4, layers=2, heads=1, mlp_width=4, layer_groups=groups)
    backbone = {f"layer_{index}": {"w": 0} for index in range(groups or 2)}
    params = {"backbone": {"embeddings": {"w": 0}, **backbone, "pooler": {"w": 0}}, "classifier": {"w": 0}}
    trainable = optim.trainable_mask(params, freeze)
    assert training.frozen_depth(trainable, config) == depth
    models.build(config, "classification", classes=2, frozen_layers=depth)  # which refuses a depth it does not have


def test_one_dropout_replaces_every_rate_and_leaves_what_is_no_rate():
    config = models.BertConfig(vocab_size=9, width=4, layers=1, heads=1, mlp_width=4)
    changed = computing.computed_with(config, dtype="bfloat16", dropout=0.3)
    assert (changed.dropout, changed.attention_dropout, changed.dtype) == (0.3, 0.3, "bfloat16")
    assert changed.head_dropout is None  # that is, dropout's
    assert changed.classifier_input_dropout is True
    assert computing.computed_with(config, dtype="float32") == config


def test_each_stage_has_its_own_objective_and_all_the_same_constants():
    params = {"backbone": {name: {"w": jnp.zeros(2)} for name in ("embeddings", "layer_0", "pooler")}}
    params["head"] = {"w": jnp.zeros(2)}
    table = optim.timetable(params, optim.gradual_unfreezing(params, at=(2, 9)))
    objective = objectives.lift(lambda *_: {}, init=lambda *_: params, constants={"w": jnp.zeros(2)})
    seen = []

    def of_stage(learns):
        seen.append(optim.frozen_prefix(learns))
        return objective

    assert list(training._by_stage(of_stage, table, 9)) == [0, 2]  # step 9 is after the last of nine
    assert seen == [1, 0]  # the embeddings and one layer; the embeddings alone
    assert training._by_stage(objective, table, 10) == dict.fromkeys((0, 2, 9), objective)

    def other_constants(learns):
        size = 2 if learns["backbone"]["layer_0"]["w"] else 3
        return objective._replace(constants={"w": jnp.zeros(size)})

    with pytest.raises(ValueError, match="the objective of the stage from step 2 has other constants than the first's"):
        training._by_stage(other_constants, table, 10)


def test_a_run_s_settings_say_how_the_model_is_computed(tmp_path):
    config = models.BertConfig(vocab_size=9, width=4, layers=1, heads=1, mlp_width=4)
    given = {"out": str(tmp_path), "dropout": 0.3, "dtype": "bfloat16"}
    said = []
    plain = computing.computed_as(config, settings.build(LearningSettings, given), said.append)
    assert plain == computing.computed_with(config, dtype="bfloat16", dropout=0.3)
    assert not said
    asked = settings.build(LearningSettings, given | {"scan_layers": True, "remat": "dots"})
    assert computing.computed_as(config, asked, said.append) == replace(plain, scan_layers=True, remat="dots")
    assert said == ["layers: scanned, remat dots"]


@pytest.mark.parametrize("way", [{"scan_layers": True}, {"remat": "full"}])
def test_layers_of_what_is_no_transformer_run_one_by_one(way, tmp_path):
    asked = settings.build(LearningSettings, {"out": str(tmp_path)} | way)
    with pytest.raises(
        ValueError, match=f"{next(iter(way))} is for transformers, and the model is of kind Conv; leave"
    ):
        computing.computed_as(models.ConvConfig(), asked, print)
