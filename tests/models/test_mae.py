"""A masked autoencoder's model: what it costs, and what it refuses.

Outputs and gradients of every tensor are compared with transformers in tests/convert/test_parity.py.
"""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxptft import models

CONFIG = models.MaeConfig(
    image_size=8,
    patch_size=4,
    width=16,
    layers=1,
    heads=2,
    mlp_width=24,
    decoder_width=8,
    decoder_layers=1,
    decoder_heads=2,
    decoder_mlp_width=12,
)
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
ALL = {"keep": np.array([[0, 1, 2, 3]] * 2), "restore": np.array([[0, 1, 2, 3]] * 2)}


def test_the_encoder_computes_a_quarter_where_three_quarters_are_hidden():
    """FLOPs that XLA counts in the compiled program, of 64 of 256 patches against all."""
    config = replace(CONFIG, image_size=64, width=64, layers=2, mlp_width=256)
    model = models.build(config, "encoder")
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), {"image": images})

    def flops(batch):
        analysis = jax.jit(model.apply).lower(params, batch).compile().cost_analysis()
        return analysis["flops"]

    seen = {patches: {"image": images, "keep": jax.ShapeDtypeStruct((2, patches), np.int32)} for patches in (64, 128)}
    whole = flops({"image": images})
    assert whole > 1e8
    assert flops(seen[64]) < 0.35 * whole
    assert 0.35 * whole < flops(seen[128]) < 0.6 * whole


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(models.build(CONFIG, "pretraining").init, jax.random.key(0), {"image": IMAGES})
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


def test_the_encoder_alone_is_a_vision_transformer(params):
    found = models.build(CONFIG, "encoder").apply(params, {"image": IMAGES})
    encoder = models.build(CONFIG.encoder, "encoder")
    assert jax.tree.structure(params["backbone"]) == jax.tree.structure(
        jax.eval_shape(encoder.init, jax.random.key(0), {"image": IMAGES})["backbone"]
    )
    np.testing.assert_array_equal(found, encoder.apply(params, {"image": IMAGES}))
    vectors = models.pooled(CONFIG).apply(params, {"image": IMAGES})
    np.testing.assert_allclose(vectors, np.asarray(found)[:, 1:].mean(1), rtol=1e-6, atol=1e-6)
    hidden = models.features(CONFIG, stop=1)(params, {"image": IMAGES})
    entered = models.build(CONFIG, "encoder", start=1).apply(params, {"hidden": hidden})
    np.testing.assert_allclose(entered, found, rtol=1e-6, atol=1e-6)


def test_without_tables_every_patch_is_shown(params):
    model = models.build(CONFIG, "pretraining")
    found = model.apply(params, {"image": IMAGES})
    assert found.shape == (2, 4, 48)
    np.testing.assert_allclose(found, model.apply(params, {"image": IMAGES} | ALL), rtol=1e-6, atol=1e-6)


def test_mistakes_are_named(params):
    model = models.build(CONFIG, "pretraining")
    with pytest.raises(ValueError, match="the batch has one of 'keep' and 'restore'; give both"):
        model.apply(params, {"image": IMAGES, "keep": ALL["keep"]})
    with pytest.raises(ValueError, match=r"images have shape \(12, 8, 3\), but the decoder draws 8 x 8 pixels"):
        model.apply(params, {"image": np.zeros((2, 12, 8, 3), np.float32)})
    with pytest.raises(ValueError, match="MAE's pretraining has no start and no outputs"):
        models.build(CONFIG, "pretraining", outputs=["hidden"])
    with pytest.raises(ValueError, match="MAE has no task 'masked_lm': expected one of encoder, classification, pre"):
        models.build(CONFIG, "masked_lm")
    with pytest.raises(ValueError, match="task 'pretraining' has no classes to choose"):
        models.build(CONFIG, "pretraining", classes=3)
    for change, message in [
        ({"decoder_width": 10}, "MaeConfig.decoder_width must be a multiple of 4 for fixed positions"),
        ({"decoder_heads": 3}, "MaeConfig.decoder_width must be a multiple of decoder_heads, got width 8 and 3 heads"),
        ({"mask_ratio": 1.0}, r"MaeConfig.mask_ratio must be a probability in \[0, 1\), got 1.0"),
        ({"channels": 4}, "MaeConfig.channels must be 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **change)
