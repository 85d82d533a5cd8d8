"""Texts that share rows give the logits, losses and gradients of texts that have a row each."""

from dataclasses import fields, replace
from functools import partial

import jax
import numpy as np
import pytest

from jaxptft import data, objectives
from jaxptft.models import BertConfig, ModernBertConfig, build

SMALL = {"vocab_size": 40, "width": 16, "layers": 2, "heads": 2, "mlp_width": 24, "positions": 14}
BERT = BertConfig(**SMALL)
FAMILIES = {
    "bert": BERT,
    "roberta": BertConfig(**SMALL, pad_id=1, position_offset=2, token_types=1, classifier_activation="tanh"),
    "distilbert": BertConfig(
        **SMALL, token_types=0, pooler=False, classifier_activation="relu", classifier_input_dropout=False
    ),
    "albert": BertConfig(**SMALL, embedding_width=6, layer_groups=1, activation="gelu_new", sentence_head="sop"),
    "electra": BertConfig(**SMALL, embedding_width=6, pooler=False, classifier_activation="gelu", activation="relu"),
    "modernbert": ModernBertConfig(**SMALL, local_attention=4, pad_id=0),
    "modernbert, first token": ModernBertConfig(**SMALL, local_attention=4, pad_id=0, pooling="cls"),
}
LENGTHS = [7, 3, 12, 5, 1, 9, 4, 4, 6, 2]
RNG = jax.random.key(0)


def batches_of(config, kind=data.Batches, **answers):
    """The ten texts in one batch, a row each with two more to fill it, and packed in rows of 20 tokens."""
    rng = np.random.default_rng(0)
    tokenized = data.Tokenized(
        tokens=rng.integers(4, 40, sum(LENGTHS)).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(LENGTHS)]),
        boundaries=np.array(LENGTHS, np.int32) // 2 if getattr(config, "token_types", 0) > 1 else np.array(LENGTHS),
        max_length=12,
        truncated=0,
        pad_id=config.pad_id,
        fingerprint="drawn",
    )
    plain = kind(tokenized, batch_size=10, multiple_of=4, **answers)
    rows = data.PackedRows(plain, length=20, multiple_of=4)
    unpacked, packed = plain.batch_at(0), rows.batch_at(0)
    assert len(packed["ids"]) == 4
    assert packed["valid"].sum(1).max() > 2
    return unpacked, packed


