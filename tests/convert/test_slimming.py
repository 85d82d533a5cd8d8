"""Fewer heads and neurons: what is removed is what a zero gate removes, and torch computes the same of what is left."""

from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert, models, objectives, optim

LABELS = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
BATCH = {
    "input_ids": np.array([[2, 7, 8, 9, 3], [2, 5, 3, 0, 0]], np.int32),
    "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32),
}
HEADS, NEURONS = [[0, 2], [1, 2, 3]], [[0, 3, 5, 7, 9], [1, 2, 3, 4, 11]]


def make(folder, kind="Bert"):
    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 12}
    if kind == "DistilBert":
        sizes = {"vocab_size": 19, "n_heads": 4, "n_layers": 2, "dim": 16, "hidden_dim": 12}
    else:
        sizes |= {"hidden_size": 16, "intermediate_size": 12}
    config = getattr(transformers, f"{kind}Config")(**sizes, **LABELS, pad_token_id=0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder


def logits(checkpoint, gates=None):
    network = models.build(checkpoint.config, "classification", classes=2)
    apply = network.apply if gates is None else models.with_gates(network.apply, gates)
    return np.asarray(jax.jit(apply)(checkpoint.params, BATCH))


def torchs(folder):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**{name: torch.tensor(array).long() for name, array in BATCH.items()}).logits.numpy()


def gates_of(kept, size, ending):
    found = {}
    for layer, own in enumerate(kept):
        gate = np.zeros(size, np.float32)
        gate[own] = 1
        found[f"backbone/layer_{layer}/{ending}"] = gate
    return found


@pytest.mark.parametrize(
    "kind", ["Bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("DistilBert", "Roberta", "Electra"))]
)
def test_removed_is_as_gated_and_torch_reads_the_zeros(kind, tmp_path):
    checkpoint = convert.load(make(tmp_path / "whole", kind))
    np.testing.assert_allclose(logits(checkpoint), torchs(tmp_path / "whole"), atol=1e-4)
    small = convert.keep_neurons(convert.keep_heads(checkpoint, HEADS), NEURONS)
    gates = gates_of(HEADS, 4, "attention/output/kernel") | gates_of(NEURONS, 12, "mlp/down/kernel")
    expected = logits(checkpoint, gates)
    assert np.abs(expected - logits(checkpoint)).max() > 0.01
    np.testing.assert_allclose(logits(small), expected, atol=1e-5)
    assert small.config.kept_heads == (2, 3)
    assert small.params["backbone"]["layer_0"]["attention"]["query"]["kernel"].shape == (16, 8)
    assert small.params["backbone"]["layer_1"]["mlp"]["up"]["kernel"].shape == (16, 5)

    convert.save(tmp_path / "small", small)
    np.testing.assert_allclose(torchs(tmp_path / "small"), expected, atol=1e-4)
    back = convert.load(tmp_path / "small")
    assert back.config == small.config
    assert jax.tree.all(jax.tree.map(np.array_equal, back.params, small.params))
    convert.import_folder(tmp_path / "small", tmp_path / "own")
    own = convert.read_native(tmp_path / "own")
    assert (own.config, own.config.kept_heads) == (small.config, (2, 3))
    convert.export_folder(tmp_path / "own", tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "small/model.safetensors").read_bytes()
    assert convert.load(tmp_path / "own").config == small.config
    # What is small can become smaller, and lose a layer.
    less = convert.keep_layers(convert.keep_heads(back, [[1], [0, 2]]), [1])
    assert (less.config.kept_heads, less.config.layers) == ((2,), 1)
    assert np.isfinite(logits(less)).all()


def test_a_neuron_that_leads_nowhere_can_go_without_a_trace(tmp_path):
    checkpoint = convert.load(make(tmp_path / "whole"))
    params = jax.tree.map(np.array, checkpoint.params)
    for layer in ("layer_0", "layer_1"):
        params["backbone"][layer]["mlp"]["down"]["kernel"][[2, 6]] = 0
        params["backbone"][layer]["attention"]["output"]["kernel"][4:8] = 0
    checkpoint = replace(checkpoint, params=params)
    kept = [number for number in range(12) if number not in (2, 6)]
    small = convert.keep_heads(convert.keep_neurons(checkpoint, [kept] * 2), [[0, 2, 3]] * 2)
    np.testing.assert_allclose(logits(small), logits(checkpoint), atol=1e-5)


def test_zeros_that_were_trained_elsewhere_are_read_whole(tmp_path):
    from safetensors.numpy import load_file, save_file

    small = convert.keep_heads(convert.load(make(tmp_path / "whole")), HEADS)
    convert.save(tmp_path / "small", small)
    file = tmp_path / "small/model.safetensors"
    tensors = load_file(file)
    tensors["bert.encoder.layer.0.attention.output.dense.weight"][:, -1] = 0.5
    save_file(tensors, file, metadata={"format": "pt"})
    back = convert.load(tmp_path / "small")
    assert back.config.kept_heads is None
    np.testing.assert_allclose(logits(back), torchs(tmp_path / "small"), atol=1e-4)


@pytest.mark.parametrize("names", ["query,value", "query,key,value,output"])
def test_peft_puts_adapters_of_a_slim_model_on_its_zeros(names, tmp_path):
    import peft

    small = convert.keep_heads(convert.load(make(tmp_path / "whole")), HEADS)
    convert.save(tmp_path / "small", small)
    base = convert.load(tmp_path / "small")
    targets = optim.mask(base.params, f"backbone/layer_*/attention/{{{names}}}/kernel")
    adapters = objectives.init_lora(jax.random.key(0), base.params, targets, rank=2)
    lora = jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape, scale=0.3), adapters)
    params = {**base.params, "lora": lora}
    convert.save_adapter(tmp_path / "adapter", base, params, alpha=4.0, base=str(tmp_path / "small"))
    expected = logits(replace(base, params=objectives.merge_lora(params, scale=2.0)))
    assert np.abs(expected - logits(base)).max() > 0.01

    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = model(**{name: torch.tensor(array).long() for name, array in BATCH.items()}).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    back = convert.load_adapter(tmp_path / "adapter", base)
    chex.assert_trees_all_close(back.params["lora"], jax.tree.map(np.float32, lora))


