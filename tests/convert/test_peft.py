"""Adapters that `peft` itself loads onto transformers' models, and `peft`'s own read back."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from jaxptft import convert, models, objectives, optim

SIZES = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
CASES = {
    "bert": ("BertForSequenceClassification", "classification", "query,value", SIZES),
    "roberta": ("RobertaForSequenceClassification", "classification", "query,value", SIZES | {"pad_token_id": 0}),
    "modernbert": (
        "ModernBertForTokenClassification",
        "token_classification",
        "qkv,output",
        SIZES | {"pad_token_id": 0},
    ),
    "gpt2": ("GPT2LMHeadModel", "causal_lm", "qkv", {"vocab_size": 30, "n_embd": 8, "n_layer": 2, "n_head": 2}),
}
BATCH = {
    "input_ids": np.random.default_rng(0).integers(3, 30, (3, 7)).astype(np.int32),
    "attention_mask": np.ones((3, 7), np.int32),
}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A base model by torch, adapters and a head that moved away from it, and both written."""
    architecture, task, kernels, fields = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    labels = {} if task == "causal_lm" else {"num_labels": 3}
    config = transformers.AutoConfig.for_model(request.param, **fields, **SPECIAL, **labels)
    base = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for tensor in base.parameters():
            tensor.normal_(std=0.3)
    base.save_pretrained(folder / "base")

    checkpoint = convert.load(folder / "base")
    targets = optim.mask(checkpoint.params, f"backbone/layer_*/attention/{{{kernels}}}/kernel")
    adapters = objectives.init_lora(jax.random.key(0), checkpoint.params, targets, rank=2)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    moved = lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape)  # noqa: E731
    heads = {name: tree for name, tree in checkpoint.params.items() if name != "backbone"}
    params = jax.tree.map(np.asarray, checkpoint.params | jax.tree.map(moved, heads | {"lora": adapters}))
    options = {"alpha": 3.0, "rank_stabilized": request.param == "bert"}
    convert.save_adapter(folder / "adapter", checkpoint, params, base=str(folder / "base"), **options)
    scale = objectives.lora_scale(rank=2, **options)
    model = models.build(checkpoint.config, task, classes=None if task == "causal_lm" else 3)
    merged = objectives.merge_lora(params, scale=scale)
    return SimpleNamespace(
        folder=folder,
        architecture=architecture,
        checkpoint=checkpoint,
        params=params,
        merged=merged,
        logits=np.asarray(model.apply(merged, BATCH)),
    )


@pytest.fixture(scope="module")
def loaded(case):
    base = getattr(transformers, case.architecture).from_pretrained(case.folder / "base")
    return peft.PeftModel.from_pretrained(base, case.folder / "adapter").eval()


def logits_of(model):
    with torch.no_grad():
        return model(**{name: torch.tensor(leaf, dtype=torch.long) for name, leaf in BATCH.items()}).logits.numpy()


def test_peft_computes_what_we_do_and_lacks_no_tensor(case, loaded):
    np.testing.assert_allclose(logits_of(loaded), case.logits, rtol=1e-4, atol=1e-5)
    with loaded.disable_adapter():
        assert abs(logits_of(loaded) - case.logits).max() > 0.1  # the adapters do something
    theirs = peft.get_peft_model_state_dict(loaded)
    ours = load_file(case.folder / "adapter" / "adapter_model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == {
        name: array.shape for name, array in ours.items()
    }


def test_what_we_wrote_and_what_peft_writes_reads_back(case, loaded, tmp_path):
    loaded.save_pretrained(tmp_path / "theirs")
    head = next((name for name in case.params if name not in ("backbone", "lora")), None)
    trained = {name: tree for name, tree in case.params.items() if name != "backbone"}
    for folder in (case.folder / "adapter", tmp_path / "theirs"):
        found = convert.load_adapter(folder, case.checkpoint, head=head)
        assert (found.rank, found.alpha, found.base) == (2, 3.0, str(case.folder / "base"))
        jax.tree.map(np.testing.assert_array_equal, found.params, trained)


