"""What a plan comes to: rules that hold together, the plans made for any model, and plans that are refused."""

import collections

import jax
import numpy as np
import pytest
import transformers

from jaxptft import models, optim
from jaxptft.optim import Plan, Rule

BATCH = {name: np.ones((2, 8), np.int32) for name in ("input_ids", "attention_mask", "token_type_ids")}
SHAPE = {"vocab_size": 50, "width": 16, "layers": 3, "heads": 2, "mlp_width": 24, "positions": 12}
CONFIGS = {
    "bert": models.BertConfig(**SHAPE),
    "albert": models.BertConfig(**SHAPE, layer_groups=1, embedding_width=8),
    "gpt2": models.Gpt2Config(**SHAPE),
    "modernbert": models.ModernBertConfig(**SHAPE, pad_id=0),
}


@pytest.fixture(scope="module")
def shapes():
    """A function: family -> the shapes of a classifier's parameters."""

    def of(family):
        return jax.eval_shape(models.build(CONFIGS[family], "classification", classes=2).init, jax.random.key(0), BATCH)

    return of


def rates_of(table):
    """The rates of each piece of the model, by plain string tests."""
    found = collections.defaultdict(set)
    for path, rule in table.rules.items():
        head, *rest = path.split("/")
        found[f"{head}/{rest[0]}" if head == "backbone" else head].add(rule.rate)
    return found


def get_layer_lrs(learning_rate, layer_decay, n_layers):
    """As in google-research/electra, model/optimization.py."""
    key_to_depths = {"/embeddings/": 0, "/embeddings_project/": 0, "task_specific/": n_layers + 2}
    for layer in range(n_layers):
        key_to_depths["encoder/layer_" + str(layer) + "/"] = layer + 1
    return {key: learning_rate * (layer_decay ** (n_layers + 2 - depth)) for key, depth in key_to_depths.items()}


@pytest.mark.parametrize(("family", "layers", "above"), [
    ("bert", 3, "backbone/pooler"),
    ("albert", 1, "backbone/pooler"),  # stored once, and so at one rate
    ("gpt2", 3, "backbone/final_norm"),
    ("modernbert", 3, "backbone/final_norm"),
])  # fmt: skip
def test_layer_decay_gives_electras_rates(family, layers, above, shapes):
    params = shapes(family)
    rates = rates_of(optim.timetable(params, optim.layer_decay(params, 0.8)))
    expected = get_layer_lrs(1.0, 0.8, layers)
    assert rates["backbone/embeddings"] == {expected["/embeddings/"]}  # the projection's, where there is one, included
    for layer in range(layers):
        assert rates[f"backbone/layer_{layer}"] == {expected[f"encoder/layer_{layer}/"]}
    assert rates[above] == {0.8}  # the depth that is left between the last layer and the head
    assert {rate for piece in rates if not piece.startswith("backbone") for rate in rates[piece]} == {1.0}
    assert expected["task_specific/"] == 1.0


@pytest.mark.parametrize("freeze", ["none", "backbone", "all-but-top-2", "backbone/embeddings/**,**/bias"])
def test_the_words_of_freeze_are_plans_too(freeze, shapes):
    params = shapes("bert")
    words = {"none": (), "backbone": optim.head_only(params), "all-but-top-2": optim.top_layers(params, 2)}
    plan = optim.frozen(words.get(freeze, freeze.split(",")))
    table = optim.timetable(params, plan)
    assert table.ever == optim.trainable_mask(params, freeze) == table.stages[0]
    assert list(table.stages) == [0]
    assert optim.timetable(params, [], trainable=optim.trainable_mask(params, freeze)).rules == table.rules


def test_bitfit_trains_what_its_paper_names():
    """Section 3: the biases of queries, keys, values, attention output, both MLP layers and both norms, and the task's
    classification layer; which in torch are the names with "bias", and the classifier (as in their code)."""
    config = CONFIGS["bert"]
    params = jax.eval_shape(models.build(config, "classification", classes=2).init, jax.random.key(0), BATCH)
    table = optim.timetable(params, optim.bias_only(params))
    trained = {path for path, rule in table.rules.items() if rule is not None}
    in_a_layer = {path.removeprefix("backbone/layer_1/") for path in trained if "layer_1" in path}
    assert in_a_layer == {
        *(f"attention/{name}/bias" for name in ("query", "key", "value", "output")),
        *("attention_norm/bias", "mlp/up/bias", "mlp/down/bias", "mlp_norm/bias"),
    }
    theirs = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=12,
        )
    )  # fmt: skip
    named = {name: tensor.numel() for name, tensor in theirs.named_parameters()}
    chosen = [size for name, size in named.items() if "bias" in name or name.startswith("classifier")]
    sizes = dict(zip(optim.paths(params), (leaf.size for leaf in jax.tree.leaves(params)), strict=True))
    assert (len(trained), sum(sizes[path] for path in trained)) == (len(chosen), sum(chosen))