def test_adapters_that_wake_a_removed_head_are_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    small = convert.keep_heads(convert.load(make(tmp_path / "whole")), HEADS)
    targets = optim.mask(small.params, "backbone/layer_*/attention/{value,output}/kernel")
    lora = objectives.init_lora(jax.random.key(0), small.params, targets, rank=2)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), {**small.params, "lora": lora})
    convert.save_adapter(tmp_path / "adapter", small, params, alpha=4.0)
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.bert.encoder.layer.1.attention.self.value.lora_B.weight"][-1] = 1
    save_file(tensors, file)
    convert.load_adapter(tmp_path / "adapter", small)  # nothing reads it
    tensors["base_model.model.bert.encoder.layer.1.attention.output.dense.lora_A.weight"][:, -1] = 1
    save_file(tensors, file)
    with pytest.raises(ValueError, match="the adapters of layer 1 give the heads that jaxptft_kept_heads says"):
        convert.load_adapter(tmp_path / "adapter", small)


def test_a_shared_layer_is_slimmed_wherever_it_works(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 12, "num_attention_heads": 4, "num_hidden_layers": 3}
    config = transformers.AlbertConfig(vocab_size=19, embedding_size=8, **sizes, **LABELS)
    transformers.AlbertForSequenceClassification(config).eval().save_pretrained(tmp_path / "albert")
    small = convert.keep_heads(convert.load(tmp_path / "albert"), [[1, 3]])
    convert.save(tmp_path / "small", small)
    np.testing.assert_allclose(torchs(tmp_path / "small"), logits(small), atol=1e-4)


def test_what_does_not_fit_is_refused(tmp_path):
    checkpoint = convert.load(make(tmp_path / "whole"))
    with pytest.raises(ValueError, match="a list for each of 2 stored layers, got 1"):
        convert.keep_heads(checkpoint, [[0]])
    with pytest.raises(ValueError, match=r"layer 1 must keep rising numbers from 0 to 3, got \[4\]"):
        convert.keep_heads(checkpoint, [[0], [4]])
    with pytest.raises(ValueError, match=r"got \[\]"):
        convert.keep_heads(checkpoint, [[0], []])
    with pytest.raises(ValueError, match="equally many in each layer"):
        convert.keep_neurons(checkpoint, [[0], [1, 2]])
    with pytest.raises(ValueError, match="runs layers of one shape"):
        replace(convert.keep_heads(checkpoint, HEADS).config, scan_layers=True)
    with pytest.raises(ValueError, match="a number from 1 to 4 for each of 2 stored layers"):
        replace(checkpoint.config, kept_heads=(0, 2))
    with pytest.raises(ValueError, match="heads are removed from BERT and its kin"):
        convert.head_count(models.Gpt2Config())
    with pytest.raises(ValueError, match="3 gates do not divide the 16 inputs"):
        logits(checkpoint, {"backbone/layer_0/attention/output/kernel": np.ones(3, np.float32)})


@pytest.mark.parametrize("value", [[2], "2", [2, 9], [2, True], [0, 1]], ids=str)
def test_a_field_that_lies_is_refused(value, tmp_path):
    import json

    folder = make(tmp_path / "whole")
    fields = json.loads((folder / "config.json").read_text()) | {"jaxptft_kept_heads": value}
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="jaxptft_kept_heads must be"):
        convert.load(folder)
