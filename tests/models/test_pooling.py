import jax
import numpy as np
import pytest

from jaxptft import models

SIZES = {"vocab_size": 40, "width": 16, "layers": 2, "heads": 2, "mlp_width": 24, "positions": 12, "pad_id": 0}
CONFIGS = {
    "bert": models.BertConfig(**SIZES),
    "modernbert": models.ModernBertConfig(**SIZES),
    "gpt2": models.Gpt2Config(**SIZES),
}
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
BATCH = {"input_ids": np.random.default_rng(0).integers(1, 40, MASK.shape), "attention_mask": MASK}


@pytest.fixture(scope="module", params=CONFIGS)
def case(request):
    config = CONFIGS[request.param]
    params = jax.jit(models.build(config, "encoder").init)(jax.random.key(0), BATCH)
    return config, params, np.asarray(models.build(config, "encoder").apply(params, BATCH), np.float64)


def test_each_pooling_is_numpys_of_the_last_hidden_states(case):
    config, params, hidden = case
    expected = {
        "mean": (hidden * MASK[..., None]).sum(1) / MASK.sum(1)[:, None],
        "first": hidden[:, 0],
        "last": hidden[[0, 1, 2], [2, 4, 4]],
    }
    for pooling in expected.keys() - ({"first"} if isinstance(config, models.Gpt2Config) else set()):
        found = models.pooled(config, pooling).apply(params, BATCH)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[pooling], rtol=1e-5, atol=1e-6)
    unmasked = models.pooled(config).apply(params, {"input_ids": BATCH["input_ids"]})
    whole = models.build(config, "encoder").apply(params, {"input_ids": BATCH["input_ids"]})
    np.testing.assert_allclose(unmasked, np.asarray(whole).mean(1), rtol=1e-5, atol=1e-6)


def test_the_pooler_is_what_the_classifier_reads():
    config = CONFIGS["bert"]
    model = models.pooled(config, "pooler")
    params = jax.jit(model.init)(jax.random.key(0), BATCH)
    expected = models.features(config, stop=config.layers + 1)(params, BATCH)
    np.testing.assert_allclose(model.apply(params, BATCH), expected, rtol=1e-5, atol=1e-6)
    # It has parameters only where it is read.
    assert params["backbone"].keys() - models.pooled(config).init(jax.random.key(0), BATCH)["backbone"].keys() == {
        "pooler"
    }


def test_entered_above_a_frozen_prefix_it_is_the_same():
    config = CONFIGS["gpt2"]
    params = jax.jit(models.pooled(config).init)(jax.random.key(0), BATCH)
    entered = {"hidden": models.features(config, stop=1)(params, BATCH), "attention_mask": MASK}
    found = models.pooled(config, start=1).apply(params, entered)
    np.testing.assert_allclose(found, models.pooled(config).apply(params, BATCH), rtol=1e-5, atol=1e-6)


def test_dropout_needs_and_uses_its_key():
    model = models.pooled(CONFIGS["bert"])
    params = jax.jit(model.init)(jax.random.key(0), BATCH)
    one, other = (model.apply(params, BATCH, rng=jax.random.key(seed), train=True) for seed in (1, 2))
    assert (np.asarray(one) != np.asarray(other)).any()
    with pytest.raises(ValueError, match="train=True with dropout needs rng"):
        model.apply(params, BATCH, train=True)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="pooling must be one of mean, first, last, pooler, got 'max'"):
        models.pooled(CONFIGS["bert"], "max")
    with pytest.raises(ValueError, match="pooling 'pooler' needs a model with a pooler"):
        models.pooled(CONFIGS["modernbert"], "pooler")
    with pytest.raises(ValueError, match="the first token of GPT-2 sees no other"):
        models.pooled(CONFIGS["gpt2"], "first")
    with pytest.raises(ValueError, match="one vector a row, but the rows are packed"):
        models.pooled(CONFIGS["bert"]).apply({}, BATCH | {"segment_ids": MASK})
