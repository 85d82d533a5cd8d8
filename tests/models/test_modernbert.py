"""What ModernBERT promises beyond parity: packing, windows, dropout, freezing, entering at a layer, initialization."""

import dataclasses
from functools import cache, partial

import jax
import numpy as np
import pytest

from jaxptft.models import ModernBertConfig, build
from jaxptft.models.modernbert import TASKS, features

CONFIG = ModernBertConfig(
    vocab_size=40, width=16, layers=2, heads=2, mlp_width=12, positions=12, local_attention=4, pad_id=0
)
RNG = jax.random.key(0)


def make_batch(rows: int = 4, length: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "input_ids": rng.integers(1, 40, (rows, length)).astype(np.int32),
        "attention_mask": (np.arange(length) < rng.integers(2, length + 1, (rows, 1))).astype(np.int32),
    }


BATCH = make_batch()


def draw(config, task, classes=None):
    """Parameters with every leaf from normal(0, 0.5): fresh ones are so small that all texts look alike."""
    rng = np.random.default_rng(1)
    tree = jax.eval_shape(build(config, task, classes=classes).init, RNG, BATCH)
    return jax.tree.map(lambda leaf: rng.normal(scale=0.5, size=leaf.shape).astype(np.float32), tree)


PARAMS = draw(CONFIG, "classification", 2)


@cache
def compiled(config, train, **changes):
    return jax.jit(partial(build(config, "classification", classes=2, **changes).apply, train=train))


def classify(config, batch=BATCH, *, train=False, **changes):
    """Logits of PARAMS."""
    return np.asarray(compiled(config, train, **changes)(PARAMS, batch, rng=RNG))


PLAIN = classify(CONFIG)


def paths(tree, parents=()):
    for name, value in tree.items():
        yield from paths(value, (*parents, name)) if isinstance(value, dict) else [("/".join((*parents, name)), value)]


def shapes_of(config, task, classes=None):
    batch = {name: value[:, None] for name, value in BATCH.items()} if task == "multiple_choice" else BATCH
    tree = jax.eval_shape(build(config, task, classes=classes).init, RNG, batch)
    return {path: leaf.shape for path, leaf in paths(tree)}


def test_parameters_have_the_agreed_paths_and_shapes():
    # Written out from the parameter contract.
    layer = {
        "attention_norm/scale": (16,),
        "attention/qkv/kernel": (16, 48),
        "attention/output/kernel": (16, 16),
        "mlp_norm/scale": (16,),
        "mlp/up/kernel": (16, 24),
        "mlp/down/kernel": (12, 16),
    }
    backbone = {
        "backbone/embeddings/word/embedding": (40, 16),
        "backbone/embeddings/norm/scale": (16,),
        **{f"backbone/layer_{index}/{path}": shape for index in range(2) for path, shape in layer.items()},
        "backbone/final_norm/scale": (16,),
    }
    del backbone["backbone/layer_0/attention_norm/scale"]
    assert shapes_of(CONFIG, "encoder") == backbone
    head = {"dense/kernel": (16, 16), "norm/scale": (16,)}
    outputs = {"classification": 5, "token_classification": 5, "question_answering": 2, "multiple_choice": 1}
    for task, size in outputs.items():
        own = {**head, "out/kernel": (16, size), "out/bias": (size,)}
        expected = backbone | {f"{TASKS[task]}/{path}": shape for path, shape in own.items()}
        assert shapes_of(CONFIG, task, classes=5 if "classification" in task else None) == expected
    expected = backbone | {f"mlm/{path}": shape for path, shape in (head | {"bias": (40,)}).items()}
    assert shapes_of(CONFIG, "masked_lm") == expected


def test_biases_are_there_by_the_config():
    plain = shapes_of(CONFIG, "masked_lm").keys()
    for field, biases in {
        "norm_bias": {"backbone/embeddings/norm", "backbone/layer_1/attention_norm", "backbone/final_norm", "mlm/norm"},
        "attention_bias": {"backbone/layer_0/attention/qkv", "backbone/layer_1/attention/output"},
        "mlp_bias": {"backbone/layer_0/mlp/up", "backbone/layer_1/mlp/down"},
        "classifier_bias": {"mlm/dense"},
    }.items():
        added = shapes_of(dataclasses.replace(CONFIG, **{field: True}), "masked_lm").keys() - plain
        assert {f"{path}/bias" for path in biases} <= added, field
    without = shapes_of(dataclasses.replace(CONFIG, decoder_bias=False), "masked_lm").keys()
    assert plain - without == {"mlm/bias"}