def drawn(model, batch):
    """Parameters with every leaf from normal(0, 0.5), norms about 1: fresh ones are so small that texts look alike."""
    rng, tree = np.random.default_rng(1), jax.eval_shape(model.init, RNG, batch)

    def draw(path, leaf):
        return (rng.normal(path[-1].key == "scale", 0.5, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


def silent(config):
    """The config without dropout."""
    rates = [field.name for field in fields(config) if field.name.endswith("dropout")]
    return replace(config, **{name: 0.0 for name in rates if isinstance(getattr(config, name), float)})


def by_id(batch, values):
    valid = np.asarray(batch["valid"])
    order = np.argsort(batch["ids"][valid])
    return np.asarray(values)[valid][order]


def assert_same_learning(objective, params, unpacked, packed):
    context = objectives.Context({}, None, jax.random.key(2), True, None)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def lose(params, batch):
        terms, (metrics, _) = objective.loss(params, batch, context)
        return sum(term.value() for term in terms.values()), (terms, metrics)

    (loss, counted), gradient = lose(params, unpacked)
    (packed_loss, packed_counted), packed_gradient = lose(params, packed)
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(counted), jax.tree.leaves(packed_counted), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-2
    for (path, one), (_, other) in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree_util.tree_leaves_with_path(packed_gradient), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=2e-5, err_msg=str(path))


EVERY_DAY = ("bert", "modernbert", "modernbert, first token")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.slow) for name in FAMILIES]
)
def test_logits_losses_and_gradients_are_those_of_one_text_a_row(family):
    config = FAMILIES[family]
    unpacked, packed = batches_of(config, labels=np.arange(10) % 3)
    model = build(config, "classification", classes=3)
    quiet = build(silent(config), "classification", classes=3)
    params = drawn(model, unpacked)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, jax.eval_shape(model.init, RNG, packed))
    apply = jax.jit(model.apply)
    logits, packed_logits = apply(params, unpacked), apply(params, packed)
    assert packed_logits.shape == (*packed["ids"].shape, 3)
    np.testing.assert_allclose(by_id(packed, packed_logits), by_id(unpacked, logits), rtol=1e-5, atol=1e-5)
    assert by_id(unpacked, logits).std(0).min() > 0.1  # texts do differ
    weighted = objectives.classification(quiet, label_smoothing=0.1, class_weights=(0.5, 1.0, 2.0))
    assert_same_learning(weighted, params, unpacked, packed)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_nothing_crosses_from_one_text_to_another_in_its_row(family):
    config = FAMILIES[family]
    _, packed = batches_of(config)
    model = build(config, "classification", classes=3)
    params, apply = drawn(model, packed), jax.jit(model.apply)
    before = np.asarray(apply(params, packed))
    row = int(packed["valid"].sum(1).argmax())
    inside = (np.arange(len(packed["ids"]))[:, None] == row) & (packed["segment_ids"] == 2)
    changed = {**packed, "input_ids": np.where(inside, 43 - packed["input_ids"], packed["input_ids"])}
    after = np.asarray(apply(params, changed))
    touched = np.zeros(packed["valid"].shape, bool)
    touched[row, 1] = True
    assert not np.allclose(after[row, 1], before[row, 1])
    others = packed["valid"] & ~touched
    assert others[row].sum() >= 2
    np.testing.assert_array_equal(after[others], before[others])
    loss = lambda params, own: apply(params, own)[row, 0].sum()  # noqa: E731
    one, other = (jax.grad(loss)(params, own) for own in (packed, changed))
    jax.tree.map(np.testing.assert_array_equal, one["backbone"]["layer_0"]["mlp"], other["backbone"]["layer_0"]["mlp"])


class Tagged(data.Batches):
    def batch_at(self, step):
        batch = super().batch_at(step)
        counted = (batch["attention_mask"] > 0) & (batch["input_ids"] % 3 > 0)
        return batch | {"labels": np.where(counted, batch["input_ids"] % 4, -100).astype(np.int32)}


@pytest.mark.parametrize("task", ["regression", "multi_label", "token_classification", "weighted rows"])
def test_every_objective_over_texts_is_the_same_mean(task):
    rng = np.random.default_rng(3)
    config = replace(silent(BERT), layers=1)
    classes, head = (1 if task == "regression" else 4), "classification"
    answers = {
        "regression": {"targets": rng.normal(size=10)},
        "multi_label": {"targets": rng.integers(0, 2, (10, 4))},
        "token_classification": {},
        "weighted rows": {"labels": np.arange(10) % 4},
    }[task]
    unpacked, packed = batches_of(config, Tagged if task == "token_classification" else data.Batches, **answers)
    make = {
        "regression": objectives.regression,
        "multi_label": partial(objectives.multi_label, positive_weights=(1.0, 2.0, 0.5, 1.0)),
        "token_classification": objectives.token_classification,
        "weighted rows": objectives.classification,
    }[task]
    if task == "token_classification":
        head = task
    elif task != "multi_label":
        weight = rng.uniform(0.1, 3, 10).astype(np.float32)
        unpacked, packed = (
            batch | {"weight": np.where(batch["valid"], weight[batch["ids"]], 0.0)} for batch in (unpacked, packed)
        )
    model = build(config, head, classes=classes)
    assert_same_learning(make(model), drawn(model, unpacked), unpacked, packed)


def test_tags_are_predicted_of_one_text_a_row():
    _, packed = batches_of(BERT, Tagged)
    model = build(silent(BERT), "token_classification", classes=4)
    context = objectives.Context({}, None, RNG, False, None)
    with pytest.raises(ValueError, match="predicts the tags of one text a row, but the rows are packed"):
        objectives.token_classification(model).predict(drawn(model, packed), packed, context)


def test_a_packed_batch_must_say_where_texts_start():
    _, packed = batches_of(BERT)
    del packed["starts"]
    with pytest.raises(ValueError, match="classification reads the first token of each row, but the rows are packed"):
        build(BERT, "classification", classes=3).init(RNG, packed)
