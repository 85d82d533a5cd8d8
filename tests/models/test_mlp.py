import jax
import numpy as np
import pytest

from jaxptft import models

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def test_the_layers_are_numpys():
    model = models.mlp("domain", hidden=(5, 3), outputs=2)
    params = model.init(jax.random.key(0), {"features": X})
    assert list(params) == ["domain"]
    x = X
    for name in ("hidden_0", "hidden_1", "out"):
        x = x @ np.asarray(params["domain"][name]["kernel"]) + np.asarray(params["domain"][name]["bias"])
        x = x if name == "out" else np.maximum(x, 0)
    np.testing.assert_allclose(model.apply(params, {"features": X}), x, rtol=1e-5, atol=1e-6)


def test_one_output_has_no_axis_and_dropout_needs_a_key():
    model = models.mlp("domain", dropout=0.5)
    params = model.init(jax.random.key(0), {"features": X})
    plain = model.apply(params, {"features": X})
    assert plain.shape == (4,)
    assert (model.apply(params, {"features": X}, rng=jax.random.key(1), train=True) != plain).any()
    with pytest.raises(ValueError, match="train=True with dropout needs rng"):
        model.apply(params, {"features": X}, train=True)
    linear = models.mlp("domain", hidden=()).init(jax.random.key(0), {"features": X})
    assert list(linear["domain"]) == ["out"]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"integers of at least 1, got \(0,\) and 1"):
        models.mlp("domain", hidden=(0,))
    with pytest.raises(ValueError, match=r"dropout must be a probability in \[0, 1\), got 1.0"):
        models.mlp("domain", dropout=1.0)
