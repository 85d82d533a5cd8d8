"""GPT-2 beside torch: packing, the cache, entry at a layer, dropout, initialization and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft import models
from jaxptft.models import Gpt2Config, gpt2

DROPLESS = {"dropout": 0.0, "attention_dropout": 0.0, "residual_dropout": 0.0, "head_dropout": 0.0}
CONFIG = Gpt2Config(vocab_size=40, width=16, layers=2, heads=4, positions=12, **DROPLESS)
TEXTS = [np.random.default_rng(0).integers(1, 40, length).astype(np.int32) for length in (7, 3, 5, 4)]


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    """Compiling is most of the time that models this small take."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def padded(texts, length: int, *, left: bool = False) -> dict[str, np.ndarray]:
    ids, mask = np.zeros((2, len(texts), length), np.int32)
    for row, text in enumerate(texts):
        place = slice(length - len(text), length) if left else slice(len(text))
        ids[row, place], mask[row, place] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def params():
    """Every leaf random, biases and norms too."""
    fresh = jax.jit(models.build(CONFIG, "causal_lm").init)(jax.random.key(0), padded(TEXTS, 7))
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.5 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


@pytest.fixture(scope="module")
def logits(params):
    """Of the language model over the padded texts."""
    return np.asarray(jax.jit(models.build(CONFIG, "causal_lm").apply)(params, padded(TEXTS, 7)))


def test_packed_rows_give_the_logits_and_gradients_of_unpacked_ones(params):
    unpacked = padded(TEXTS, 7)
    # By hand: texts 0 and 1 in one row, 2 and 3 in the other, one place of padding in each.
    packed = {name: np.zeros((2, 11), np.int32) for name in ("input_ids", "segment_ids", "position_ids")}
    places = []
    for number, text in enumerate(TEXTS):
        row, segment = divmod(number, 2)
        start = segment * len(TEXTS[number - 1])
        places.append((row, start))
        for name, value in (("input_ids", text), ("segment_ids", segment + 1), ("position_ids", range(len(text)))):
            packed[name][row, start : start + len(text)] = value
    packed["attention_mask"] = (packed["segment_ids"] > 0).astype(np.int32)
    weights = np.random.default_rng(3).normal(size=(4, 7, 40)).astype(np.float32)
    weights *= unpacked["attention_mask"][..., None]
    packed_weights = np.zeros((2, 11, 40), np.float32)
    for number, (row, start) in enumerate(places):
        length = len(TEXTS[number])
        packed_weights[row, start : start + length] = weights[number, :length]
    model = models.build(CONFIG, "causal_lm")

    @jax.jit
    def outcome(params, batch, weights):
        logits = model.apply(params, batch)
        return (logits * weights).sum(), logits

    run = jax.value_and_grad(outcome, has_aux=True)
    (_, expected), expected_gradient = run(params, unpacked, weights)
    (_, found), gradient = run(params, packed, packed_weights)
    for number, (row, start) in enumerate(places):
        length = len(TEXTS[number])
        np.testing.assert_allclose(
            found[row, start : start + length], expected[number, :length], atol=1e-5 * np.abs(expected).max()
        )
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradient))
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * scale)


def test_a_packed_row_may_be_longer_than_the_positions(params):
    batch = {
        "input_ids": np.ones((1, 16), np.int32),
        "segment_ids": np.repeat([[1, 2]], 8, axis=1),
        "position_ids": np.tile(np.arange(8), 2)[None],
    }
    hidden = models.build(CONFIG, "encoder").apply(params, batch)
    np.testing.assert_allclose(hidden[:, :8], hidden[:, 8:], atol=1e-5)  # the same text twice


@pytest.mark.parametrize("left", [False, True])
def test_reading_with_a_cache_equals_the_uncached_forward(params, logits, left):
    decoder = models.decoder(CONFIG)
    read = jax.jit(decoder.read)
    # All but the last two tokens of each text at once, then one by one.
    prompt = padded([text[:-2] for text in TEXTS], 5, left=left)
    found, cache = read(params, prompt["input_ids"], decoder.empty(4, 7), prompt["attention_mask"])
    for behind in (3, 2, 1):
        expected = np.stack([logits[row, len(text) - behind] for row, text in enumerate(TEXTS)])
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
        if behind > 1:
            found, cache = read(params, np.stack([text[[1 - behind]] for text in TEXTS]), cache)
    assert cache.seen.tolist() == [len(text) for text in TEXTS]
    assert cache.filled == 7


