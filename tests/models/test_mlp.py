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


def test_batch_norms_are_torchs():
    """MoCo v3's projector in torch: Linear, BatchNorm, ReLU, Linear, BatchNorm without scale and bias."""
    torch = pytest.importorskip("torch")
    model = models.mlp("projector", hidden=(5,), outputs=3, norm="batch", final_norm="plain")
    valid = np.array([True, True, True, False])
    batch = {"features": X, "valid": valid}
    params = model.init(jax.random.key(0), batch)
    paths = {f"{layer}/{leaf}" for layer, leaves in params["projector"].items() for leaf in leaves}
    norm = {"running_mean", "running_var"}
    assert paths == {"hidden_0/kernel", "out/kernel"} | {f"final_norm/{name}" for name in norm} | {
        f"hidden_0_norm/{name}" for name in norm | {"scale", "bias"}
    }
    params["projector"]["hidden_0_norm"] |= {"scale": X[0, :5], "bias": X[1, :5]}

    theirs = torch.nn.Sequential(
        torch.nn.Linear(6, 5, bias=False),
        torch.nn.BatchNorm1d(5),
        torch.nn.ReLU(),
        torch.nn.Linear(5, 3, bias=False),
        torch.nn.BatchNorm1d(3, affine=False),
    )
    with torch.no_grad():
        for place, layer in ((0, "hidden_0"), (3, "out")):
            theirs[place].weight.copy_(torch.tensor(np.asarray(params["projector"][layer]["kernel"]).T))
        theirs[1].weight.copy_(torch.tensor(X[0, :5]))
        theirs[1].bias.copy_(torch.tensor(X[1, :5]))
        expected = theirs(torch.tensor(X[valid]))
        output, renewed = model.apply(params, batch, train=True, statistics=model.statistics(params))
        np.testing.assert_allclose(output[valid], expected, rtol=1e-4, atol=1e-5)
        evaluated, _ = model.apply(params, batch, statistics=renewed)
        np.testing.assert_allclose(evaluated, theirs.eval()(torch.tensor(X)), rtol=1e-4, atol=1e-5)


def test_other_norms_are_refused():
    with pytest.raises(ValueError, match="norm must be one of none, batch, got 'layer'"):
        models.mlp("projector", norm="layer")
    with pytest.raises(ValueError, match="final_norm must be one of none, batch, plain, got 'affine'"):
        models.mlp("projector", final_norm="affine")
