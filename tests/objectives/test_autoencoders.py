"""Autoencoders of all kinds and adversarial networks: against torch, and on eight devices as on one."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from chex import assert_trees_all_close

from jaxptft import models, train
from jaxptft.models import ConvConfig
from jaxptft.objectives import (
    Context,
    autoencoder,
    combine,
    denoising,
    example_noise,
    gan,
    gaussian_noise,
    masking_noise,
    salt_and_pepper_noise,
    sparse,
    unchanged,
    vae,
    view_images,
)

VALID = np.isin(np.arange(16), [0, 1, 2, 3, 5, 8, 11, 14, 15])  # of eight devices two have none
SIZES = {"kind": "mlp", "image_size": (4, 3), "widths": (6,), "features": 5, "activation": "tanh"}
PLAIN = ConvConfig(**SIZES, features_activation="sigmoid")
NARROW = ConvConfig(**SIZES, latent=3)
NARROW_AE = ConvConfig(**SIZES)
BATCHED = ConvConfig(**SIZES, features_activation="sigmoid", norm="batch")


def images(seed=0, valid=VALID):
    rng = np.random.default_rng(seed)
    ids = np.where(valid, rng.permutation(len(valid)), -1).astype(np.int32)
    drawn = rng.integers(0, 256, (len(valid), 4, 3, 1)).astype(np.uint8)
    return {"image": drawn, "ids": ids, "valid": np.asarray(valid)}


def heads(config):
    names = ("latent_mean", "latent_log_variance")
    return {name: models.mlp(name, hidden=(), outputs=config.code) for name in names}


def both(config):
    return models.pooled(config), models.build(config, "decoder")


def params_of(objective, batch, seed=1):
    """Parameters far from small initial ones, biases too; running statistics those of the start."""
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        if "running" in str(path):
            return jnp.full(leaf.shape, "var" in str(path), jnp.float32)
        values = rng.normal(0, 0.4, leaf.shape) + 1.5 * ("scale" in str(path))
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(drawn, jax.eval_shape(objective.init, jax.random.key(0), batch))


def context(state, seed=3, train=True):
    return Context(state, None, jax.random.key(seed), train, None)


def gradients(quick, objective, params, batch, seed=3):
    """The terms, the gradient of each, and the metrics."""

    def totals(params):
        terms, (metrics, _) = objective.loss(params, batch, context({}, seed))
        return {name: term.value() for name, term in terms.items()}, metrics

    def run(params):
        found, back, metrics = jax.vjp(totals, params, has_aux=True)
        one = {name: {other: jnp.float32(other == name) for other in found} for name in found}
        return found, {name: back(one[name])[0] for name in found}, metrics

    return quick(run)(params)


def leaves(params):
    return jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), params)


def dense(layer, x):
    layer = layer.get("dense", layer)
    return x @ layer["kernel"] + layer["bias"]


def encode(params, x, last=lambda x: x):
    backbone = params["backbone"]
    return last(dense(backbone["layer_0"], torch.tanh(dense(backbone["stem"], x.flatten(1)))))


def draw(head, code):
    return dense(head["layer_1"], torch.tanh(dense(head["layer_0"], code)))


def assert_gradient(ours, theirs):
    theirs = jax.tree.map(lambda leaf: np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy(), theirs)
    assert_trees_all_close(jax.device_get(ours), theirs, rtol=1e-3, atol=1e-4)


BATCH = images()
SEEN = torch.tensor(BATCH["image"][VALID] / np.float32(255)).flatten(1)


def test_each_autoencoders_loss_and_gradient_are_torchs_over_valid_rows(quick):
    """Squared error of what is drawn from the codes; the penalties of Ng 2011 and L1 from torch too."""
    encoder, decoder = both(PLAIN)
    mean = torch.distributions.Bernoulli(torch.tensor(0.1))
    kinds = {
        "autoencoder": (autoencoder(encoder, decoder), None),
        "kl": (
            sparse(encoder, decoder, weight=2.0, activity=0.1),
            lambda code: 2 * torch.distributions.kl_divergence(mean, torch.distributions.Bernoulli(code.mean(0))).sum(),
        ),
        "l1": (
            sparse(encoder, decoder, sparsity="l1", weight=0.5, likelihood="bernoulli"),
            lambda code: 0.5 * code.abs().sum(1).mean(),
        ),
    }
    params = params_of(kinds["kl"][0], BATCH)
    for name, (objective, penalty) in kinds.items():
        found, slopes, metrics = gradients(quick, objective, params, BATCH)
        ours = leaves(params)
        code = encode(ours, SEEN, torch.sigmoid)
        logits = draw(ours["decoder"], code)
        if name == "l1":
            error = F.binary_cross_entropy_with_logits(logits, SEEN, reduction="none").sum(1).mean()
        else:
            error = F.mse_loss(torch.sigmoid(logits), SEEN, reduction="none").sum(1).mean()
        expected = [error] if penalty is None else [penalty(code), error]
        sum(expected).backward()
        assert list(found) == (["sparse/penalty", "sparse/reconstruction"] if penalty else ["autoencoder"])
        np.testing.assert_allclose(list(found.values()), [value.item() for value in expected], rtol=1e-5)
        assert_gradient(jax.tree.map(lambda *parts: sum(parts), *slopes.values()), ours)
        pixel = F.mse_loss(torch.sigmoid(logits), SEEN).item()
        kind = "sparse" if penalty else "autoencoder"
        np.testing.assert_allclose(metrics[f"{kind}/pixel_error"].value(), pixel, rtol=1e-5)
        if penalty:
            np.testing.assert_allclose(metrics["sparse/activity"].value(), code.mean().item(), rtol=1e-5)
    assert (kinds["kl"][0].coupled, kinds["l1"][0].coupled, autoencoder(*both(BATCHED)).coupled) == (True, False, True)


@pytest.mark.parametrize("likelihood, learnt", [("bernoulli", False), ("gaussian", False), ("gaussian", True)])
def test_the_whole_loss_of_a_vae_and_its_gradient_are_torchs_with_the_same_noise(quick, likelihood, learnt):
    encoder, decoder = both(NARROW)
    objective = vae(encoder, decoder, **heads(NARROW), beta=0.7, likelihood=likelihood, learn_variance=learnt)
    params = params_of(objective, BATCH)
    assert ("likelihood" in params) == learnt
    found, slopes, metrics = gradients(quick, objective, params, BATCH)
    noise = example_noise(jax.random.split(jax.random.key(3), 4)[1], BATCH["ids"], 3)
    ours = leaves(params)
    features = encode(ours, SEEN)
    m, s = (dense(ours[name]["out"], features) for name in ("latent_mean", "latent_log_variance"))
    posterior = torch.distributions.Normal(m, torch.exp(s / 2))
    logits = draw(ours["decoder"], m + posterior.stddev * torch.tensor(np.asarray(noise)[VALID]))
    if likelihood == "bernoulli":
        pixels = -F.binary_cross_entropy_with_logits(logits, SEEN, reduction="none")
    else:
        deviation = torch.exp(ours["likelihood"]["log_variance"] / 2) if learnt else torch.ones(1)
        pixels = torch.distributions.Normal(torch.sigmoid(logits), deviation).log_prob(SEEN)
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    nll = -pixels.sum(1).mean()
    (nll + 0.7 * kl).backward()
    expected = {"vae/reconstruction": nll, "vae/kl": kl, "vae/elbo": -nll - kl}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name].value(), value.item(), rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(found["vae"], (nll + 0.7 * kl).item(), rtol=1e-5)
    assert_gradient(slopes["vae"], ours)


def test_players_learn_as_with_two_optimizers_in_torch(quick):
    """Goodfellow et al. 2014, algorithm 1, with the generator's other loss: D on real and on detached, G through D."""
    discriminator, generator = (models.build(NARROW, task) for task in ("discriminator", "generator"))
    objective = gan(discriminator, generator, encoder=models.pooled(NARROW), noise=3)
    params = params_of(objective, BATCH)
    found, slopes, metrics = gradients(quick, objective, params, BATCH)
    noise = example_noise(jax.random.split(jax.random.key(3), 5)[1], BATCH["ids"], 3)
    ours = leaves(params)
    judge = lambda x: dense(ours["discriminator"]["out"], encode(ours, x))[:, 0]  # noqa: E731
    made = torch.sigmoid(draw(ours["generator"], torch.tensor(np.asarray(noise)[VALID])))
    real, drawn = judge(SEEN), judge(made.detach())
    one, zero = torch.ones(len(SEEN)), torch.zeros(len(SEEN))
    judging = F.binary_cross_entropy_with_logits(real, one) + F.binary_cross_entropy_with_logits(drawn, zero)
    drawing = F.binary_cross_entropy_with_logits(judge(made), one)
    expected = {"gan/discriminator": judging, "gan/generator": drawing}
    judging.backward()
    of_discriminator = jax.tree.map(lambda leaf: leaf, {name: ours[name] for name in ("backbone", "discriminator")})
    own = {name: slopes["gan/discriminator"][name] for name in of_discriminator}
    assert_gradient(own, of_discriminator)
    jax.tree.map(lambda leaf: setattr(leaf, "grad", None), ours)
    drawing.backward(inputs=jax.tree.leaves(ours["generator"]))
    assert_gradient(slopes["gan/generator"]["generator"], ours["generator"])
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.item(), rtol=1e-5)
    # Neither term moves the other player.
    others = [slopes["gan/discriminator"]["generator"]]
    others += [slopes["gan/generator"][name] for name in ("backbone", "discriminator")]
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(others))
    np.testing.assert_allclose(metrics["gan/real_accuracy"].value(), (real > 0).float().mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["gan/drawn_accuracy"].value(), (drawn < 0).float().mean(), rtol=1e-6)


