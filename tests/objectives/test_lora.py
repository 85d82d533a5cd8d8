from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft import optim
from jaxptft.objectives import Context, classification, init_lora, lora, lora_scale, merge_lora

WIDTHS = (6, 4)


@pytest.fixture(scope="module")
def case():
    """tanh(x K) C with an adapter for K, its b far from zero, and five rows of which three count."""
    rng = np.random.default_rng(0)

    def init(rng, batch):
        one, other = jax.random.split(rng)
        return {
            "backbone": {"layer_0": {"kernel": jax.random.normal(one, WIDTHS), "bias": jnp.zeros(4)}},
            "classifier": {"kernel": jax.random.normal(other, (4, 2))},
        }

    def apply(params, batch, *, rng, train):
        layer = params["backbone"]["layer_0"]
        return jnp.tanh(batch["x"] @ layer["kernel"] + layer["bias"]) @ params["classifier"]["kernel"]

    batch = {
        "x": rng.normal(size=(5, 6)).astype(np.float32),
        "label": np.array([0, 1, 1, 0, 0], np.int32),
        "ids": np.arange(5, dtype=np.int32),
        "valid": np.array([True, True, True, False, False]),
    }
    params = init(jax.random.key(0), batch)
    targets = optim.mask(params, "backbone/*/kernel")
    return SimpleNamespace(model=SimpleNamespace(init=init, apply=apply), batch=batch, params=params, targets=targets)


def test_the_start_is_the_model_itself_and_a_is_drawn_as_peft_draws_it(case):
    adapters = init_lora(jax.random.key(1), case.params, case.targets, rank=2)
    assert jax.tree.map(jnp.shape, adapters) == {"backbone": {"layer_0": {"kernel": {"a": (6, 2), "b": (2, 4)}}}}
    merged = merge_lora(case.params | {"lora": adapters}, scale=3.0)
    assert jax.tree.structure(merged) == jax.tree.structure(case.params)
    assert all(map(np.array_equal, jax.tree.leaves(merged), jax.tree.leaves(case.params)))

    wide = {"kernel": jnp.zeros((64, 8))}
    drawn = np.asarray(init_lora(jax.random.key(1), wide, {"kernel": True}, rank=50)["kernel"]["a"])
    torch.manual_seed(0)
    theirs = torch.nn.init.kaiming_uniform_(torch.empty(50, 64), a=5**0.5).numpy()  # peft's reset_lora_parameters
    assert max(abs(drawn).max(), abs(theirs).max()) <= 1 / 8
    np.testing.assert_allclose(drawn.std(), theirs.std(), rtol=0.03)


def test_loss_and_gradients_of_what_trains_equal_torch(case):
    scale = lora_scale(rank=2, alpha=8.0)
    objective = lora(classification(case.model), scale=scale, targets=case.targets, rank=2)
    params = objective.init(jax.random.key(2), case.batch)
    key = jax.random.key(3)
    params["lora"]["backbone"]["layer_0"]["kernel"]["b"] = jax.random.normal(key, (2, 4))
    trained = jax.tree.map(lambda _: True, params)
    trained["backbone"] = jax.tree.map(lambda _: False, params["backbone"])
    learnt, frozen = optim.partition(params, trained)
    context = Context({}, objective.constants, jax.random.key(0), True, None)

    def value(learnt):
        return objective.loss(optim.merge(learnt, frozen), case.batch, context)[0]["classification"].value()

    loss, gradient = jax.value_and_grad(value)(learnt)
    assert not jax.tree.leaves(gradient["backbone"])

    leaf = lambda x: torch.tensor(np.asarray(x), requires_grad=True)  # noqa: E731
    adapter = params["lora"]["backbone"]["layer_0"]["kernel"]
    a, b, head = leaf(adapter["a"]), leaf(adapter["b"]), leaf(params["classifier"]["kernel"])
    x = torch.tensor(case.batch["x"][:3])
    # Apart, as LoRA is usually computed, and not as one kernel.
    hidden = torch.tanh(x @ leaf(params["backbone"]["layer_0"]["kernel"]) + 4.0 * ((x @ a) @ b))
    theirs = torch.nn.functional.cross_entropy(hidden @ head, torch.tensor([0, 1, 1]))
    theirs.backward()
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-5)
    ours = gradient["lora"]["backbone"]["layer_0"]["kernel"]
    for own, other in ((ours["a"], a), (ours["b"], b), (gradient["classifier"]["kernel"], head)):
        np.testing.assert_allclose(own, other.grad.numpy(), rtol=1e-4, atol=1e-6)
    predicted = objective.predict(params, case.batch, context)["logits"][:3]
    np.testing.assert_allclose(predicted, (hidden @ head).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_one_adapter_more_changes_no_other_draw(case):
    params = {"layer_0": {"kernel": jnp.zeros((3, 3))}, "layer_1": {"kernel": jnp.zeros((3, 3))}}
    key = jax.random.key(0)
    both = init_lora(key, params, optim.mask(params, "**/kernel"), rank=1)
    alone = init_lora(key, params, optim.mask(params, "layer_1/kernel"), rank=1)
    np.testing.assert_array_equal(both["layer_1"]["kernel"]["a"], alone["layer_1"]["kernel"]["a"])
    assert not np.array_equal(both["layer_0"]["kernel"]["a"], both["layer_1"]["kernel"]["a"])


def test_what_cannot_be_adapted_or_merged_is_refused(case):
    key, params = jax.random.key(0), case.params
    with pytest.raises(ValueError, match=r"'backbone/layer_0/bias' of shape \(4,\) has no adapter"):
        init_lora(key, params, optim.mask(params, "**/bias"), rank=2)
    with pytest.raises(ValueError, match="no kernel is to have an adapter"):
        init_lora(key, params, jax.tree.map(lambda _: False, params), rank=2)
    with pytest.raises(ValueError, match="the rank of an adapter must be at least 1, got 0"):
        init_lora(key, params, case.targets, rank=0)
    with pytest.raises(ValueError, match="alpha must be positive, got 0"):
        lora_scale(rank=1, alpha=0.0)
    with pytest.raises(ValueError, match=r"no 'lora': there is nothing to merge"):
        merge_lora(params, scale=1.0)
    adapters = init_lora(key, params, case.targets, rank=2)
    with pytest.raises(ValueError, match="an adapter for 'backbone/pooler', which params lacks"):
        merge_lora(params | {"lora": {"backbone": {"pooler": adapters["backbone"]}}}, scale=1.0)
    adapters["backbone"]["layer_0"]["kernel"]["b"] = jnp.zeros((2, 5))
    with pytest.raises(ValueError, match=r"adapter of 'backbone/layer_0/kernel' is \(6, 2\) by \(2, 5\)"):
        merge_lora(params | {"lora": adapters}, scale=1.0)