def test_initialization_is_hugging_face_s():
    config = ModernBertConfig(
        vocab_size=500, width=64, layers=2, heads=2, mlp_width=64, initializer_range=0.05, norm_bias=True, pad_id=3
    )
    params = jax.jit(build(config, "classification", classes=64).init)(RNG, BATCH)
    for path, leaf in paths(params):
        if path.endswith(("bias", "scale")):
            assert (leaf == path.endswith("scale")).all(), path
            continue
        # `_init_weights` of transformers: 0.05 into the residual stream's readers, 0.05 / sqrt(2 layers) into what is
        # added to it, 1 / sqrt(width) into the last layer, all cut off at two deviations.
        out = path.endswith(("output/kernel", "down/kernel", "dense/kernel"))
        deviation = 1 / 8 if path.endswith("out/kernel") else 0.05 / 2 if out else 0.05
        assert np.abs(leaf).max() <= 2 * deviation * (1 + 1e-6), path
        # A normal cut at two deviations has 0.8796 of its deviation; 5 standard errors of 4096 draws.
        assert abs(float(leaf[4:].std()) / deviation - 0.8796) < 5 * 0.8796 / np.sqrt(2 * 3840), path
    assert not params["backbone"]["embeddings"]["word"]["embedding"][3].any()


def test_packed_equals_unpacked_in_logits_and_gradients():
    lengths = [5, 3, 7, 2]
    ids = np.random.default_rng(0).integers(1, 40, (4, 7)).astype(np.int32)
    mask = (np.arange(7) < np.array(lengths)[:, None]).astype(np.int32)
    unpacked = {"input_ids": ids * mask, "attention_mask": mask}
    # Rows of 5 + 3 tokens and one of padding, and of 7 + 2 tokens.
    where = [(0, 0), (0, 5), (1, 0), (1, 7)]
    packed = {name: np.zeros((2, 9), np.int32) for name in ("input_ids", "segment_ids", "position_ids")}
    weights = np.random.default_rng(1).normal(size=(4, 7, 40)).astype(np.float32) * mask[..., None]
    packed_weights = np.zeros((2, 9, 40), np.float32)
    for text, (row, first) in enumerate(where):
        place = slice(first, first + lengths[text])
        packed["input_ids"][row, place] = ids[text, : lengths[text]]
        packed["segment_ids"][row, place] = 1 + (first > 0)
        packed["position_ids"][row, place] = np.arange(lengths[text])
        packed_weights[row, place] = weights[text, : lengths[text]]
    packed["attention_mask"] = (packed["segment_ids"] > 0).astype(np.int32)

    model = build(CONFIG, "masked_lm")
    params = draw(CONFIG, "masked_lm")

    def loss(params, batch, weights):
        logits = model.apply(params, batch)
        return (logits * weights).sum(), logits

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (one, logits), gradients = step(params, unpacked, weights)
    (other, packed_logits), packed_gradients = step(params, packed, packed_weights)
    assert one == pytest.approx(float(other), rel=1e-4)
    for text, (row, first) in enumerate(where):
        ours = packed_logits[row, first : first + lengths[text]]
        np.testing.assert_allclose(ours, logits[text, : lengths[text]], atol=1e-5 * np.abs(logits).max())
    packed_gradients = dict(paths(packed_gradients))
    for path, leaf in paths(gradients):
        np.testing.assert_allclose(packed_gradients[path], leaf, atol=1e-4 * np.abs(leaf).max(), err_msg=path)

    chosen = np.array([[4, 0], [8, 2]], np.int32)
    gathered = jax.jit(model.apply)(params, {**packed, "positions": chosen})
    expected = np.take_along_axis(np.asarray(packed_logits), chosen[..., None], 1)
    np.testing.assert_allclose(gathered, expected, atol=1e-5 * np.abs(expected).max())


def test_a_local_layer_sees_half_its_window_to_each_side():
    # Windows of 3 see one token to each side, so two such layers see two; of 4, four.
    for window, reach in ((3, 2), (4, 4)):
        config = dataclasses.replace(CONFIG, global_layers=(), local_attention=window)
        ids = np.arange(1, 12, dtype=np.int32)[None]
        changed = np.where(np.arange(11) == 5, 30, ids).astype(np.int32)
        batch = {"input_ids": np.concatenate([ids, changed])}
        one, other = np.asarray(jax.jit(build(config, "encoder").apply)(draw(config, "encoder"), batch))
        differs = np.flatnonzero(np.any(one != other, axis=-1))
        np.testing.assert_array_equal(differs, np.arange(5 - reach, 6 + reach))


def test_padding_changes_nothing_and_a_fully_padded_row_is_finite():
    padded = {name: np.pad(value, ((0, 0), (0, 5))) for name, value in BATCH.items()}
    padded["attention_mask"][2] = 0
    np.testing.assert_allclose(np.delete(classify(CONFIG, padded), 2, 0), np.delete(PLAIN, 2, 0), atol=1e-5)
    model = build(dataclasses.replace(CONFIG, pooling="mean"), "classification", classes=2)

    def loss(params):
        logits = model.apply(params, padded)
        return logits.sum(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS)
    assert np.isfinite(logits).all()
    assert all(np.isfinite(leaf).all() for _, leaf in paths(gradients))


