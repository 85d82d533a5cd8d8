"""What BERT promises beyond parity: dropout, freezing, entering at a layer, padding rows, initialization, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft.models import BertConfig, classifier, encoder, features

CONFIG = BertConfig(vocab_size=40, width=16, layers=3, heads=2, mlp_width=24, positions=12)
NO_DROPOUT = dataclasses.replace(CONFIG, dropout=0.0, attention_dropout=0.0)
RNG = jax.random.key(0)


def make_batch(rows: int = 4, length: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "input_ids": rng.integers(1, 40, (rows, length)).astype(np.int32),
        "attention_mask": (np.arange(length) < rng.integers(2, length + 1, (rows, 1))).astype(np.int32),
        "token_type_ids": rng.integers(0, 2, (rows, length)).astype(np.int32),
    }


BATCH = make_batch()
PARAMS = classifier(CONFIG, 2).init(jax.random.key(1), BATCH)


def paths(tree, parents=()):
    for name, value in tree.items():
        yield from paths(value, (*parents, name)) if isinstance(value, dict) else [("/".join((*parents, name)), value)]


def test_parameters_have_the_agreed_paths_shapes_and_type():
    shapes = {path: leaf.shape for path, leaf in paths(PARAMS)}
    layer = {
        **{f"attention/{part}/kernel": (16, 16) for part in ("query", "key", "value", "output")},
        **{f"attention/{part}/bias": (16,) for part in ("query", "key", "value", "output")},
        **{f"{norm}/{leaf}": (16,) for norm in ("attention_norm", "mlp_norm") for leaf in ("scale", "bias")},
        **{"mlp/up/kernel": (16, 24), "mlp/up/bias": (24,), "mlp/down/kernel": (24, 16), "mlp/down/bias": (16,)},
    }
    # Written out from the parameter contract.
    expected = {
        "backbone/embeddings/word/embedding": (40, 16),
        "backbone/embeddings/position/embedding": (12, 16),
        "backbone/embeddings/token_type/embedding": (2, 16),
        "backbone/embeddings/norm/scale": (16,),
        "backbone/embeddings/norm/bias": (16,),
        **{f"backbone/layer_{index}/{path}": shape for index in range(3) for path, shape in layer.items()},
        "backbone/pooler/kernel": (16, 16),
        "backbone/pooler/bias": (16,),
        "classifier/kernel": (16, 2),
        "classifier/bias": (2,),
    }
    assert shapes == expected
    assert {leaf.dtype for _, leaf in paths(PARAMS)} == {jnp.dtype("float32")}


def test_initialization_is_hugging_face_s():
    config = BertConfig(vocab_size=2000, width=64, layers=1, heads=2, mlp_width=64, initializer_range=0.05, pad_id=3)
    params = classifier(config, 2).init(RNG, BATCH)
    for path, leaf in paths(params):
        if path.endswith("bias"):
            assert not leaf.any(), path
        elif path.endswith("scale"):
            assert (leaf == 1).all(), path
        elif leaf.size >= 4096:
            # 5 standard errors of a sample's deviation, 0.05 / sqrt(2 * 4096).
            assert abs(float(leaf.std()) - 0.05) < 5 * 0.05 / np.sqrt(2 * 4096), path
    words = params["backbone"]["embeddings"]["word"]["embedding"]
    assert not words[3].any()
    assert words[0].any()


def test_a_fully_padded_row_is_finite_and_changes_no_other_row():
    model = classifier(CONFIG, 2)
    padded = {**BATCH, "attention_mask": BATCH["attention_mask"].copy()}
    padded["attention_mask"][2] = 0
    logits = model.apply(PARAMS, padded)
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(np.delete(logits, 2, 0), np.delete(model.apply(PARAMS, BATCH), 2, 0))
    for train in (False, True):
        gradients = jax.jit(jax.grad(lambda p, t=train: model.apply(p, padded, rng=RNG, train=t).sum()))(PARAMS)
        assert all(np.isfinite(leaf).all() for _, leaf in paths(gradients))


def test_padding_length_does_not_change_the_logits():
    wide = {name: np.pad(value, ((0, 0), (0, 5))) for name, value in BATCH.items()}
    model = classifier(CONFIG, 2)
    np.testing.assert_allclose(model.apply(PARAMS, wide), model.apply(PARAMS, BATCH), atol=1e-6)


def test_without_train_an_rng_changes_nothing():
    model = classifier(CONFIG, 2)
    np.testing.assert_array_equal(model.apply(PARAMS, BATCH, rng=RNG), model.apply(PARAMS, BATCH))


def test_train_without_dropout_equals_evaluation():
    model = classifier(NO_DROPOUT, 2)
    np.testing.assert_array_equal(model.apply(PARAMS, BATCH, train=True), model.apply(PARAMS, BATCH))


def test_train_depends_on_the_rng_alone():
    model = classifier(CONFIG, 2)
    one, again = (model.apply(PARAMS, BATCH, rng=RNG, train=True) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, model.apply(PARAMS, BATCH, rng=jax.random.key(9), train=True))


@pytest.mark.parametrize("rates", [{"dropout": 0.3}, {"attention_dropout": 0.3}, {"head_dropout": 0.3}])
def test_each_dropout_acts_by_itself(rates):
    config = dataclasses.replace(NO_DROPOUT, head_dropout=0.0)
    model = classifier(dataclasses.replace(config, **rates), 2)
    assert not np.allclose(model.apply(PARAMS, BATCH, rng=RNG, train=True), model.apply(PARAMS, BATCH))


def test_head_dropout_falls_back_to_dropout():
    one = dataclasses.replace(NO_DROPOUT, dropout=0.4)
    other = dataclasses.replace(one, head_dropout=0.4)
    draws = [classifier(c, 2).apply(PARAMS, BATCH, rng=RNG, train=True) for c in (one, other)]
    np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize("frozen", [None, 0, 1, 3, 4])
def test_a_frozen_prefix_has_no_dropout(frozen):
    # With the whole head's dropout off, what stays random is what lies above the prefix.
    config = dataclasses.replace(CONFIG, head_dropout=0.0, dropout=0.3, attention_dropout=0.3)
    model = classifier(config, 2, frozen_layers=frozen)
    whole = model.apply(PARAMS, BATCH, rng=RNG, train=True)
    plain = model.apply(PARAMS, BATCH)
    assert np.array_equal(whole, plain) == (frozen is not None and frozen >= 3)
    if frozen is not None:
        hidden = {**BATCH, "hidden": features(config, stop=frozen)(PARAMS, BATCH)}
        above = classifier(config, 2, frozen_layers=frozen, start=frozen)
        np.testing.assert_allclose(above.apply(PARAMS, hidden, rng=RNG, train=True), whole, atol=1e-6)


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4])
def test_entering_at_a_layer_equals_the_whole(start):
    hidden = features(CONFIG, stop=start)(PARAMS, BATCH)
    assert hidden.shape == ((4, 16) if start == 4 else (4, 7, 16))
    batch = {"attention_mask": BATCH["attention_mask"], "hidden": hidden}
    entered = classifier(CONFIG, 2, start=start)
    np.testing.assert_allclose(entered.apply(PARAMS, batch), classifier(CONFIG, 2).apply(PARAMS, BATCH), atol=1e-6)
    # Only what lies above needs parameters.
    needed = set(entered.init(RNG, batch)["backbone"]) if start < 4 else set()
    assert needed == {f"layer_{index}" for index in range(start, 3)} | ({"pooler"} if start < 4 else set())


def test_encoder_shares_its_parameters_with_the_classifier():
    model = encoder(CONFIG)
    fresh = {path: leaf.shape for path, leaf in paths(model.init(RNG, BATCH))}
    assert fresh == {path: leaf.shape for path, leaf in paths(PARAMS) if path.startswith("backbone/")}
    np.testing.assert_array_equal(model.apply(PARAMS, BATCH), features(CONFIG, stop=3)(PARAMS, BATCH))


def test_bfloat16_computes_near_float32_and_returns_float32():
    half = classifier(CONFIG, 2, dtype="bfloat16")
    logits = half.apply(PARAMS, BATCH)
    assert logits.dtype == jnp.float32
    full = classifier(CONFIG, 2).apply(PARAMS, BATCH)
    # bfloat16 keeps 8 bits: 2**-8 of a value, a few roundings deep; not bitwise equal, or it did not compute in it.
    np.testing.assert_allclose(logits, full, atol=16 * 2**-8 * np.abs(full).max())
    assert not np.array_equal(logits, full)
    gradients = jax.jit(jax.grad(lambda p: half.apply(p, BATCH, rng=RNG, train=True).sum()))(PARAMS)
    assert {leaf.dtype for _, leaf in paths(gradients)} == {jnp.dtype("float32")}


def test_traces_under_jit_and_vmap():
    model = classifier(CONFIG, 2)
    jitted = jax.jit(model.apply, static_argnames="train")
    np.testing.assert_allclose(jitted(PARAMS, BATCH), model.apply(PARAMS, BATCH), atol=1e-6)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), PARAMS)
    both = jax.vmap(model.apply, (0, None))(two, BATCH)
    np.testing.assert_allclose(both[0], model.apply(PARAMS, BATCH), atol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"heads": 3}, "width must be a multiple of heads, got width 16 and 3 heads"),
        ({"layers": 0}, "layers must be an integer of at least 1, got 0"),
        ({"width": 16.0}, "width must be an integer of at least 1, got 16.0"),
        ({"activation": "gelo"}, "activation must be one of gelu, .* got 'gelo'"),
        ({"dropout": 1.0}, r"dropout must be a probability in \[0, 1\), got 1.0"),
        ({"head_dropout": -0.1}, "head_dropout must be a probability"),
        ({"norm_epsilon": 0.0}, "norm_epsilon must be a positive number, got 0.0"),
        ({"initializer_range": "x"}, "initializer_range must be a positive number, got 'x'"),
        ({"pad_id": 40}, "pad_id must be None or an id below vocab_size 40, got 40"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_model_refuses():
    with pytest.raises(ValueError, match="classes must be an integer of at least 1, got 0"):
        classifier(CONFIG, 0)
    with pytest.raises(ValueError, match="frozen_layers must be an integer from 0 to 4 for 3 layers, got 5"):
        classifier(CONFIG, 2, frozen_layers=5)
    with pytest.raises(ValueError, match="start must be an integer from 0 to 4 for 3 layers, got -1"):
        classifier(CONFIG, 2, start=-1)
    with pytest.raises(ValueError, match="stop must be an integer from 0 to 4 for 3 layers, got 9"):
        features(CONFIG, stop=9)
    with pytest.raises(ValueError, match="train=True with dropout needs rng"):
        classifier(CONFIG, 2).apply(PARAMS, BATCH, train=True)
    with pytest.raises(ValueError, match="13 tokens long, but the model has 12 positions: truncate"):
        classifier(CONFIG, 2).apply(PARAMS, make_batch(length=13))
