"""GPT-2 against transformers' torch GPT-2: the logits and the gradient of every parameter, for every head.

Every reference tensor is randomised, norms and biases too.
"""

from functools import partial

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert, models
from jaxptft.convert.engine import export_tensors
from jaxptft.convert.gpt2 import GPT2

VALUES = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 12}
VALUES |= {"bos_token_id": None, "eos_token_id": None}
LENGTHS = np.array([9, 4, 1, 6])
TASKS = {
    "GPT2LMHeadModel": ("causal_lm", False),
    "GPT2Model": ("encoder", False),
    "GPT2ForSequenceClassification": ("classification", True),
    "GPT2ForTokenClassification": ("token_classification", True),
    "GPT2ForQuestionAnswering": ("question_answering", False),
    "GPT2DoubleHeadsModel": ("multiple_choice", False),
}
CASES = {
    "language_model": ("GPT2LMHeadModel", {}),
    "inner_width_relu_by_layer": (
        "GPT2LMHeadModel",
        {"n_inner": 13, "activation_function": "relu", "scale_attn_by_inverse_layer_idx": True},
    ),
    "unscaled_one_head_three_layers": (
        "GPT2LMHeadModel",
        {"scale_attn_weights": False, "n_head": 1, "n_layer": 3, "layer_norm_epsilon": 1e-2},
    ),
    "upcast": ("GPT2Model", {"reorder_and_upcast_attn": True, "n_embd": 21, "n_head": 3}),
    "classification": ("GPT2ForSequenceClassification", {"pad_token_id": 0, "num_labels": 3}),
    "tokens": ("GPT2ForTokenClassification", {"num_labels": 5, "activation_function": "gelu"}),
    "answers": ("GPT2ForQuestionAnswering", {"activation_function": "silu"}),
    "choices": ("GPT2DoubleHeadsModel", {}),
}


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    """Compiling is most of the time that models this small take."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def reference(architecture: str, folder, **changes) -> torch.nn.Module:
    """A tiny torch model with every tensor drawn from normal(0, 0.5), saved to `folder`."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(**(VALUES | changes))
    config._attn_implementation = "eager" if config.reorder_and_upcast_attn else "sdpa"
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.5)
    model.save_pretrained(folder)
    return model


def ragged_batch(*, left: bool = False) -> dict[str, np.ndarray]:
    """Rows of 9, 4, 1 and 6 tokens, padded with id 0 on one side."""
    rng = np.random.default_rng(1)
    places = np.arange(9)[::-1] if left else np.arange(9)
    mask = (places < LENGTHS[:, None]).astype(np.int32)
    return {"input_ids": rng.integers(1, 50, (4, 9)).astype(np.int32) * mask, "attention_mask": mask}


def torch_logits(model: torch.nn.Module, batch) -> torch.Tensor:
    inputs = {name: torch.tensor(value).long() for name, value in batch.items()}
    if isinstance(model, transformers.GPT2DoubleHeadsModel):
        # Given where each choice ends, which its default takes to be the last place, padding or not.
        return model(**inputs, mc_token_ids=inputs["attention_mask"].sum(-1) - 1).mc_logits
    output = model(**inputs)
    if isinstance(model, transformers.GPT2ForQuestionAnswering):
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output[0]


def build(checkpoint: convert.Checkpoint, architecture: str) -> models.Model:
    task, sized = TASKS[architecture]
    return models.build(checkpoint.config, task, classes=checkpoint.manifest.classes if sized else None)