@pytest.fixture(scope="module")
def drawn(params):
    """A function: six tokens after each text, drawn with the key of a seed."""
    write = jax.jit(partial(models.generate, models.decoder(CONFIG), new=6))
    return lambda texts, seed: np.asarray(write(params, *padded(texts, 7).values(), rng=jax.random.key(seed)).tokens)


def test_what_a_row_draws_is_its_own_and_repeats(drawn):
    together = drawn(TEXTS, 5)
    np.testing.assert_array_equal(drawn(TEXTS, 5), together)
    np.testing.assert_array_equal(drawn([TEXTS[0], *TEXTS[2:], TEXTS[1]], 5)[0], together[0])
    assert (drawn(TEXTS, 6) != together).any()


def test_after_a_stop_comes_padding(params, drawn):
    free = drawn(TEXTS, 5)
    stop = int(free[2, 1])
    write = partial(models.generate, models.decoder(CONFIG), new=6, stop=(stop,), pad_id=39)
    found = jax.jit(write)(params, *padded(TEXTS, 7).values(), rng=jax.random.key(5))
    for row, tokens in enumerate(free):
        end = tokens.tolist().index(stop) + 1 if stop in tokens else 6
        assert found.lengths[row] == end
        assert found.tokens[row].tolist() == [*tokens[:end], *[39] * (6 - end)]


def test_entered_at_any_depth_gives_the_same(params, logits):
    batch = padded(TEXTS, 7)
    for depth in range(CONFIG.layers + 2):
        entered = {"attention_mask": batch["attention_mask"]}
        entered["hidden"] = gpt2.features(CONFIG, stop=depth)(params, batch)
        found = models.build(CONFIG, "causal_lm", start=depth).apply(params, entered)
        np.testing.assert_allclose(found, logits, atol=1e-5 * np.abs(logits).max())


def test_choices_can_be_entered_and_keep_their_axis(params):
    batch = {name: value.reshape(2, 2, 7) for name, value in padded(TEXTS, 7).items()}
    model = models.build(CONFIG, "multiple_choice")
    own = {**params, "multiple_choice": model.init(jax.random.key(0), batch)["multiple_choice"]}
    entered = {"attention_mask": batch["attention_mask"], "hidden": gpt2.features(CONFIG, stop=1)(own, batch)}
    assert entered["hidden"].shape == (2, 2, 7, 16)
    expected = model.apply(own, batch)
    assert expected.shape == (2, 2)
    found = models.build(CONFIG, "multiple_choice", start=1).apply(own, entered)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("place", ["dropout", "attention_dropout", "residual_dropout", "head_dropout"])
def test_each_dropout_acts_in_training_and_not_in_a_frozen_prefix(params, place):
    config = Gpt2Config(**{**vars(CONFIG), place: 0.5})
    batch = padded(TEXTS, 7)
    task = {"task": "token_classification", "classes": 2} if place == "head_dropout" else {"task": "causal_lm"}
    model = models.build(config, **task)
    own = {**model.init(jax.random.key(0), batch), **params}
    still = model.apply(own, batch)
    moved = model.apply(own, batch, rng=jax.random.key(0), train=True)
    assert np.abs(moved - still).max() > 1e-3
    frozen = models.build(config, **task, frozen_layers=CONFIG.layers).apply(
        own, batch, rng=jax.random.key(0), train=True
    )
    assert (np.abs(frozen - still).max() > 1e-3) == (place == "head_dropout")
    with pytest.raises(ValueError, match="train=True with dropout needs rng"):
        model.apply(own, batch, train=True)


def test_initialization_is_that_of_the_paper():
    """Expected: those of transformers' `_init_weights`; section 2.3 divides by sqrt(residual layers), here 4."""
    config = Gpt2Config(vocab_size=300, width=64, layers=2, heads=4, positions=100)
    fresh = jax.jit(models.build(config, "classification", classes=40).init)(jax.random.key(0), padded(TEXTS, 7))
    backbone = fresh["backbone"]
    layer = backbone["layer_1"]
    for leaf, deviation in (
        (backbone["embeddings"]["word"]["embedding"], 0.02),
        (backbone["embeddings"]["position"]["embedding"], 0.02),
        (layer["attention"]["qkv"]["kernel"], 0.02),
        (layer["mlp"]["up"]["kernel"], 0.02),
        (layer["attention"]["output"]["kernel"], 0.02 / np.sqrt(4)),
        (layer["mlp"]["down"]["kernel"], 0.02 / np.sqrt(4)),
        (fresh["classifier"]["kernel"], 0.02),
    ):
        assert np.std(leaf) == pytest.approx(deviation, rel=0.06)
    assert layer["mlp"]["up"]["kernel"].shape == (64, 256)
    assert not layer["attention"]["qkv"]["bias"].any()
    assert (backbone["final_norm"]["scale"] == 1).all()
    assert fresh["classifier"].keys() == {"kernel"}


