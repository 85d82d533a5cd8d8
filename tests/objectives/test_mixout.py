import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.objectives import Context, Mean, lift, mix, mixout

P = 0.7
RNG = np.random.default_rng(0)
PARAMS = {
    "backbone": {"kernel": RNG.normal(size=(40, 50)).astype(np.float32), "bias": np.ones(3, np.float32)},
    "classifier": {"kernel": np.ones((3, 2), np.float32)},
}
BEFORE = {"backbone": {"kernel": RNG.normal(size=(40, 50)).astype(np.float32), "bias": None}}


def authors(target, own, noise):
    """`Mixout.forward` of the authors' mixout.py, noise being 1 where the model's own value is kept."""
    return ((1 - noise) * target + noise * own - P * target) / (1 - P)


def test_each_element_and_its_gradient_are_those_of_the_authors_formula():
    key = jax.random.key(0)
    mixed, back = jax.vjp(lambda params: mix(params, BEFORE, key, P)["backbone"]["kernel"], PARAMS)
    target, own = torch.tensor(BEFORE["backbone"]["kernel"]), torch.tensor(PARAMS["backbone"]["kernel"])
    own.requires_grad_()
    put_back = np.isclose(mixed, target, rtol=1e-5, atol=1e-6)
    noise = torch.tensor(~put_back, dtype=torch.float32)
    theirs = authors(target, own, noise)
    theirs.sum().backward()
    np.testing.assert_allclose(mixed, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(back(jnp.ones((40, 50)))[0]["backbone"]["kernel"], own.grad.numpy(), rtol=1e-6)
    assert abs(put_back.mean() - P) < 4 * (P * (1 - P) / put_back.size) ** 0.5  # binomial


def test_the_mean_over_many_draws_is_the_parameters_themselves():
    draw = jax.jit(jax.vmap(lambda key: mix(PARAMS, BEFORE, key, P)["backbone"]["kernel"]))
    kernel, before = PARAMS["backbone"]["kernel"], BEFORE["backbone"]["kernel"]
    draws = np.asarray(draw(jax.random.split(jax.random.key(1), 2000)))
    error = abs(kernel - before) * (P / (1 - P) / 2000) ** 0.5  # of the mean of Bernoulli draws
    assert (abs(draws.mean(0) - kernel) < 5 * error + 1e-4).all()


def test_training_mixes_what_the_reference_has_by_the_key_alone_and_evaluation_nothing():
    def loss(params, batch, context):
        return {"sum": Mean(params["backbone"]["kernel"].sum(), 1)}

    objective = mixout(
        lift(loss, init=lambda rng, batch: PARAMS, predict=lambda params, batch, context: params),
        BEFORE,
        probability=P,
    )
    context = Context({}, objective.constants, jax.random.key(0), True, None)
    seen = objective.predict(PARAMS, {"ids": np.arange(3)}, context)
    again = objective.predict(PARAMS, {"ids": np.arange(9)}, context)
    np.testing.assert_array_equal(seen["backbone"]["kernel"], again["backbone"]["kernel"])
    assert not np.allclose(seen["backbone"]["kernel"], PARAMS["backbone"]["kernel"])
    np.testing.assert_array_equal(seen["backbone"]["bias"], PARAMS["backbone"]["bias"])
    np.testing.assert_array_equal(seen["classifier"]["kernel"], PARAMS["classifier"]["kernel"])
    at_rest = objective.predict(PARAMS, {}, context._replace(train=False))
    assert at_rest is PARAMS
    assert float(objective.loss(PARAMS, {}, context)[0]["sum"].total) == pytest.approx(seen["backbone"]["kernel"].sum())


def test_what_does_not_fit_is_refused():
    objective = lift(lambda params, batch, context: {}, init=lambda rng, batch: {})
    with pytest.raises(ValueError, match=r"probability of mixout must lie in \[0, 1\), got 1"):
        mixout(objective, BEFORE, probability=1.0)
    with pytest.raises(ValueError, match="no pre-trained values to mix in"):
        mixout(objective, {"backbone": None}, probability=0.5)
    with pytest.raises(ValueError, match="a reference for 'backbone/pooler', which params lacks"):
        mix(PARAMS, {"backbone": {"pooler": np.ones(1)}}, jax.random.key(0), P)
    with pytest.raises(ValueError, match=r"shape \(2,\) for 'backbone/bias' of shape \(3,\)"):
        mix(PARAMS, {"backbone": {"bias": np.ones(2)}}, jax.random.key(0), P)
