"""BERT's kin by config: what each task makes and returns, packed and gathered rows, shared layers, freezing, errors."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from jaxptft.models import BertConfig, build, features
from jaxptft.models.embeddings import Embeddings, positions_after_padding

SMALL = {"vocab_size": 40, "width": 16, "layers": 3, "heads": 2, "mlp_width": 24, "positions": 12}
QUIET = {"dropout": 0.0, "attention_dropout": 0.0}
KIN = {
    "bert": BertConfig(**SMALL),
    "roberta": BertConfig(**SMALL, pad_id=1, position_offset=2, token_types=1, classifier_activation="tanh"),
    "distilbert": BertConfig(
        **SMALL, token_types=0, pooler=False, classifier_activation="relu", classifier_input_dropout=False
    ),
    "albert": BertConfig(**SMALL, embedding_width=6, layer_groups=1, activation="gelu_new", sentence_head="sop"),
    "electra": BertConfig(
        **SMALL, embedding_width=6, pooler=False, classifier_activation="gelu", mlm_activation="gelu", activation="relu"
    ),
}
RNG = jax.random.key(0)


def texts(config: BertConfig, *lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(4, config.vocab_size, length).astype(np.int32) for length in lengths]


def padded(config: BertConfig, rows: list[np.ndarray], length: int) -> dict[str, np.ndarray]:
    """One text a row; the second half of each text has token type 1 where the model knows one."""
    batch = {
        "input_ids": np.full((len(rows), length), config.pad_id, np.int32),
        "attention_mask": np.zeros((len(rows), length), np.int32),
        "token_type_ids": np.zeros((len(rows), length), np.int32),
    }
    for row, ids in enumerate(rows):
        batch["input_ids"][row, : len(ids)] = ids
        batch["attention_mask"][row, : len(ids)] = 1
        batch["token_type_ids"][row, len(ids) // 2 : len(ids)] = int(config.token_types > 1)
    return batch


def packed(config: BertConfig, rows: list[list[np.ndarray]], length: int) -> dict[str, np.ndarray]:
    """The same texts, several to a row, one behind the other."""
    whole = [padded(config, [text], len(text)) for row in rows for text in row]
    batch = {name: np.zeros((len(rows), length), np.int32) for name in (*whole[0], "segment_ids", "position_ids")}
    batch["input_ids"] += config.pad_id
    numbers = iter(whole)
    for row, row_texts in enumerate(rows):
        at = 0
        for segment, ids in enumerate(row_texts):
            place = np.s_[row, at : at + len(ids)]
            for name, value in next(numbers).items():
                batch[name][place] = value[0]
            batch["segment_ids"][place] = segment + 1
            batch["position_ids"][place] = np.arange(len(ids))
            at += len(ids)
    return batch


def sized(task: str) -> dict[str, int]:
    return {"classes": 5} if task in ("classification", "token_classification") else {}


@cache
def parameters(name: str, task: str = "masked_lm") -> dict:
    """Fresh ones, with every leaf then drawn from normal(0, 0.3): biases and norms take part."""
    config = KIN[name]
    batch = padded(config, texts(config, 5), 5)
    if task == "multiple_choice":
        batch = {key: value[:, None] for key, value in batch.items()}
    model = build(config, task, **sized(task))
    shapes = jax.eval_shape(model.init, RNG, batch)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    return tree.unflatten([rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves])


def keys(tree: dict, depth: int) -> set[str]:
    """The tree's paths down to `depth`."""
    found = set()
    for name, value in tree.items():
        below = keys(value, depth - 1) if isinstance(value, dict) and depth > 1 else set()
        found |= {f"{name}/{path}" for path in below} or {name}
    return found


