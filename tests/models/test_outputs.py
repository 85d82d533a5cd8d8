"""Hidden states, attention, scores, queries, keys and values of every family against transformers' torch models.

The torch models are those of experiments/benchmarks/conversion_parity.py: eager attention, every tensor random, ALBERT
with three layers in two groups, GPT-2 with scores divided by the layer's number.
"""

import importlib.util
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from jaxptft import convert, models
from jaxptft.models import gpt2, layers, modernbert_layers

PATH = Path(__file__).parents[2] / "experiments" / "benchmarks" / "conversion_parity.py"
SPEC = importlib.util.spec_from_file_location(PATH.stem, PATH)
assert SPEC is not None
assert SPEC.loader is not None
parity = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(parity)

# Architecture, and the ends of the names of torch modules that give queries, keys and values, or all three as one.
FAMILIES = {
    "bert": ("BertForSequenceClassification", ("self.query", "self.key", "self.value")),
    "roberta": ("RobertaForTokenClassification", ("self.query", "self.key", "self.value")),
    "distilbert": ("DistilBertForQuestionAnswering", ("q_lin", "k_lin", "v_lin")),
    "albert": ("AlbertForMaskedLM", ("attention.query", "attention.key", "attention.value")),
    "electra": ("ElectraForMultipleChoice", ("self.query", "self.key", "self.value")),
    "modernbert": ("ModernBertForSequenceClassification", ("Wqkv",)),
    "gpt2": ("GPT2LMHeadModel", ("c_attn",)),
}
SMALL = {"vocab_size": 30, "width": 8, "layers": 2, "heads": 2, "mlp_width": 8, "positions": 10}
ARCHITECTURES = {
    "bert": models.BertConfig(**SMALL),
    "modernbert": models.ModernBertConfig(**SMALL, local_attention=2, pad_id=0, attention_dropout=0.5),
    "gpt2": models.Gpt2Config(**SMALL),
}
BATCH = {"input_ids": np.arange(12, dtype=np.int32).reshape(2, 6), "attention_mask": np.ones((2, 6), np.int32)}
BATCH["attention_mask"][1, 3:] = 0


def projections(model, ends) -> list[list[torch.Tensor]]:
    """Gathers, as the model runs, what each of the modules gives, in the order of the layers."""
    found = [[] for _ in ends]
    for name, module in model.named_modules():
        for place, end in enumerate(ends):
            if name.endswith(end):
                module.register_forward_hook(lambda _, __, given, place=place: found[place].append(given.detach()))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_equal_torch(family, tmp_path):
    architecture, ends = FAMILIES[family]
    task = parity.task_of(family, architecture)
    model, batch = parity.reference(family, architecture), parity.make_batch(family, task)
    model.save_pretrained(tmp_path)
    checkpoint = convert.load(tmp_path)
    classes = parity.CLASSES if task in ("classification", "token_classification") else None
    given = projections(model, ends)
    with torch.no_grad():
        inputs = {name: torch.tensor(value).long() for name, value in batch.items()}
        theirs = model(**inputs, output_hidden_states=True, output_attentions=True)
        logits = parity.torch_outputs(model, task, batch)[0].numpy()
    build = partial(models.build, checkpoint.config, task, classes=classes)
    ours = build(outputs=models.OUTPUTS).apply(checkpoint.params, batch)
    assert ours.keys() == {"logits", *models.OUTPUTS}

    def same(found, expected, where):
        found, expected = (np.asarray(x)[where] for x in (found, expected))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    mask = batch["attention_mask"].reshape(-1, batch["attention_mask"].shape[-1]).astype(bool)
    rows, places = np.nonzero(mask)  # what stands at padding reads nothing that counts
    same(ours["logits"], logits, ... if logits.ndim == 2 else mask)
    np.testing.assert_array_equal(ours["logits"], build().apply(checkpoint.params, batch))
    same(ours["hidden"], np.stack(theirs.hidden_states), np.s_[:, rows, places])
    attention = np.stack(theirs.attentions).swapaxes(2, 3)  # queries beside rows
    same(ours["attention"].swapaxes(2, 3), attention, np.s_[:, rows, places])

    layers, config = checkpoint.config.layers, checkpoint.config
    parts = [np.stack(part[:layers]) for part in given]
    q, k, v = np.split(parts[0], 3, axis=-1) if len(parts) == 1 else parts
    expected = np.stack([q, k, v], 1).reshape(layers, 3, *mask.shape, config.heads, -1)
    assert ours["qkv"].shape == expected.shape
    same(ours["qkv"][:, 2], expected[:, 2], np.s_[:, rows, places])
    if family not in ("modernbert", "gpt2"):  # which rotate, or scale, what they project
        same(ours["qkv"], expected, np.s_[:, :, rows, places])
    # Numpy's softmax over what each query of torch's attends to.
    scores = np.einsum("lbqhd,lbkhd->lbqhk", ours["qkv"][:, 0], ours["qkv"][:, 1]) / np.sqrt(expected.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * (attention > 0)
    same(weights / weights.sum(-1, keepdims=True), attention, np.s_[:, rows, places])
    same(ours["scores"].swapaxes(2, 3), np.where(attention > 0, scores, 0), np.s_[:, rows, places])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_not_asked_for_leaves_no_trace_in_the_program(name, monkeypatch):
    model = models.build(ARCHITECTURES[name], "encoder")
    params = jax.eval_shape(model.init, jax.random.key(0), BATCH)
    assert params.keys() == {"backbone"}

    def program() -> str:
        return str(jax.make_jaxpr(lambda params: model.apply(params, BATCH))(params))

    watched = program()
    for module in (layers, modernbert_layers, gpt2):
        monkeypatch.setattr(module, "put_attention", lambda *_: None)
    assert program() == watched
    assert "f32[2,2,3,6,2,4]" not in watched


def test_dropout_does_not_reach_the_attention_that_is_returned():
    model = models.build(ARCHITECTURES["modernbert"], "encoder", outputs=["attention"])
    params = model.init(jax.random.key(0), BATCH)
    still, noisy = (
        model.apply(params, BATCH, rng=jax.random.key(1), train=train)["attention"] for train in (False, True)
    )
    np.testing.assert_allclose(noisy.sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(noisy[0], still[0])  # the first layer reads the same states


@pytest.mark.parametrize(
    "options, message",
    [
        ({"outputs": ["hiden"]}, "outputs has 'hiden'; expected some of hidden, attention, scores, qkv"),
        ({"outputs": ("qkv", "qkv")}, "outputs are qkv, qkv; name each once"),
        ({"outputs": "hidden", "start": 1}, "entered at layer 1; leave out start"),
    ],
)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.build(ARCHITECTURES[name], "question_answering", **options)
