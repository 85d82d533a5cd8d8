"""What the flags of a distillation name: layers, sizes and folders, layer maps, and the order of a head's outputs."""

import jax
import numpy as np
import pytest

from jaxptft import convert, models
from jaxptft.recipes.students import in_order, layer_map, make_student, read_layers, read_pairs

SMALL = {"vocab_size": 30, "positions": 10, "dropout": 0.0, "attention_dropout": 0.0}
CONFIG = models.BertConfig(**SMALL, width=8, layers=4, heads=2, mlp_width=12)
WIDE = {"width": 256, "heads": 4}
ELECTRA = {"pooler": False, "classifier_activation": "gelu", "mlm_activation": "gelu"}
BATCH = {"input_ids": np.arange(12, dtype=np.int32).reshape(2, 6)}


def checkpoint(config=CONFIG, family="bert") -> convert.Checkpoint:
    params = models.build(config, "classification", classes=3).init(jax.random.key(0), BATCH)
    return convert.Checkpoint(family, config, jax.tree.map(np.asarray, params), ["b", "c", "a"])


def refuse_to_load(model):
    raise AssertionError(model)


def test_kept_layers_are_the_teacher_s_and_so_are_the_head_and_the_rest():
    teacher = checkpoint()
    student = make_student("layers:1,3", teacher, refuse_to_load)
    assert (student.config.layers, student.labels) == (2, teacher.labels)
    backbone = dict(teacher.params["backbone"])
    layers = [backbone.pop(f"layer_{index}") for index in range(4)]
    expected = {**teacher.params, "backbone": backbone | {"layer_0": layers[1], "layer_1": layers[3]}}
    jax.tree.map(np.testing.assert_array_equal, student.params, expected)


@pytest.mark.parametrize(
    "config, family, width",
    [
        (CONFIG, "bert", None),
        (models.BertConfig(**SMALL, **WIDE, embedding_width=200, layer_groups=3, sentence_head="sop"), "albert", 128),
        (models.BertConfig(**SMALL, **WIDE, embedding_width=128, **ELECTRA), "electra", None),
        (models.ModernBertConfig(vocab_size=30, pad_id=0, layers=4, global_layers=(3,)), "modernbert", None),
        (models.Gpt2Config(vocab_size=30), "gpt2", None),
    ],
)
def test_a_size_is_a_new_model_of_the_teacher_s_family_and_vocabulary(config, family, width):
    """2 layers of width 128 with 2 heads: Turc et al. 2019, table 1."""
    teacher = convert.Checkpoint(family, config, {}, ["a", "b"])
    student = make_student("tiny", teacher, refuse_to_load)
    found = student.config
    assert (found.layers, found.width, found.heads, found.mlp_width) == (2, 128, 2, 512)
    assert found.vocab_size == 30
    assert student.params == {"backbone": {}}
    assert getattr(found, "embedding_width", None) == width
    models.build(found, "classification", classes=2)


def test_anything_else_is_a_folder():
    assert make_student("some/folder", checkpoint(), lambda model: f"opened {model}") == "opened some/folder"


@pytest.mark.parametrize("activation", [None, "tanh"])
def test_outputs_follow_the_order_of_the_names(activation):
    config = models.BertConfig(
        **SMALL, width=8, layers=1, heads=2, mlp_width=12, classifier_activation=activation, pooler=activation is None
    )
    model = models.build(config, "classification", classes=3)
    before = checkpoint(config)
    after = in_order(before, "classifier", ("a", "b", "c"))
    assert after.labels == ["a", "b", "c"]
    logits = [np.asarray(model.apply(each.params, BATCH)) for each in (before, after)]
    np.testing.assert_array_equal(logits[1], logits[0][:, [2, 0, 1]])
    assert in_order(before, "classifier", ("a", "b")) is before
    assert in_order(before, None, ("a", "b", "c")) is before


def test_layer_maps():
    assert layer_map("uniform", 2, 6, embeddings=True) == ((0, 0), (1, 3), (2, 6))
    assert layer_map("uniform", 2, 6, embeddings=False) == ((1, 3), (2, 6))
    assert layer_map("last", 2, 6, embeddings=False) == ((2, 6),)
    assert layer_map("1:2, 2:4", 2, 6, embeddings=True) == ((1, 2), (2, 4))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: read_layers("layers:0,two"), "student is 'layers:0,two'; expected layers counted from 0"),
        (lambda: read_layers("layers:"), "student is 'layers:'"),
        (lambda: read_pairs("first"), "a layer map is 'first'; expected uniform, last, or pairs"),
        (lambda: read_pairs("1:2:3"), "a layer map is '1:2:3'"),
        (lambda: make_student("layers:0,9", checkpoint(), refuse_to_load), "from 0 to 3, got 9"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