def everything_of(config):
    """What holds the activity of a whole batch down, and two players, with batch norms in each network."""
    encoder, decoder = both(config)
    judge, generator = (models.build(config, task) for task in ("discriminator", "generator"))
    parts = {
        "sparse": sparse(encoder, decoder, activity=0.2),
        "gan": gan(judge, generator, encoder=encoder, noise=config.code),
    }
    return combine({name: (1.0, part) for name, part in parts.items()}, reads=dict.fromkeys(parts, "task"))


@pytest.fixture(scope="module")
def together(quick):
    objective, batch = everything_of(BATCHED), {"task": images(2)}
    params = params_of(objective, batch)
    learnt = jax.tree_util.tree_map_with_path(lambda path, _: "running" not in str(path), params)

    def after(devices, kind):
        mesh = train.make_mesh(jax.devices()[:devices])
        axis = "data" if kind == "mapped" else None
        step = train.make_step(objective, optax.sgd(1.0), trainable=learnt, axis_name=axis)
        state = train.create_state(objective, optax.sgd(1.0), params, batch, trainable=learnt, rng=jax.random.key(2))
        run: Any = (train.mapped_step if kind == "mapped" else train.jit_step)(step, mesh)
        given = (train.replicate(state, mesh), train.replicate(objective.constants, mesh), train.shard(batch, mesh))
        run = run.lower(*given).compile(compiler_options={"xla_backend_optimization_level": 0})
        state, metrics = run(*given)
        moved = jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), state.params, params)
        values = {name: float(mean.value()) for name, mean in jax.device_get(metrics).items()}
        return SimpleNamespace(gradient=moved, state=jax.device_get(state.objective_state), metrics=values)

    return SimpleNamespace(after=after, alone=after(1, "jit"))


