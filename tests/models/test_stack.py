import jax
import numpy as np
import pytest
from chex import assert_trees_all_equal

from jaxptft import models

RNG = np.random.default_rng(0)
BATCH = {"features": RNG.normal(size=(6, 4)).astype(np.float32), "valid": np.arange(6) < 5}


def test_the_head_reads_what_the_encoder_gives():
    encoder, head = models.mlp("backbone", hidden=(), outputs=3), models.mlp("projector", hidden=(), outputs=2)
    both = models.stack(encoder, head)
    params = both.init(jax.random.key(0), BATCH)
    assert {name: part["out"]["kernel"].shape for name, part in params.items()} == {
        "backbone": (4, 3),
        "projector": (3, 2),
    }
    product = BATCH["features"] @ np.asarray(params["backbone"]["out"]["kernel"] @ params["projector"]["out"]["kernel"])
    np.testing.assert_allclose(both.apply(params, BATCH), product, rtol=1e-5, atol=1e-6)  # fresh biases are 0
    assert both.statistics is None


@pytest.mark.parametrize("below", ["none", "batch"])
def test_statistics_are_those_of_both(below):
    """Against the two applied one after the other; in a stack of three the middle one may have none."""
    encoder = models.mlp("backbone", hidden=(5,), outputs=3, norm=below)
    middle, head = models.mlp("projector", outputs=3), models.mlp("predictor", outputs=2, final_norm="plain")
    stacked = models.stack(models.stack(encoder, middle), head)
    params = stacked.init(jax.random.key(0), BATCH)
    held = stacked.statistics(params)
    assert sorted(held) == (["backbone", "predictor"] if below == "batch" else ["predictor"])

    output, renewed = stacked.apply(params, BATCH, train=True, statistics=held)
    options, expected = {"train": True}, dict(held)
    if below == "batch":
        features, expected = encoder.apply(params, BATCH, **options, statistics=held)
    else:
        features = encoder.apply(params, BATCH, **options)
    features = middle.apply(params, {**BATCH, "features": features}, **options)
    last, expected = head.apply(params, {**BATCH, "features": features}, **options, statistics=expected)
    np.testing.assert_array_equal(output, last)
    assert_trees_all_equal(renewed, expected)
    assert not np.array_equal(renewed["predictor"]["final_norm"]["running_mean"], np.zeros(2))
    np.testing.assert_array_equal(stacked.apply(params, BATCH, train=True), output)
    evaluated, kept = stacked.apply(params, BATCH, statistics=renewed)
    assert_trees_all_equal(kept, renewed)
    assert not np.array_equal(evaluated, stacked.apply(params, BATCH))  # which reads those in params


def test_dropout_of_the_two_has_keys_of_its_own():
    parts = [models.mlp(name, hidden=(4,), outputs=4, dropout=0.5) for name in ("backbone", "projector")]
    both = models.stack(*parts)
    params = both.init(jax.random.key(0), BATCH)
    one, other = (both.apply(params, BATCH, rng=jax.random.key(seed), train=True) for seed in (1, 2))
    assert not np.array_equal(one, other)
    with pytest.raises(ValueError, match="train=True with dropout needs rng"):
        both.apply(params, BATCH, train=True)


def test_parts_that_do_not_fit_are_refused():
    part = models.mlp("backbone", outputs=2)
    with pytest.raises(ValueError, match="both keep parameters under 'backbone'; give the head another key"):
        models.stack(part, part).init(jax.random.key(0), BATCH)
    with pytest.raises(ValueError, match=r"gives an array of shape \(6,\); expected \[batch, width\]"):
        models.stack(models.mlp("backbone"), models.mlp("head")).init(jax.random.key(0), BATCH)
