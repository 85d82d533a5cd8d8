"""The plan of a run: its settings, what they come to, and resuming on either side of a stage's first step."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft import data, optim
from jaxptft.recipes import finetune, settings, training_plan
from jaxptft.recipes.training_settings import PlanRule, PlanSettings

TREE = {
    "backbone": {
        "embeddings": {"w": jnp.zeros(2)},
        "layer_0": {"kernel": jnp.zeros(2), "bias": jnp.zeros(2)},
        "layer_1": {"kernel": jnp.zeros(2), "bias": jnp.zeros(2)},
        "pooler": {"kernel": jnp.zeros(2), "bias": jnp.zeros(2)},
    },
    "classifier": {"kernel": jnp.zeros(2)},
}
EVERYTHING = optim.trainable_mask(TREE, "none")


def settled(values, multipliers=(), steps=100, trainable=EVERYTHING):
    chosen = settings.build(PlanSettings, values)
    return training_plan.settle(chosen, TREE, trainable, multipliers=dict(multipliers), steps=steps)


def test_all_settings_hold_together():
    values = {
        "plan": {"**/layer_1/kernel": {"rate": 0.5, "decay": 0.1}, "backbone/embeddings/**": "frozen"},
        "layer_decay": 0.5,
        "unfreeze": {"every": 0.1},
    }
    rules = settled(values, {"classifier/**": 3.0}).rules
    assert rules["backbone/layer_1/kernel"] == optim.Rule(rate=0.125, decay=0.1, unfreeze=10)  # 0.5 * 0.5^2, by hand
    assert rules["backbone/layer_0/bias"] == optim.Rule(rate=0.125, decay=0.0, unfreeze=20)
    assert rules["backbone/pooler/kernel"] == optim.Rule(rate=0.5)
    assert rules["classifier/kernel"] == optim.Rule(rate=3.0)
    assert rules["backbone/embeddings/w"] is None
    biases = settled(values | {"plan": {}, "bitfit": True}, {"classifier/**": 3.0})
    assert {path for path, rule in biases.rules.items() if rule} == {
        *(f"backbone/{piece}/bias" for piece in ("layer_0", "layer_1", "pooler")), "classifier/kernel"
    }  # fmt: skip
    assert training_plan.unfrozen_at(biases, 10) == ["backbone/layer_1"]
    assert training_plan.count_trainable(TREE, biases.mask(10)) == 6


def test_adapters_go_by_the_rules_of_their_layers():
    adapter = {"kernel": {"a": jnp.zeros(2), "b": jnp.zeros(2)}}
    params = TREE | {"lora": {"backbone": {"layer_0": adapter, "layer_1": adapter}}}
    trainable = optim.trainable_mask(params, "backbone/**")
    chosen = settings.build(PlanSettings, {"layer_decay": 0.5, "unfreeze": {"every": 10}})
    table = training_plan.settle(chosen, params, trainable, multipliers={}, steps=100)
    assert table.rules["lora/backbone/layer_1/kernel/a"] == optim.Rule(rate=0.25, unfreeze=10)  # 0.5^2, by hand
    assert table.rules["lora/backbone/layer_0/kernel/b"] == optim.Rule(rate=0.125, unfreeze=20)
    assert table.rules["backbone/layer_1/kernel"] is None
    assert training_plan.unfrozen_at(table, 20) == ["lora/backbone/layer_0"]
    chosen = settings.build(PlanSettings, {"plan": {"backbone/layer_0/**": "frozen", "lora/**": {"rate": 0.5}}})
    with_own = training_plan.settle(chosen, params, trainable, multipliers={}, steps=100).rules
    assert with_own["lora/backbone/layer_0/kernel/a"] == optim.Rule(rate=0.5)  # the first match wins
    chosen = settings.build(PlanSettings, {"plan": {"backbone/layer_0/**": "frozen"}})
    rules = training_plan.settle(chosen, params, trainable, multipliers={}, steps=100).rules
    assert rules["lora/backbone/layer_0/kernel/a"] is None
    assert rules["lora/backbone/layer_1/kernel/a"] == optim.Rule()


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"plan": {"backbone/**": "frozn"}}, r"backbone/\*\* must be frozen, or have a rate, decay or unfreeze"),
        ({"plan": {"backbone/**": 3}}, r"backbone/\*\* must be frozen, or have a rate"),
        ({"plan": {"backbone/**": {1: 2}}}, r"backbone/\*\* must be frozen, or have a rate"),
        ({"plan": {"backbone/**": {"raet": 1}}}, r"plan, backbone/\*\*: unknown key 'raet'; did you mean 'rate'\?"),
        ({"plan": {"backbone/**": "raet=1"}}, r"plan, backbone/\*\*: unknown key 'raet'; did you mean 'rate'\?"),
        ({"plan": {"backbone/**": {"rate": 0}}}, "'rate' is 0: Input should be greater than 0"),
        ({"plan": {"backbone/**": {"unfreeze": True}}}, "'unfreeze' is True: Input should be a number"),
        ({"plan": ["backbone/**"]}, "'plan' is .*: Input should be a valid dictionary"),
        ({"layer_decay": 1.5}, "'layer_decay' is 1.5: Input should be less than or equal to 1"),
        ({"unfreeze": {"every": 3, "at": [1]}}, "both unfreeze.every and unfreeze.at are given; give one"),
        ({"unfreeze": {"at": [True]}}, r"'unfreeze\.at' is \[True\]: Input should be numbers"),
        ({"unfreeze": {"at": [5, 3]}}, "unfreeze.at must rise from 0 on, got 5, 3"),
        ({"unfreeze": {"every": 100}}, "unfreeze changes nothing: it begins at step 100, after the last of 100 steps"),
        ({"plan": {"**/leyer_0/**": "frozen"}}, r"pattern '\*\*/leyer_0/\*\*' matches nothing"),
        ({"plan": {"**": "frozen"}}, "the plan leaves nothing to train"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_in_one_line(values, expected):
    with pytest.raises(ValueError, match=expected) as raised:
        settled(values)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("values", [{"bitfit": True}, {"layer_decay": 0.9}, {"unfreeze": {"at": [3]}}])
def test_what_contradicts_freeze_is_refused(values):
    with pytest.raises(ValueError, match="changes nothing: all that it is about stays frozen; leave it out"):
        settled(values, trainable=optim.trainable_mask(TREE, "backbone"))


def test_a_multiplier_of_what_is_frozen_is_refused():
    with pytest.raises(ValueError, match=r"optimizer\.multipliers: all that 'backbone/\*\*' matches stays frozen"):
        settled({}, {"backbone/**": 0.5}, trainable=optim.trainable_mask(TREE, "backbone"))


def test_a_plan_survives_yaml():
    values = {"plan": {"backbone/pooler/**": "frozen", "backbone/**": "rate=0.5,unfreeze=10", "**": {"decay": 0.0}}}
    chosen = settings.build(PlanSettings, values | {"unfreeze": {"at": [2, 4]}, "freeze": ["a/**", "b/**"]})
    assert chosen.plan["backbone/**"] == PlanRule(rate=0.5, unfreeze=10)
    assert type(chosen.plan["backbone/**"].unfreeze) is int  # pyright: ignore[reportAttributeAccessIssue]
    assert settings.build(PlanSettings, chosen.model_dump(mode="json")) == chosen
    assert chosen.freeze == "a/**,b/**"


def test_what_starts_afresh_must_train_at_some_time():
    imported = {"backbone": {key: TREE["backbone"][key] for key in ("embeddings", "layer_0", "layer_1")}}
    rule = {"plan": {"backbone/pooler/kernel": "frozen"}}
    with pytest.raises(
        ValueError, match="backbone/pooler/kernel is not in the imported model, so it starts afresh, and"
    ):
        training_plan.refuse_fresh(settled(rule), imported)
    training_plan.refuse_fresh(settled({"unfreeze": {"every": 10}}), imported)


class Killed(BaseException):
    """Stands for SIGKILL."""


# Of the encoder, by hand: width 16, MLP width 24, 19 words, two token types, two classes; positions are frozen.
LAYER, POOLER, HEAD = 4 * 272 + 2 * 32 + 17 * 24 + 25 * 16, 272, 34
TABLES = (19 + 2) * 16 + 32

PLANNED = {
    "packing": "off",  # whose batches are asked for before the run
    "length_buckets": 1,
    "checkpoint_every": 1,
    "log_every": 1,
    "dropout": 0.1,
    "layer_decay": 0.8,
    "unfreeze": {"at": [2, 4]},
    "plan": {"backbone/embeddings/position/**": "frozen", "**/up/kernel": {"rate": 2.0, "decay": 0.1}},
}


@pytest.fixture(scope="module")
def planned(fine_tune, tmp_path_factory):
    """A run with three stages: the head; the one layer there is; the embeddings."""
    return fine_tune(tmp_path_factory.mktemp("runs") / "planned", **PLANNED)


def test_a_run_goes_through_its_stages(planned, lines_of, tensors_of, encoder):
    assert lines_of(planned.out, "stage") == [
        {"step": 2, "kind": "stage", "unfrozen": ["backbone/layer_0"], "trainable_parameters": LAYER + POOLER + HEAD},
        {
            "step": 4,
            "kind": "stage",
            "unfrozen": ["backbone/embeddings"],
            "trainable_parameters": TABLES + LAYER + POOLER + HEAD,
        },
    ]
    before, after = tensors_of(encoder), tensors_of(planned.out / "model")
    name = "embeddings.position_embeddings.weight"
    assert after[f"bert.{name}"].tobytes() == before[name].tobytes()
    assert planned.trainable == TABLES + LAYER + POOLER + HEAD
    recorded = settings.build(finetune.Config, settings.read_yaml(planned.out / "config.yaml"))
    assert recorded.plan == planned.config.plan


@pytest.mark.parametrize("killed", [(1, 2, 3), pytest.param((4, 4, 5), marks=pytest.mark.slow)], ids=str)
def test_killed_at_and_around_a_boundary_it_ends_with_the_same_bits(killed, planned, fine_tune, tmp_path, monkeypatch):
    out, batch_at = tmp_path / "run", data.Batches.batch_at
    for attempt, until in enumerate(killed):
        seen = []

        def dying(batches, step, until=until, seen=seen):
            # The first batch is looked at when the state is made; the loop asks for it again.
            if batches.shuffle and step == until and (until or seen):
                raise Killed
            seen.append(step)
            return batch_at(batches, step)

        with monkeypatch.context() as patch:
            patch.setattr(data.Batches, "batch_at", dying)
            with pytest.raises(Killed):
                fine_tune(out, **PLANNED, resume=attempt > 0)
    fine_tune(out, **PLANNED, resume=True)
    for name in ("metrics.jsonl", "model/model.safetensors", "report.json"):
        assert (out / name).read_bytes() == (planned.out / name).read_bytes(), name


def test_another_plan_on_resume_is_refused(planned, refused):
    complaint = refused("finetune", "--resume", "--out", planned.out, "--layer-decay", "0.7")
    assert "layer_decay is 0.7, but the run in" in complaint


@pytest.fixture(scope="module")
def short(fine_tune, tmp_path_factory):
    """Two steps under pmap, the layer unfrozen at the second, the embeddings after the last."""
    out = tmp_path_factory.mktemp("runs") / "short"
    return fine_tune(
        out, steps=2, evaluate_every=2, length_buckets=1, unfreeze={"every": 0.5}, parallel="pmap", log_every=1
    )


def test_pmap_goes_through_the_stages_too(short, lines_of, tensors_of, encoder):
    assert [line["unfrozen"] for line in lines_of(short.out, "stage")] == [["backbone/layer_0"]]
    before, after = tensors_of(encoder), tensors_of(short.out / "model")
    moved = {name for name, tensor in before.items() if np.any(tensor != after[f"bert.{name}"])}
    assert {name.split(".")[0] for name in moved} == {"encoder", "pooler"}


def test_what_is_never_reached_is_said_and_not_counted(short):
    assert "note: backbone/embeddings would be unfrozen at step 2, and the run ends at 2" in short.said
    assert short.trainable == LAYER + POOLER + HEAD


def test_fractions_of_another_length_are_another_plan(short, refused):
    complaint = refused("finetune", "--resume", "--out", short.out, "--steps", "4")
    assert "was trained with another plan (" in complaint