@pytest.mark.parametrize("kind", ["jit", "mapped"])
def test_losses_gradient_and_statistics_on_eight_devices_equal_one_devices(together, kind):
    alone, eight = together.alone, together.after(8, kind)
    assert alone.metrics["skipped"] == 0
    assert {"sparse/sparse/penalty/loss", "gan/gan/discriminator/loss", "gan/gan/generator/loss"} <= set(alone.metrics)
    assert_trees_all_close(eight.metrics, alone.metrics, rtol=1e-5, atol=1e-6)
    assert_trees_all_close(eight.gradient, alone.gradient, rtol=1e-4, atol=1e-5)
    assert_trees_all_close(eight.state, alone.state, rtol=1e-5, atol=1e-6)
    statistics = alone.state["gan"]["statistics"]
    assert sorted(statistics) == ["backbone", "decoder", "generator"]  # of all parameters there are
    # The networks' norms were renewed, those of the head that this part does not read were not.
    means = {
        name: statistics[name]["layer_0" if name != "backbone" else "stem"]["norm"]["running_mean"]
        for name in statistics
    }
    assert {name: bool(mean.any()) for name, mean in means.items()} == {
        "backbone": True,
        "decoder": False,
        "generator": True,
    }


@pytest.mark.parametrize(
    "noise, spoilt",
    [
        (masking_noise(0.3), lambda x, seen: {"0": (seen == 0).mean(), "kept": (seen == x).mean()}),
        (
            salt_and_pepper_noise(0.3),
            lambda x, seen: {
                "0": 2 * (seen == 0).mean() - 0.0,
                "kept": (seen == x).mean(),
                "1": (seen == 1).mean() + 0.15,
            },
        ),
        (gaussian_noise(0.3), lambda x, seen: {"deviation": (seen - x).std(), "kept": 0.7 + (seen - x).mean()}),
    ],
    ids=["masking", "salt and pepper", "gaussian"],
)
def test_noise_is_of_its_kind_and_drawn_by_id(quick, noise, spoilt):
    """Of a share of .3 and of 4800 numbers: 5 standard deviations are .033."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.1, 0.9, (40, 10, 12, 1)).astype(np.float32)
    batch = {"image": x, "ids": np.arange(40, dtype=np.int32)}
    view = quick(lambda seed, batch: view_images(noise, jax.random.key(seed), batch))
    seen = np.asarray(view(1, batch))
    wanted = {"0": 0.3, "kept": 0.7, "1": 0.3, "deviation": 0.3}
    for name, share in spoilt(x, seen).items():
        assert abs(share - wanted[name]) < 0.035, name
    order = rng.permutation(40)
    part = {name: value[order] for name, value in batch.items()}
    np.testing.assert_array_equal(view(1, part), seen[order])
    assert (np.asarray(view(2, batch)) != seen).any()


def test_denoising_draws_the_clean_image_from_the_spoilt_one(quick):
    encoder, decoder = both(PLAIN)
    noise = salt_and_pepper_noise(0.4)
    objective = denoising(encoder, decoder, noise=noise)
    params = params_of(objective, BATCH)
    terms, (metrics, _) = quick(lambda: objective.loss(params, BATCH, context({})))()
    clean = BATCH["image"] / np.float32(255)
    spoilt = view_images(noise, jax.random.split(jax.random.key(3), 4)[1], {**BATCH, "image": clean})
    drawn = jax.nn.sigmoid(decoder.apply(params, {"features": encoder.apply(params, {"image": spoilt})}))
    error = np.square(clean - drawn)[VALID]
    np.testing.assert_allclose(terms["denoising"].value(), error.sum((1, 2, 3)).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["denoising/pixel_error"].value(), error.mean(), rtol=1e-5)
    shown = np.square(clean - spoilt)[VALID].mean()
    np.testing.assert_allclose(metrics["denoising/spoilt_error"].value(), shown, rtol=1e-5)
    # What is predicted is of images without noise.
    found = objective.predict(params, BATCH, context({}, train=False))["features"]
    np.testing.assert_allclose(found, encoder.apply(params, {"image": clean}), rtol=1e-5)


def test_evaluation_is_a_function_of_the_ids_of_valid_rows(quick):
    config = ConvConfig(**SIZES, latent=1)  # whose heads give [batch]
    objective = vae(*both(config), **heads(config))
    batch = {**BATCH, "image": BATCH["image"] / np.float32(255)}
    params = params_of(objective, batch)
    run = quick(lambda batch: objective.loss(params, batch, context({}, train=False))[0]["vae"])
    value = run(batch)
    assert int(value.count) == VALID.sum()
    order = np.random.default_rng(0).permutation(16)
    shuffled = run({name: leaf[order] for name, leaf in batch.items()})
    broken = run({**batch, "image": np.where(VALID[:, None, None, None], batch["image"], 7.0)})
    np.testing.assert_allclose([shuffled.total, broken.total], value.total, rtol=1e-5)
    others = run({**batch, "ids": batch["ids"] + 100})
    assert abs(others.total - value.total) > 0.1
    assert float(run({**batch, "valid": np.zeros(16, bool)}).value()) == 0.0
    found = objective.predict(params, batch, context({}, train=False))
    features = encode_numpy(params, batch["image"])
    np.testing.assert_allclose(found["features"], features, rtol=1e-4, atol=1e-5)
    head = params["latent_mean"]["out"]
    np.testing.assert_allclose(found["latent"], features @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


def encode_numpy(params, x):
    return encode(jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), params), torch.tensor(x)).numpy()


def test_views_are_for_training_and_plain_ones_for_the_rest(quick):
    encoder, decoder = both(NARROW_AE)
    half = lambda key, image: unchanged(key, image) * 0.5  # noqa: E731
    third = lambda key, image: unchanged(key, image) / 3  # noqa: E731
    objective = autoencoder(encoder, decoder, view=half, plain=third)
    params = params_of(objective, BATCH)
    run = quick(lambda: [objective.loss(params, BATCH, context({}, train=train))[0] for train in (True, False)])
    for terms, factor in zip(run(), (0.5, 1 / 3), strict=True):
        seen = BATCH["image"][VALID] / np.float32(255) * np.float32(factor)
        theirs = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), params)
        logits = draw(theirs["decoder"], encode(theirs, torch.tensor(seen)))
        expected = np.square(torch.sigmoid(logits).numpy() - seen.reshape(len(seen), -1)).sum(1).mean()
        np.testing.assert_allclose(terms["autoencoder"].value(), expected, rtol=1e-5)
    found = objective.predict(params, BATCH, context({}, train=False))["features"]
    np.testing.assert_allclose(found, encode_numpy(params, BATCH["image"] / np.float32(765)), rtol=1e-4, atol=1e-5)


def test_mistakes_are_named():
    encoder, decoder = both(PLAIN)
    with pytest.raises(ValueError, match="likelihood is 'laplace'; expected 'gaussian' or 'bernoulli'"):
        autoencoder(encoder, decoder, likelihood="laplace")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sparsity is 'l2'; expected 'kl' or 'l1'"):
        sparse(encoder, decoder, sparsity="l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight of sparsity must be at least 0, got -1"):
        sparse(encoder, decoder, weight=-1)
    with pytest.raises(ValueError, match=r"activity is 1\.5; expected how often a unit shall be active"):
        sparse(encoder, decoder, activity=1.5)
    with pytest.raises(ValueError, match=r"beta must be at least 0, got -0\.1"):
        vae(encoder, decoder, **heads(PLAIN), beta=-0.1)
    with pytest.raises(ValueError, match="learn_variance is for Gaussian pixels, and these are Bernoulli"):
        vae(encoder, decoder, **heads(PLAIN), learn_variance=True)
    for view in (masking_noise, salt_and_pepper_noise):
        with pytest.raises(ValueError, match=r"share is 1\.2; expected a share of the pixels from 0 to 1"):
            view(1.2)
    with pytest.raises(ValueError, match="deviation is -1; expected at least 0"):
        gaussian_noise(-1)
    generator = models.build(PLAIN, "generator")
    with pytest.raises(ValueError, match="noise is 0; expected at least 1 number"):
        gan(encoder, generator, encoder=encoder, noise=0)
    other = models.build(ConvConfig(**SIZES | {"image_size": (5, 3)}), "decoder")
    objective = autoencoder(encoder, other)
    params = params_of(objective, BATCH)
    with pytest.raises(ValueError, match=r"the decoder drew images of shape \(16, 5, 3, 1\); expected \(16, 4, 3, 1\)"):
        objective.loss(params, BATCH, context({}))
    wide = models.build(ConvConfig(**SIZES | {"image_size": (5, 3)}), "generator")
    judge = models.build(PLAIN, "discriminator")
    for pair, message in (
        ((judge, wide), r"the generator drew images of shape \(16, 5, 3, 1\); expected \(16, 4, 3, 1\)"),
        ((encoder, generator), r"the discriminator gave logits of shape \(16, 5\); expected \(16,\)"),
    ):
        objective = gan(*pair, encoder=encoder, noise=5)
        params = params_of(objective, BATCH)
        with pytest.raises(ValueError, match=message):
            objective.loss(params, BATCH, context({}))
    both_drawing = gan(models.build(PLAIN, "generator"), generator, encoder=encoder, noise=5)
    with pytest.raises(ValueError, match="discriminator and generator both keep parameters under 'generator'"):
        both_drawing.init(jax.random.key(0), {**BATCH, "noise": jnp.zeros((16, 5))})
    grids = models.Model(lambda rng, batch: {}, lambda params, batch, **options: batch["image"])
    with pytest.raises(ValueError, match=r"the encoder gives an array of shape \(16, 4, 3, 1\); expected codes"):
        autoencoder(grids, decoder).init(jax.random.key(0), BATCH)
