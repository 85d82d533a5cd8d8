"""BERT against transformers' torch BERT: logits, hidden states and the gradient of every parameter.

Every reference tensor is randomised, LayerNorms and biases too: with the default initialization, swapped norms and a
tanh GELU would pass.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert
from jaxptft.convert.bert import BERT
from jaxptft.convert.engine import export_tensors
from jaxptft.models import classifier, encoder, features

CASES = {
    "plain": {},
    "one_layer_odd_widths": {
        "num_hidden_layers": 1,
        "hidden_size": 21,
        "num_attention_heads": 3,
        "intermediate_size": 13,
        "vocab_size": 37,
    },
    "relu_large_epsilon": {"hidden_act": "relu", "layer_norm_eps": 1e-3},
    "gelu_new_one_head": {"hidden_act": "gelu_new", "num_attention_heads": 1, "layer_norm_eps": 1e-5},
    "silu_one_token_type": {"hidden_act": "silu", "type_vocab_size": 1},
    "three_layers_short_positions": {"num_hidden_layers": 3, "max_position_embeddings": 9, "hidden_size": 8},
}


def reference(folder, classes=3, **changes) -> torch.nn.Module:
    """A tiny torch classifier with every tensor drawn from normal(0, 0.5), saved to `folder`."""
    torch.manual_seed(0)
    values = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "max_position_embeddings": 20,
        "num_labels": classes,
    }
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**(values | changes))).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.5)
    model.save_pretrained(folder)
    return model


def ragged_batch(vocab: int, token_types: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Rows of 9, 4, 1 and 6 tokens, with the padding id among the real tokens as well."""
    rng = np.random.default_rng(seed)
    lengths = np.array([9, 4, 1, 6])
    mask = (np.arange(9) < lengths[:, None]).astype(np.int32)
    ids = rng.integers(1, vocab, (4, 9)).astype(np.int32) * mask
    ids[0, 3] = 0
    types = rng.integers(0, token_types, (4, 9)).astype(np.int32) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "label": np.array([0, 2, 1, 2], np.int32),
    }


def torch_inputs(batch) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(batch[name]).long() for name in batch if name != "label"}


def assert_close_by_tensor(ours: dict, theirs: dict) -> None:
    """At most 1e-4 of each tensor's maximum, floored at 1e-3 of the global one."""
    assert ours.keys() == theirs.keys()
    overall = max(np.abs(value).max() for value in theirs.values())
    for name, value in theirs.items():
        allowed = 1e-4 * max(np.abs(value).max(), 1e-3 * overall)
        error = np.abs(ours[name] - value).max()
        assert error <= allowed, f"{name}: {error} exceeds {allowed}"


def assert_same_gradients(checkpoint, batch, model, classes_key="label") -> None:
    ours = classifier(checkpoint.config, model.config.num_labels)

    def loss(params):
        logits = ours.apply(params, batch)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch[classes_key][:, None], 1).mean(), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(checkpoint.params)
    model.zero_grad()
    output = model(**torch_inputs(batch), labels=torch.tensor(batch[classes_key]).long())
    output.loss.backward()
    theirs = output.logits.detach().numpy()
    np.testing.assert_allclose(logits, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)
    np.testing.assert_allclose(value, output.loss.item(), rtol=1e-4)
    assert_close_by_tensor(
        export_tensors(BERT, checkpoint.config, jax.device_get(gradients), checkpoint.extras),
        {name: tensor.grad.numpy() for name, tensor in model.named_parameters()},
    )


@pytest.mark.parametrize("name", CASES)
def test_logits_and_every_gradient_equal_torch(name, tmp_path):
    model = reference(tmp_path / "hf", **CASES[name])
    checkpoint = convert.load(tmp_path / "hf")
    assert_same_gradients(checkpoint, ragged_batch(model.config.vocab_size, model.config.type_vocab_size), model)


def test_without_mask_and_token_types_equals_torch(tmp_path):
    model = reference(tmp_path / "hf")
    checkpoint = convert.load(tmp_path / "hf")
    ids = ragged_batch(50, 2)["input_ids"]
    with torch.no_grad():
        theirs = model(torch.tensor(ids).long()).logits.numpy()
    ours = classifier(checkpoint.config, 3).apply(checkpoint.params, {"input_ids": ids})
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)


def test_minilm_hidden_states_and_pooled_equal_torch(minilm):
    checkpoint = convert.load(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    batch = ragged_batch(30522, 2)
    with torch.no_grad():
        theirs = model(**torch_inputs(batch))
    hidden = jax.jit(encoder(checkpoint.config).apply)(checkpoint.params, batch)
    pooled = jax.jit(features(checkpoint.config, stop=7))(checkpoint.params, batch)
    valid = batch["attention_mask"].astype(bool)
    expected = theirs.last_hidden_state.numpy()
    np.testing.assert_allclose(np.asarray(hidden)[valid], expected[valid], atol=1e-4 * np.abs(expected).max(), rtol=0)
    np.testing.assert_allclose(pooled, theirs.pooler_output.numpy(), atol=1e-4, rtol=0)


def test_minilm_gradients_with_a_random_head_equal_torch(minilm, tmp_path):
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification.from_pretrained(minilm, num_labels=3).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    torch.nn.init.normal_(model.classifier.bias, std=0.5)
    model.save_pretrained(tmp_path / "hf")
    assert_same_gradients(convert.load(tmp_path / "hf"), ragged_batch(30522, 2), model)