HEADS = {
    "classification": {"classifier/kernel", "classifier/bias"},
    "token_classification": {"token_classifier/kernel", "token_classifier/bias"},
    "question_answering": {"question_answering/kernel", "question_answering/bias"},
    "multiple_choice": {"multiple_choice/kernel", "multiple_choice/bias"},
    "masked_lm": {"mlm/dense", "mlm/norm", "mlm/bias"},
    "replaced_token": {"discriminator/dense", "discriminator/out"},
    "encoder": set(),
    "next_sentence": {"nsp/kernel", "nsp/bias"},
    "sentence_order": {"sop/kernel", "sop/bias"},
}
DEEP_CLASSIFIER = {"classifier/dense", "classifier/out"}
DEEP_CHOICE = {"multiple_choice/dense", "multiple_choice/out"}
# Written out from the contract: what differs from HEADS, the tasks whose backbone has a pooler, the layers stored and
# the embeddings' tables.
DIFFERENCES = {
    "bert": ({"pretraining": {*HEADS["masked_lm"], *HEADS["next_sentence"]}}, "classification multiple_choice", 3),
    "roberta": (
        {"classification": DEEP_CLASSIFIER, "pretraining": {*HEADS["masked_lm"], *HEADS["next_sentence"]}},
        "multiple_choice",
        3,
    ),
    "distilbert": ({"classification": DEEP_CLASSIFIER, "multiple_choice": DEEP_CHOICE}, "", 3),
    "albert": ({"pretraining": {*HEADS["masked_lm"], *HEADS["sentence_order"]}}, "classification multiple_choice", 1),
    "electra": ({"classification": DEEP_CLASSIFIER, "multiple_choice": DEEP_CHOICE}, "", 3),
}
TABLES = {
    "bert": {"word", "position", "token_type", "norm"},
    "roberta": {"word", "position", "token_type", "norm"},
    "distilbert": {"word", "position", "norm"},
    "albert": {"word", "position", "token_type", "norm", "projection"},
    "electra": {"word", "position", "token_type", "norm", "projection"},
}


@pytest.mark.parametrize("name", KIN)
def test_each_task_makes_its_own_leaves_and_returns_its_shape(name):
    config = KIN[name]
    changed, pooled, layers = DIFFERENCES[name]
    sentence = {"next_sentence", "sentence_order", "pretraining"}
    tasks = {**HEADS, **changed}
    if not config.pooler:
        tasks = {task: heads for task, heads in tasks.items() if task not in sentence}
    reads_pooler = {*pooled.split(), *sentence, "encoder"} if config.pooler else set()
    # Shapes from the interface's table, for 4 texts of 7 tokens, 5 classes and 3 choices.
    shapes = {
        "classification": (4, 5),
        "token_classification": (4, 7, 5),
        "question_answering": (4, 7, 2),
        "multiple_choice": (4, 3),
        "masked_lm": (4, 7, 40),
        "replaced_token": (4, 7),
        "encoder": (4, 7, 16),
        "next_sentence": (4, 2),
        "sentence_order": (4, 2),
        "pretraining": {"mlm": (4, 7, 40), config.sentence_head: (4, 2)},
    }
    batch = padded(config, texts(config, 7, 3, 5, 1), 7)
    for task, heads in tasks.items():
        model = build(config, task, **sized(task))
        given = batch
        if task == "multiple_choice":
            given = {key: np.stack([value] * 3, 1) for key, value in batch.items()}
        params = jax.eval_shape(model.init, RNG, given)
        stored = {f"backbone/layer_{index}" for index in range(layers)}
        pooler = {"backbone/pooler"} if task in reads_pooler else set()
        assert keys(params, 2) == {"backbone/embeddings", *stored, *pooler, *heads}, task
        assert params["backbone"]["embeddings"].keys() == TABLES[name]
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        output = jax.eval_shape(model.apply, params, given)
        assert jax.tree.map(lambda leaf: leaf.shape, output) == shapes[task], task
        assert {leaf.dtype for leaf in jax.tree.leaves(output)} == {jnp.dtype("float32")}


