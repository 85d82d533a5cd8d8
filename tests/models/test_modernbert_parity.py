"""ModernBERT against transformers' torch ModernBERT: the logits of every head and the gradient of every parameter.

Every reference tensor is randomised, norms and biases too, and windows are smaller than the texts.
"""

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert
from jaxptft.convert.engine import export_tensors
from jaxptft.convert.modernbert import MODERNBERT
from jaxptft.models.modernbert import TASKS, build

VALUES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 32,
    "local_attention": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "num_labels": 3,
}
BIASED = {
    "norm_bias": True,
    "attention_bias": True,
    "mlp_bias": True,
    "classifier_bias": True,
    "norm_eps": 1e-3,
    "hidden_activation": "silu",
    "classifier_activation": "relu",
}
ROTARY = {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 50.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 7.0},
    }
}
LOCAL_FIRST = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

CASES = {
    "encoder": ("encoder", "Model", "sdpa", {"num_hidden_layers": 4}),
    "classification": ("classification", "ForSequenceClassification", "eager", {}),
    "classification_mean": ("classification", "ForSequenceClassification", "sdpa", {"classifier_pooling": "mean"}),
    "token_classification": ("token_classification", "ForTokenClassification", "sdpa", BIASED | LOCAL_FIRST),
    "question_answering": ("question_answering", "ForQuestionAnswering", "eager", ROTARY | {"num_labels": 2}),
    "multiple_choice": ("multiple_choice", "ForMultipleChoice", "sdpa", {"local_attention": 5}),
    "multiple_choice_mean": ("multiple_choice", "ForMultipleChoice", "sdpa", BIASED | {"classifier_pooling": "mean"}),
    "masked_lm": ("masked_lm", "ForMaskedLM", "sdpa", ROTARY),
    "masked_lm_unbiased": ("masked_lm", "ForMaskedLM", "eager", {"decoder_bias": False, "num_hidden_layers": 2}),
}


def reference(folder, architecture, attention, **changes) -> torch.nn.Module:
    """A tiny torch model with every tensor drawn from normal(0, 0.5), saved to `folder`."""
    torch.manual_seed(0)
    kind = getattr(transformers, f"ModernBert{architecture}")
    model = kind._from_config(transformers.ModernBertConfig(**(VALUES | changes)), attn_implementation=attention).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.5)
    model.save_pretrained(folder)
    return model


def ragged_batch(task: str) -> dict[str, np.ndarray]:
    """Rows of 11, 6, 1 and 8 tokens, the padding id among them; of two choices each, one is padded on the left."""
    rng = np.random.default_rng(1)
    mask = (np.arange(11) < np.array([11, 6, 1, 8])[:, None]).astype(np.int32)
    if task == "multiple_choice":
        mask[1] = mask[1, ::-1]
    ids = rng.integers(1, 50, (4, 11)).astype(np.int32) * mask
    ids[0, 3] = 0
    shape = (2, 2, 11) if task == "multiple_choice" else (4, 11)
    return {"input_ids": ids.reshape(shape), "attention_mask": mask.reshape(shape)}


def torch_output(model, task, inputs) -> torch.Tensor:
    output = model(**inputs)
    if task == "question_answering":
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.last_hidden_state if task == "encoder" else output.logits


def assert_close_by_tensor(ours: dict, theirs: dict) -> None:
    """At most 1e-4 of each tensor's maximum, floored at 1e-3 of the global one."""
    assert ours.keys() == theirs.keys()
    overall = max(np.abs(value).max() for value in theirs.values())
    for name, value in theirs.items():
        allowed = 1e-4 * max(np.abs(value).max(), 1e-3 * overall)
        error = np.abs(ours[name] - value).max()
        assert error <= allowed, f"{name}: {error} exceeds {allowed}"


@pytest.mark.parametrize("name", CASES)
def test_logits_and_every_gradient_equal_torch(name, tmp_path):
    task, architecture, attention, changes = CASES[name]
    model = reference(tmp_path / "hf", architecture, attention, **changes)
    checkpoint = convert.load(tmp_path / "hf")
    assert set(checkpoint.params) == {"backbone", TASKS[task]} - {None}
    batch = ragged_batch(task)
    sized = task in ("classification", "token_classification")
    ours = build(checkpoint.config, task, classes=3 if sized else None)

    theirs = torch_output(model, task, {key: torch.tensor(value).long() for key, value in batch.items()})
    # A loss that reads every logit with a weight of its own; what stands at padding is read by neither.
    weights = np.random.default_rng(2).normal(size=theirs.shape).astype(np.float32)
    if task not in ("classification", "multiple_choice"):
        weights *= batch["attention_mask"][..., None]
    (theirs * torch.tensor(weights)).sum().backward()

    def loss(params):
        logits = ours.apply(params, batch)
        return (logits * weights).sum(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(checkpoint.params)
    read, expected = weights != 0, theirs.detach().numpy()
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits[read], expected[read], atol=1e-4 * np.abs(expected[read]).max(), rtol=0)
    assert_close_by_tensor(
        export_tensors(MODERNBERT, checkpoint.config, jax.device_get(gradients), checkpoint.extras),
        {key: tensor.grad.numpy() for key, tensor in model.named_parameters()},
    )


def test_without_a_mask_equals_torch(tmp_path):
    model = reference(tmp_path / "hf", "ForSequenceClassification", "sdpa", classifier_pooling="mean")
    checkpoint = convert.load(tmp_path / "hf")
    ids = ragged_batch("classification")["input_ids"]
    with torch.no_grad():
        theirs = model(torch.tensor(ids).long()).logits.numpy()
    ours = jax.jit(build(checkpoint.config, "classification", classes=3).apply)(checkpoint.params, {"input_ids": ids})
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)