def test_a_task_has_its_own_parameters_only_and_ignores_others(params):
    batch = padded(TEXTS, 7)
    language = models.build(CONFIG, "causal_lm")
    assert language.init(jax.random.key(0), batch).keys() == {"backbone"}
    answers = models.build(CONFIG, "question_answering").init(jax.random.key(0), batch)
    assert answers.keys() == {"backbone", "question_answering"}
    np.testing.assert_array_equal(
        language.apply({**params, "question_answering": answers["question_answering"]}, batch),
        language.apply(params, batch),
    )


def test_half_precision_stays_near_and_gives_float32_logits(params, logits):
    batch = padded(TEXTS, 7)
    found = jax.jit(models.build(CONFIG, "causal_lm", dtype="bfloat16").apply)(params, batch)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, logits, atol=0.1 * np.abs(logits).max())
    hidden = jax.eval_shape(models.build(CONFIG, "encoder", dtype="bfloat16").apply, params, batch)
    assert hidden.dtype == jnp.bfloat16
    decoder = models.decoder(CONFIG, dtype="bfloat16")
    next_logits, cache = jax.jit(decoder.read)(params, TEXTS[0][None], decoder.empty(1, 7))
    assert cache.keys[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(next_logits[0], logits[0, -1], atol=0.1 * np.abs(logits).max())


@pytest.mark.parametrize(
    "values, message",
    [
        ({"width": 15}, "width must be a multiple of heads, got width 15 and 12 heads"),
        ({"layers": 0}, "layers must be an integer of at least 1, got 0"),
        ({"mlp_width": -1}, "mlp_width must be an integer of at least 1, got -1"),
        ({"activation": "none"}, "activation must be one of .*, got 'none'"),
        ({"head_dropout": 1.0}, r"head_dropout must be a probability in \[0, 1\), got 1.0"),
        ({"norm_epsilon": 0}, "norm_epsilon must be a positive number, got 0"),
        ({"scale_by_layer": 1}, "scale_by_layer must be True or False, got 1"),
        ({"pad_id": 50257}, "pad_id must be None or an id below vocab_size 50257, got 50257"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
    ],
)
def test_configs_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=f"Gpt2Config.{message}"):
        Gpt2Config(**values)


def test_what_does_not_fit_is_refused(params):
    with pytest.raises(ValueError, match=r"task must be one of encoder, causal_lm, .* for GPT-2, got 'masked_lm'"):
        models.build(CONFIG, "masked_lm")
    with pytest.raises(ValueError, match="classes must be an integer of at least 1, got None"):
        models.build(CONFIG, "classification")
    with pytest.raises(ValueError, match="task 'causal_lm' has no classes to choose, got classes=3: leave it out"):
        models.build(CONFIG, "causal_lm", classes=3)
    with pytest.raises(ValueError, match="start must be an integer from 0 to 3 for 2 layers, got 4"):
        models.build(CONFIG, "causal_lm", start=4)
    with pytest.raises(ValueError, match="input_ids are 13 tokens long, but the model has 12 positions"):
        models.build(CONFIG, "causal_lm").apply(params, {"input_ids": np.ones((1, 13), np.int32)})
    packed = {"input_ids": np.ones((1, 4), np.int32), "segment_ids": np.ones((1, 4), np.int32)}
    with pytest.raises(ValueError, match="classification reads the last token of each row, but the rows are packed"):
        models.build(CONFIG, "classification", classes=2).init(jax.random.key(0), packed)
    with pytest.raises(ValueError, match="new must be at least 1 token, got 0"):
        models.generate(models.decoder(CONFIG), params, TEXTS[0][None], new=0, rng=jax.random.key(0))
    with pytest.raises(ValueError, match="slots must be from 1 to the model's 12 positions, got 13"):
        models.generate(models.decoder(CONFIG), params, TEXTS[0][None], new=7, rng=jax.random.key(0))