def test_factorised_tables_are_narrow_and_tied_to_a_narrow_head():
    params = parameters("albert")
    shapes = {name: leaf.shape for name, leaf in params["mlm"]["dense"].items()}
    assert params["backbone"]["embeddings"]["word"]["embedding"].shape == (40, 6)
    assert params["backbone"]["embeddings"]["projection"]["kernel"].shape == (6, 16)
    assert shapes == {"kernel": (16, 6), "bias": (6,)}
    assert params["mlm"]["bias"].shape == (40,)


@pytest.mark.parametrize("name", KIN)
def test_packed_equals_unpacked_in_logits_and_gradients(name):
    # Where attention crossed texts, or positions went on counting, either would differ by far more than rounding.
    config = dataclasses.replace(KIN[name], **QUIET, layers=2 if name == "bert" else 1)
    one, two, three, four = rows = texts(config, 7, 3, 6, 1)
    apart, together = padded(config, rows, 8), packed(config, [[one, two, four], [three]], 14)
    weights = np.random.default_rng(2).normal(size=(8, config.vocab_size)).astype(np.float32)
    model, real = build(config, "masked_lm"), together["segment_ids"] > 0

    def loss(params, batch, weight, counts):
        logits = model.apply(params, batch)
        return (jnp.tanh(logits) * weight).sum(where=counts[..., None]), logits

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles in half the time
    def both(params):
        mask = apart["attention_mask"] > 0
        unpacked = jax.value_and_grad(loss, has_aux=True)(params, apart, weights[None], mask)
        return unpacked, jax.value_and_grad(loss, has_aux=True)(
            params, together, weights[together["position_ids"]], real
        )

    ((value, logits), gradients), ((packed_value, packed_logits), packed_gradients) = both(parameters(name))
    for text, row, begin in ((0, 0, 0), (1, 0, 7), (3, 0, 10), (2, 1, 0)):
        length = len(rows[text])
        expected = logits[text, :length]
        np.testing.assert_allclose(packed_logits[row, begin : begin + length], expected, atol=2e-5, rtol=0)
    np.testing.assert_allclose(packed_value, value, atol=1e-6 * np.abs(weights).sum())
    overall = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    assert overall > 1e-2
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5 * overall, rtol=1e-4),
        packed_gradients,
        gradients,
    )


@pytest.mark.parametrize("attention_dropout", [0.0, 1e-9])
def test_other_segments_change_nothing_under_either_attention(attention_dropout):
    # A rate below dropout's resolution takes the written-out attention and drops nothing.
    config = dataclasses.replace(KIN["bert"], dropout=0.0, attention_dropout=attention_dropout)
    one, two, other = texts(config, 5, 4, 4)
    model = build(config, "encoder")
    apply = jax.jit(lambda batch: model.apply(parameters("bert"), batch, rng=RNG, train=True))
    first, changed = (apply(packed(config, [[one, text]], 10)) for text in (two, other))
    np.testing.assert_array_equal(first[0, :5], changed[0, :5])
    assert not np.allclose(first[0, 5:9], changed[0, 5:9])


def test_a_packed_row_may_be_longer_than_the_positions():
    config = KIN["roberta"]
    rows = texts(config, 10, 10)
    logits = build(config, "masked_lm").apply(parameters("roberta"), packed(config, [rows], 20))
    assert np.isfinite(logits).all()
    with pytest.raises(ValueError, match="20 tokens long, but the model has 10 positions: truncate"):
        build(config, "masked_lm").apply(parameters("roberta"), padded(config, rows, 20))


def test_positions_after_padding_equal_transformers():
    ids = np.array([[5, 1, 7, 8, 1, 1], [1, 1, 4, 9, 3, 0]], np.int32)
    theirs = RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor(ids), 1)
    np.testing.assert_array_equal(positions_after_padding(jnp.asarray(ids), 1), theirs.numpy())