def unfrozen(table):
    """By stage, the pieces that begin to train with it."""
    found = collections.defaultdict(set)
    for path, rule in table.rules.items():
        if rule is not None:
            names = path.split("/")
            found[rule.unfreeze].add(names[1] if names[0] == "backbone" else names[0])
    return dict(found)


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("bert", {"every": 10}, {0: {"pooler", "classifier"}, 10: {"layer_2"}, 20: {"layer_1"}, 30: {"layer_0"},
                                 40: {"embeddings"}}),
        ("bert", {"every": 0.1}, {0: {"pooler", "classifier"}, 10: {"layer_2"}, 20: {"layer_1"}, 30: {"layer_0"},
                                  40: {"embeddings"}}),
        ("bert", {"at": (5, 7)}, {0: {"pooler", "classifier"}, 5: {"layer_2"},
                                  7: {"layer_1", "layer_0", "embeddings"}}),
        ("bert", {"at": (0.5,)}, {0: {"pooler", "classifier"},
                                        50: {"layer_2", "layer_1", "layer_0", "embeddings"}}),
        ("albert", {"every": 10}, {0: {"pooler", "classifier"}, 10: {"layer_0"}, 20: {"embeddings"}}),
        ("gpt2", {"every": 30}, {0: {"final_norm", "classifier"}, 30: {"layer_2"}, 60: {"layer_1"}, 90: {"layer_0"},
                                 120: {"embeddings"}}),  # after the end of the run, which is no error
    ],
)  # fmt: skip
def test_gradual_unfreezing_goes_from_the_top_down(family, options, expected, shapes):
    params = shapes(family)
    table = optim.timetable(params, optim.gradual_unfreezing(params, **options), steps=100)
    assert unfrozen(table) == expected
    assert list(table.stages) == sorted(expected)
    last = max(expected)
    assert sum(jax.tree.leaves(table.stages[last])) == len(optim.paths(params))
    assert sum(jax.tree.leaves(table.mask(last - 1))) < len(optim.paths(params))


def test_plans_hold_together(shapes):
    params = shapes("bert")
    own = Plan(
        {
            "backbone/layer_2/mlp/**": Rule(rate=0.5, decay=0.2, unfreeze=7),
            "backbone/layer_2/**": Rule(decay=0.3),
            "backbone/embeddings/**": "frozen",
            "classifier/**": Rule(rate=3.0),
        }
    )
    plans = [own, optim.layer_decay(params, 0.5), optim.gradual_unfreezing(params, every=5), optim.bias_only(params)]
    rules = optim.timetable(params, plans[:3]).rules
    # rates multiply, the latest step counts, the first match wins within a plan; layer 2 of 3 is decayed twice
    assert rules["backbone/layer_2/mlp/up/kernel"] == Rule(rate=0.125, decay=0.2, unfreeze=7)
    assert rules["backbone/layer_2/mlp/up/bias"] == Rule(rate=0.125, decay=0.0, unfreeze=7)  # a bias has no decay
    assert rules["backbone/layer_2/attention/query/kernel"] == Rule(rate=0.25, decay=0.3, unfreeze=5)
    assert rules["backbone/layer_2/mlp_norm/scale"] == Rule(rate=0.25, decay=0.0, unfreeze=5)
    assert rules["backbone/embeddings/word/embedding"] is None
    assert rules["classifier/kernel"] == Rule(rate=3.0)
    whole = optim.timetable(params, plans).rules
    for path, rule in whole.items():
        alone = path.startswith("backbone") and not path.endswith("/bias")
        assert rule == (None if alone else rules[path]), path