def test_merging_in_peft_gives_the_model_that_we_export(case, tmp_path):
    convert.save(tmp_path / "merged", case.checkpoint, params=jax.tree.map(np.asarray, case.merged))
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    base = getattr(transformers, case.architecture).from_pretrained(case.folder / "base")
    merged = peft.PeftModel.from_pretrained(base, case.folder / "adapter").merge_and_unload()
    theirs = {name: tensor.numpy() for name, tensor in merged.state_dict().items()}
    assert ours.keys() <= theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_modules_that_the_base_lacks_are_saved_whole(folders, tmp_path):
    """A classifier on a checkpoint of masked words: its pooler is as new as its head."""
    source = convert.load(folders.make("mlm", "BertForMaskedLM"), heads=())
    model = models.build(source.config, "classification", classes=2)
    params = convert.complete(source.params, jax.tree.map(np.asarray, model.init(jax.random.key(0), BATCH)))
    targets = optim.mask(params, "backbone/layer_0/mlp/up/kernel")
    params["lora"] = objectives.init_lora(jax.random.key(0), params, targets, rank=1)
    pooler = [path for path in optim.paths(params) if path.startswith("backbone/pooler/")]
    convert.save_adapter(tmp_path / "adapter", source, params, alpha=1.0, trained=pooler)
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    assert fields["target_modules"] == ["bert.encoder.layer.0.intermediate.dense"]
    base = transformers.BertForSequenceClassification.from_pretrained(folders.root / "mlm")
    theirs = logits_of(peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval())
    ours = model.apply(objectives.merge_lora(params, scale=1.0), BATCH)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.fixture
def saved(folders):
    """A checkpoint, parameters with an adapter for one kernel, and a function that writes them."""
    checkpoint = convert.load(folders.make("model"))
    targets = optim.mask(checkpoint.params, "backbone/layer_0/attention/query/kernel")
    params = checkpoint.params | {"lora": objectives.init_lora(jax.random.key(0), checkpoint.params, targets, rank=2)}
    folder = folders.root / "adapter"
    save = lambda params, **options: convert.save_adapter(folder, checkpoint, params, alpha=1.0, **options)  # noqa: E731
    return SimpleNamespace(checkpoint=checkpoint, params=params, folder=folder, save=save)


def test_what_cannot_be_saved_is_refused(saved):
    with pytest.raises(ValueError, match="no adapters under lora: there is nothing to save"):
        saved.save(saved.checkpoint.params)
    with pytest.raises(ValueError, match="the head mlm shares the word table"):
        saved.save(saved.params | {"mlm": {}})
    adapter = {"kernel": {"a": jnp.zeros((8, 1)), "b": jnp.zeros((1, 8))}}
    with pytest.raises(ValueError, match="a head is saved whole, and classifier/kernel has an adapter"):
        saved.save(saved.params | {"lora": {"classifier": adapter}})
    lora = saved.params["lora"]["backbone"]["layer_0"]
    with pytest.raises(ValueError, match="no rule of family bert takes parameter backbone/layer_0/gate/kernel"):
        saved.save(saved.params | {"lora": {"backbone": {"layer_0": {"gate": adapter}}}})
    with pytest.raises(ValueError, match=r"the adapters have the ranks \[1, 2\]"):
        saved.save(saved.params | {"lora": {"backbone": {"layer_0": lora, "pooler": adapter}}})
    saved.save(saved.params)
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        saved.save(saved.params)
    saved.save(saved.params, overwrite=True)


def test_what_is_not_lora_on_this_model_is_refused(saved):
    saved.save(saved.params)
    config, weights = saved.folder / "adapter_config.json", saved.folder / "adapter_model.safetensors"
    fields, tensors = json.loads(config.read_text()), load_file(weights)
    config.write_text(json.dumps(fields | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora is True; only False is read"):
        convert.load_adapter(saved.folder, saved.checkpoint)
    config.write_text(json.dumps(fields | {"init_lora_weights": "pissa"}))
    with pytest.raises(ValueError, match="init_lora_weights is 'pissa'; only True is read"):
        convert.load_adapter(saved.folder, saved.checkpoint)
    config.write_text(json.dumps({name: value for name, value in fields.items() if name != "r"}))
    with pytest.raises(ValueError, match="r is None; expected a number"):
        convert.load_adapter(saved.folder, saved.checkpoint)
    config.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="family bert has no head 'tail'"):
        convert.load_adapter(saved.folder, saved.checkpoint, head="tail")

    name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    complaints = {
        "tensor encoder.layer.0.gate.lora_A.weight is of nothing in family bert": {
            name.replace("attention.self.query", "gate"): tensors[name]
        },
        r"query.lora_A.weight has shape \(2, 9\), expected \(2, 8\)": {name: np.zeros((2, 9), np.float32)},
        "holds no adapters, but classifier.bias": {"base_model.model.classifier.bias": np.zeros(2, np.float32)},
    }
    for complaint, changed in complaints.items():
        save_file(changed, weights)
        with pytest.raises(ValueError, match=complaint):
            convert.load_adapter(saved.folder, saved.checkpoint)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors does not exist"):
        convert.load_adapter(saved.folder, saved.checkpoint)