def test_the_padding_position_starts_at_zero_and_has_no_gradient():
    config, batch = KIN["roberta"], padded(KIN["roberta"], texts(KIN["roberta"], 4, 2), 5)
    table = Embeddings(config).init(RNG, batch, active=False)["params"]["position"]["embedding"]
    assert not table[1].any()
    assert table[0].any()
    embed = features(config, stop=0)
    gradient = jax.jit(jax.grad(lambda params: jnp.square(embed(params, batch)).sum()))(parameters("roberta"))
    rows = np.abs(gradient["backbone"]["embeddings"]["position"]["embedding"]).max(axis=1)
    # 4 tokens at most: positions 2 to 5 are used, 1 is padding's.
    np.testing.assert_array_equal(np.flatnonzero(rows), [2, 3, 4, 5])


def test_gathered_positions_are_rows_of_the_full_logits():
    config, params = KIN["albert"], parameters("albert")
    batch, model = padded(config, texts(config, 6, 3), 6), build(config, "masked_lm")
    positions = np.array([[5, 0, 2], [1, 1, 0]], np.int32)
    gathered = model.apply(params, {**batch, "positions": positions})
    full = np.asarray(model.apply(params, batch))
    np.testing.assert_allclose(gathered, full[np.arange(2)[:, None], positions], atol=1e-5)


def test_pretraining_is_the_two_tasks_at_once():
    config = KIN["albert"]
    batch = {**padded(config, texts(config, 6, 3), 6), "positions": np.array([[5, 0], [1, 2]], np.int32)}
    params = parameters("albert", "pretraining")
    outputs = build(config, "pretraining").apply(params, batch)
    assert outputs.keys() == {"mlm", "sop"}
    for task, name in (("masked_lm", "mlm"), ("sentence_order", "sop")):
        np.testing.assert_array_equal(build(config, task).apply(params, batch), outputs[name])


def test_each_choice_is_scored_alone():
    config = KIN["electra"]
    params = parameters("electra", "multiple_choice")
    one, two = padded(config, texts(config, 6, 3), 6), padded(config, texts(config, 2, 5), 6)
    both = {name: np.stack([one[name], two[name]], axis=1) for name in one}
    model = build(config, "multiple_choice")
    scores = model.apply(params, both)
    for column, part in enumerate((one, two)):
        alone = model.apply(params, {name: value[:, None] for name, value in part.items()})
        np.testing.assert_allclose(scores[:, column], alone[:, 0], atol=1e-6)
    entered = {**both, "hidden": features(config, stop=2)(params, both)}
    np.testing.assert_allclose(build(config, "multiple_choice", start=2).apply(params, entered), scores, atol=1e-5)


@pytest.mark.parametrize("groups, places", [(1, [0, 0, 0]), (2, [0, 0, 1])])
def test_shared_layers_equal_unshared_ones_with_the_same_values(groups, places):
    # Which stored layer works where: int(i / (layers / groups)) by hand, as transformers' AlbertTransformer has it.
    shared, plain = dataclasses.replace(KIN["bert"], layer_groups=groups), KIN["bert"]
    batch, values = padded(plain, texts(plain, 6, 3), 6), parameters("bert")
    needed = jax.eval_shape(build(shared, "masked_lm").init, RNG, batch)["backbone"]
    assert {key for key in needed if key.startswith("layer_")} == {f"layer_{index}" for index in range(groups)}
    backbone = values["backbone"]
    spread = {**backbone, **{f"layer_{place}": backbone[f"layer_{kept}"] for place, kept in enumerate(places)}}
    np.testing.assert_array_equal(
        build(shared, "masked_lm").apply({**values, "backbone": {name: backbone[name] for name in needed}}, batch),
        build(plain, "masked_lm").apply({**values, "backbone": spread}, batch),
    )