def assert_close(ours, theirs) -> None:
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_every_gradient_equal_torch(name, tmp_path):
    architecture, changes = CASES[name]
    model = reference(architecture, tmp_path / "hf", **changes)
    checkpoint = convert.load(tmp_path / "hf")
    batch = ragged_batch()
    if name == "choices":
        batch = {key: value.reshape(2, 2, 9) for key, value in batch.items()}
    theirs = torch_logits(model, batch)
    # A fixed linear functional of the logits, all of which it weighs differently; padding has no weight.
    weights = np.random.default_rng(2).normal(size=theirs.shape).astype(np.float32)
    if weights.ndim == 3:
        weights *= batch["attention_mask"][..., None]
    (theirs * torch.tensor(weights)).sum().backward()

    ours = build(checkpoint, architecture)

    def loss(params):
        logits = ours.apply(params, batch)
        return (logits * weights).sum(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(checkpoint.params)
    assert_close(logits, theirs)
    found = export_tensors(GPT2, checkpoint.config, jax.device_get(gradients), checkpoint.extras)
    expected = {key: tensor.grad.numpy() for key, tensor in model.named_parameters() if tensor.grad is not None}
    assert expected.keys() == found.keys() - ({"lm_head.weight"} if name == "choices" else set())
    overall = max(np.abs(value).max() for value in expected.values())
    for key, value in expected.items():
        allowed = 1e-4 * max(np.abs(value).max(), 1e-3 * overall)
        assert np.abs(found[key] - value).max() <= allowed, key


def test_classification_reads_the_last_token_whichever_side_the_padding_is_on(tmp_path):
    model = reference("GPT2ForSequenceClassification", tmp_path / "hf", pad_token_id=0, num_labels=3)
    checkpoint = convert.load(tmp_path / "hf")
    ours = build(checkpoint, "GPT2ForSequenceClassification")
    batch = ragged_batch(left=True)
    assert_close(ours.apply(checkpoint.params, batch), torch_logits(model, batch))
    # Padding inside the mask: transformers goes by the ids.
    unmasked = {"input_ids": ragged_batch()["input_ids"], "attention_mask": np.ones((4, 9), np.int32)}
    assert_close(ours.apply(checkpoint.params, unmasked), torch_logits(model, unmasked))


def test_without_mask_equals_torch(tmp_path):
    model = reference("GPT2LMHeadModel", tmp_path / "hf")
    checkpoint = convert.load(tmp_path / "hf")
    batch = {"input_ids": ragged_batch()["input_ids"]}
    assert_close(build(checkpoint, "GPT2LMHeadModel").apply(checkpoint.params, batch), torch_logits(model, batch))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    model = reference("GPT2LMHeadModel", folder, n_positions=30)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor *= 3.0 if "wpe" in name else float(not name.endswith("bias"))  # or one word wins everywhere
    model.save_pretrained(folder)
    return model, convert.load(folder)


def greedy_by_torch(model, ids, mask, **options) -> np.ndarray:
    inputs = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask).long()}
    return model.generate(**inputs, do_sample=False, pad_token_id=0, **options)[:, ids.shape[1] :].numpy()


def test_greedy_text_is_that_of_transformers_generate(language_model):
    model, checkpoint = language_model
    greedy = models.Sampling(temperature=0.0)
    write = partial(models.generate, models.decoder(checkpoint.config), new=10, rng=jax.random.key(0), sampling=greedy)

    def ours(batch, stop=()):
        return jax.jit(partial(write, stop=stop))(checkpoint.params, batch["input_ids"], batch["attention_mask"])

    left = ragged_batch(left=True)
    expected = greedy_by_torch(model, *left.values(), max_new_tokens=10)
    assert len(np.unique(expected)) > 8  # it does not just repeat itself
    for batch in (left, ragged_batch()):
        if batch is not left:
            rows = [row[mask > 0] for row, mask in zip(*left.values(), strict=True)]
            batch["input_ids"] = np.stack([np.pad(row, (0, 9 - len(row))) for row in rows])
        found = ours(batch)
        np.testing.assert_array_equal(found.tokens, expected)
        assert found.lengths.tolist() == [10] * 4

    stop = int(expected[1, 3])
    stopped = greedy_by_torch(model, *left.values(), max_new_tokens=10, eos_token_id=stop)
    found = ours(left, stop=(stop,))
    np.testing.assert_array_equal(found.tokens[:, : stopped.shape[1]], stopped)
    ends = [row.tolist().index(stop) + 1 if stop in row else 10 for row in expected]
    assert found.lengths.tolist() == ends
    assert min(ends) < 10