@pytest.mark.parametrize("rate", ["embedding_dropout", "attention_dropout", "mlp_dropout", "head_dropout"])
def test_each_dropout_acts_by_itself(rate):
    config = dataclasses.replace(CONFIG, **{rate: 0.5})
    assert not np.allclose(classify(config, train=True), PLAIN)
    with pytest.raises(ValueError, match="train=True with dropout needs rng"):
        build(config, "classification", classes=2).apply(PARAMS, BATCH, train=True)


DROPPING = dataclasses.replace(CONFIG, embedding_dropout=0.3, mlp_dropout=0.3)


def test_dropout_is_off_where_nothing_trains():
    np.testing.assert_allclose(classify(DROPPING), PLAIN, atol=1e-5)
    np.testing.assert_allclose(classify(DROPPING, train=True, frozen_layers=3), PLAIN, atol=1e-5)
    assert not np.allclose(classify(DROPPING, train=True, frozen_layers=1), PLAIN)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_frozen_prefix_can_be_computed_once(depth):
    hidden = jax.jit(features(DROPPING, stop=depth))(PARAMS, BATCH)
    assert hidden.shape == (4, 7, 16)
    batch = {"attention_mask": BATCH["attention_mask"], "hidden": hidden}
    entered = classify(DROPPING, batch, train=True, frozen_layers=depth, start=depth)
    np.testing.assert_allclose(entered, classify(DROPPING, train=True, frozen_layers=depth), atol=1e-5)
    # Only what lies above needs parameters.
    model = build(DROPPING, "classification", classes=2, start=depth)
    needed = set(jax.eval_shape(model.init, RNG, batch).get("backbone", {}))
    assert needed == ({f"layer_{index}" for index in range(depth, 2)} | {"final_norm"} if depth < 3 else set())


def test_bfloat16_computes_near_float32_and_returns_float32():
    half = classify(CONFIG, dtype="bfloat16")
    assert half.dtype == np.float32
    # bfloat16 keeps 8 bits: 2**-8 of a value, some roundings deep; not bitwise equal, or it did not compute in it.
    np.testing.assert_allclose(half, PLAIN, atol=32 * 2**-8 * np.abs(PLAIN).max())
    assert not np.array_equal(half, PLAIN)


def test_global_layers_have_one_spelling():
    four = dataclasses.replace(CONFIG, layers=4)
    assert [four.is_global(layer) for layer in range(4)] == [True, False, False, True]
    chosen = dataclasses.replace(four, global_layers=[2, 1, 1])
    assert chosen.global_layers == (1, 2)
    assert [chosen.is_global(layer) for layer in range(4)] == [False, True, True, False]
    assert dataclasses.replace(four, global_layers=(0, 3)) == four


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"heads": 5}, "width must be a multiple of twice the heads .* got width 16 and 5 heads"),
        ({"heads": 16}, "width must be a multiple of twice the heads .* got width 16 and 16 heads"),
        ({"local_attention": 0}, "local_attention must be an integer of at least 1, got 0"),
        ({"activation": "gelo"}, "activation must be one of gelu, .* got 'gelo'"),
        ({"classifier_activation": None}, "classifier_activation must be one of gelu, .* got None"),
        ({"pooling": "max"}, "pooling must be one of cls, mean, got 'max'"),
        ({"norm_bias": 1}, "norm_bias must be True or False, got 1"),
        ({"mlp_dropout": 1.0}, r"mlp_dropout must be a probability in \[0, 1\), got 1.0"),
        ({"local_theta": None}, "local_theta must be a positive number, got None"),
        ({"pad_id": 40}, "pad_id must be None or an id below vocab_size 40, got 40"),
        ({"global_layers": (2,)}, "global_layers must be layers from 0 to 1, got 2"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_model_refuses():
    with pytest.raises(
        ValueError, match=r"ModernBERT has no task 'next_sentence': expected one of encoder, .*masked_lm"
    ):
        build(CONFIG, "next_sentence")
    with pytest.raises(ValueError, match="classes must be an integer of at least 1, got None"):
        build(CONFIG, "classification")
    with pytest.raises(ValueError, match="task 'masked_lm' has no classes to choose, got classes=3: leave it out"):
        build(CONFIG, "masked_lm", classes=3)
    with pytest.raises(ValueError, match="frozen_layers must be an integer from 0 to 3 for 2 layers, got 5"):
        build(CONFIG, "encoder", frozen_layers=5)
    with pytest.raises(ValueError, match="start must be an integer from 0 to 3 for 2 layers, got -1"):
        build(CONFIG, "encoder", start=-1)
    with pytest.raises(ValueError, match="stop must be an integer from 0 to 3 for 2 layers, got 9"):
        features(CONFIG, stop=9)
    model = build(CONFIG, "classification", classes=2)
    with pytest.raises(ValueError, match="13 tokens long, but the model has 12 positions: truncate"):
        model.apply(PARAMS, make_batch(length=13))
    with pytest.raises(ValueError, match=r"classification reads .* the rows are packed: give one text a row"):
        model.apply(PARAMS, {**BATCH, "segment_ids": BATCH["attention_mask"]})