def test_shared_layers_draw_their_dropout_apart():
    config = dataclasses.replace(KIN["albert"], dropout=0.5, attention_dropout=0.0)
    batch = padded(config, texts(config, 6), 6)
    frozen = {depth: build(config, "encoder", frozen_layers=depth) for depth in (0, 3)}
    params = parameters("albert")
    hidden = {depth: model.apply(params, batch, rng=RNG, train=True) for depth, model in frozen.items()}
    np.testing.assert_array_equal(hidden[3], frozen[3].apply(params, batch))
    assert not np.allclose(hidden[0], hidden[3])


@pytest.mark.parametrize("task", ["masked_lm", "question_answering", "pretraining"])
def test_entering_above_a_frozen_prefix_equals_the_whole(task):
    config = dataclasses.replace(KIN["bert"], dropout=0.3, attention_dropout=0.3, answer_dropout=0.0)
    batch = padded(config, texts(config, 6, 3), 6)
    whole = build(config, task, frozen_layers=3)
    params = parameters("bert", task)
    hidden = {"attention_mask": batch["attention_mask"], "hidden": features(config, stop=3)(params, batch)}
    entered = build(config, task, frozen_layers=3, start=3)
    expected = whole.apply(params, batch, rng=RNG, train=True)
    jax.tree.map(
        lambda got, wanted: np.testing.assert_allclose(got, wanted, atol=1e-6),
        entered.apply(params, hidden, rng=RNG, train=True),
        expected,
    )
    # The word table is needed where words are predicted, and no layer.
    backbone = jax.eval_shape(entered.init, RNG, hidden).get("backbone", {})
    assert (
        set(backbone)
        == {
            "masked_lm": {"embeddings"},
            "question_answering": set(),
            "pretraining": {"embeddings", "pooler"},
        }[task]
    )


RATES = {
    "classification": "head_dropout",
    "token_classification": "token_dropout",
    "multiple_choice": "choice_dropout",
    "question_answering": "answer_dropout",
    "sentence_order": "sentence_dropout",
}


@pytest.mark.parametrize(
    "name, task",
    [*(("albert", task) for task in RATES), ("distilbert", "classification"), ("electra", "multiple_choice")],
)
def test_each_head_has_its_own_dropout(name, task):
    quiet = dataclasses.replace(KIN[name], **QUIET)
    batch = padded(quiet, texts(quiet, 6, 3), 6)
    batch = {key: value[:, None] for key, value in batch.items()} if task == "multiple_choice" else batch
    params = parameters(name, task)

    def varies(**rates) -> bool:
        model = build(dataclasses.replace(quiet, **rates), task, **sized(task))
        return not np.array_equal(model.apply(params, batch, rng=RNG, train=True), model.apply(params, batch))

    assert varies(**{RATES[task]: 0.5})
    assert not varies(**dict.fromkeys(set(RATES.values()) - {RATES[task]}, 0.5), **{RATES[task]: 0.0})


@pytest.mark.parametrize("input_dropout", [True, False])
def test_a_hidden_classifier_can_leave_its_input_undropped(input_dropout):
    # An input that is dropped has no gradient; behind the hidden layer, an undropped one has some.
    config = dataclasses.replace(
        KIN["roberta"], **QUIET, head_dropout=0.5, classifier_input_dropout=input_dropout, classifier_activation="silu"
    )
    model, params = build(config, "classification", classes=5, start=3), parameters("roberta", "classification")

    def total(entry):
        return model.apply(params, {"hidden": entry}, rng=RNG, train=True).sum()

    gradient = jax.jit(jax.grad(total))(np.ones((1, 4, 16), np.float32))
    assert (gradient[0, 0] == 0).any() == input_dropout