def test_a_timetable_is_told_apart_by_its_rules_alone(shapes):
    params = shapes("bert")
    table = optim.timetable(params, optim.gradual_unfreezing(params, every=0.1), steps=100)
    assert table.fingerprint == optim.timetable(params, optim.gradual_unfreezing(params, every=10)).fingerprint
    assert table.fingerprint != optim.timetable(params, optim.gradual_unfreezing(params, every=11)).fingerprint


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"backbone/leyer_0/**": "frozen"}, r"pattern 'backbone/leyer_0/\*\*' matches nothing; nearest paths"),
        ({"backbone/**": "frozen", "backbone/pooler/**": Rule()}, r"pattern 'backbone/pooler/\*\*' comes too late"),
        ({"**": "frozen"}, "the plan leaves nothing to train: freeze less, or add a head"),
        ({"**": Rule(unfreeze=3)}, "nothing trains before step 3: let something train from step 0"),
        ({"backbone/**": Rule(unfreeze=100)}, "is unfrozen at step 100, after the last of 100 steps"),
        ({"backbone/**": Rule(unfreeze=1.0)}, "is unfrozen at step 100, after the last of 100 steps"),
        ({"**/bias": Rule(decay=0.1)}, r"plan: '\*\*/bias' matches biases and norms alone, which have no weight decay"),
    ],
)  # fmt: skip
def test_a_plan_that_is_no_plan_is_refused(rules, message, shapes):
    with pytest.raises(ValueError, match=message) as raised:
        optim.timetable(shapes("bert"), Plan(rules), steps=100)
    assert "\n" not in str(raised.value)


def test_what_stays_frozen_can_have_no_rate(shapes):
    params = shapes("bert")
    trainable = optim.trainable_mask(params, "backbone")
    own = Plan({"backbone/layer_0/**": Rule(rate=0.5)}, "mine")
    with pytest.raises(ValueError, match=r"mine: all that 'backbone/layer_0/\*\*' matches stays frozen; leave it out"):
        optim.timetable(params, own, trainable=trainable)
    for plan in (optim.layer_decay(params, 0.9), optim.gradual_unfreezing(params, every=1), optim.bias_only(params)):
        with pytest.raises(ValueError, match=f"{plan.name} changes nothing: all that it is about stays frozen"):
            optim.timetable(params, plan, trainable=trainable)
        optim.timetable(params, plan, trainable=optim.trainable_mask(params, "all-but-top-1"))  # one layer is enough
    with pytest.raises(ValueError, match="unfreeze changes nothing: it begins at step 9, after the last of 5 steps"):
        optim.timetable(params, optim.gradual_unfreezing(params, every=9), steps=5)


def test_numbers_out_of_range_are_refused(shapes):
    params = shapes("bert")
    for name, value in (("rate", -1.0), ("decay", float("nan")), ("unfreeze", -1)):
        with pytest.raises(ValueError, match=f"the {name} of a rule must be finite and at least 0, got {value}"):
            Rule(**{name: value})
    with pytest.raises(ValueError, match=r"optimizer\.multipliers: the rate of a rule must be finite"):
        optim.multiplied({"backbone/**": -1.0}, name="optimizer.multipliers")
    with pytest.raises(TypeError, match=r"plan: 'backbone/\*\*' must be 'frozen' or a Rule, got 'forzen'"):
        optim.timetable(params, Plan({"backbone/**": "forzen"}))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"layer_decay must lie in \(0, 1\], got 1.5"):
        optim.layer_decay(params, 1.5)
    with pytest.raises(ValueError, match="an unfreeze of type float is a fraction of the run, whose steps"):
        optim.timetable(params, Plan({"backbone/**": Rule(unfreeze=0.5)}))
    with pytest.raises(ValueError, match="trainable has 1 leaves where params has"):
        optim.timetable(params, [], trainable={"backbone": True})
    with pytest.raises(ValueError, match="'classifier/kernel' does not train in this plan: partition by its masks"):
        optim.timetable(params, Plan({"classifier/kernel": "frozen"})).begin("classifier/kernel")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "unfreeze needs either every"),
        ({"every": 3, "at": (1,)}, "unfreeze needs either every"),
        ({"every": 0}, "unfreeze.every must be positive, got 0"),
        ({"at": (5, 3)}, "unfreeze.at must rise from 0 on, got 5, 3"),
        ({"at": (0.5, 3)}, "unfreeze.at must be steps .ints. or fractions .floats., not both: 0.5, 3"),
    ],
)
def test_unfreezing_that_makes_no_sense_is_refused(options, message, shapes):
    with pytest.raises(ValueError, match=message):
        optim.gradual_unfreezing(shapes("bert"), **options)


def test_plans_need_the_pieces_that_they_are_about(shapes):
    with pytest.raises(ValueError, match="bitfit trains the backbone's biases, and this backbone has none"):
        optim.bias_only(shapes("modernbert"))
    with pytest.raises(ValueError, match="unfreeze needs a backbone with embeddings or layers; this one has neither"):
        optim.gradual_unfreezing({"backbone": {"pooler": {"bias": 0}}}, every=1)
    with pytest.raises(ValueError, match="params must be a dict with a 'backbone' tree"):
        optim.layer_decay({"classifier": {"bias": 0}}, 0.9)