def test_leaves_of_other_tasks_are_ignored():
    config, params = KIN["bert"], parameters("bert", "pretraining")
    batch = padded(config, texts(config, 6, 3), 6)
    without = {"backbone": params["backbone"], "mlm": params["mlm"]}
    model = build(config, "masked_lm")
    np.testing.assert_array_equal(model.apply(params, batch), model.apply(without, batch))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"embedding_width": 0}, "embedding_width must be an integer of at least 1, got 0"),
        ({"layer_groups": 0}, "layer_groups must be an integer of at least 1, got 0"),
        ({"layer_groups": 4}, "layer_groups must be at most layers, got 4 and 3 layers"),
        ({"token_types": -1}, "token_types must be an integer of at least 0, got -1"),
        ({"position_offset": 2}, r"position_offset must be 0 or pad_id \+ 1, got 2 and pad_id 0"),
        ({"position_offset": 1, "pad_id": None}, r"position_offset must be 0 or pad_id \+ 1, got 1 and pad_id None"),
        ({"positions": 1, "position_offset": 1}, "positions must exceed position_offset 1, got 1"),
        ({"pooler": 1}, "pooler must be True or False, got 1"),
        ({"classifier_activation": "gelo"}, "classifier_activation must be one of gelu, .* got 'gelo'"),
        ({"mlm_activation": 3}, "mlm_activation must be one of gelu, .* got 3"),
        ({"sentence_head": "npp"}, "sentence_head must be one of nsp, sop, got 'npp'"),
        ({"choice_dropout": 1.0}, r"choice_dropout must be a probability in \[0, 1\), got 1.0"),
        ({"answer_dropout": None}, r"answer_dropout must be a probability in \[0, 1\), got None"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(KIN["bert"], **changes)


@pytest.mark.parametrize(
    "name, task, options, message",
    [
        ("bert", "causal_lm", {}, "BERT has no task 'causal_lm': expected one of encoder, .*pretraining"),
        (
            "distilbert",
            "next_sentence",
            {},
            "BERT without a pooler has no task 'next_sentence': expected one of encoder",
        ),
        ("bert", "token_classification", {}, "classes must be an integer of at least 1, got None"),
        ("bert", "masked_lm", {"classes": 3}, "task 'masked_lm' has no classes to choose, got classes=3: leave it out"),
        ("bert", "masked_lm", {"frozen_layers": 5}, "frozen_layers must be an integer from 0 to 4 for 3 layers, got 5"),
        ("bert", "pretraining", {"start": 4}, "start must be an integer from 0 to 3 for 3 layers, got 4"),
        ("roberta", "classification", {"classes": 2, "start": 4}, "start must be an integer from 0 to 3"),
        ("albert", "masked_lm", {"frozen_layers": 2}, "frozen_layers 2 would freeze part of a group.*one of 0, 3, 4"),
    ],
)
def test_build_refuses(name, task, options, message):
    with pytest.raises(ValueError, match=message):
        build(KIN[name], task, **options)


def test_models_refuse_what_they_cannot_read():
    config = KIN["bert"]
    rows = texts(config, 3, 2)
    with pytest.raises(ValueError, match="next_sentence reads the first token of each row, but the rows are packed"):
        build(config, "next_sentence").init(RNG, packed(config, [rows], 6))
    with pytest.raises(ValueError, match=r"multiple_choice reads input_ids \[batch, choices, length\], got 2 axes"):
        build(config, "multiple_choice").init(RNG, padded(config, rows, 6))
    with pytest.raises(ValueError, match="stop must be an integer from 0 to 3 for 3 layers, got 4"):
        features(KIN["distilbert"], stop=4)


def test_groups_split_as_transformers_albert_splits_them():
    # transformers' AlbertTransformer.forward: int(i / (num_hidden_layers / num_hidden_groups)), by hand for 5 in 2.
    config = dataclasses.replace(KIN["albert"], layers=5, layer_groups=2)
    assert [config.stored_layer(index) for index in range(5)] == [0, 0, 0, 1, 1]
    build(config, "masked_lm", frozen_layers=3)
    with pytest.raises(ValueError, match="pass one of 0, 3, 5, 6"):
        build(config, "masked_lm", frozen_layers=4)
