"""An import exported unmodified is the source, byte for byte, tensor for tensor."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert
from jaxptft.models import classifier


def without_prefix(tensors):
    return {name.removeprefix("bert."): array for name, array in tensors.items()}


def with_prefix(tensors):
    return {f"bert.{name}": array for name, array in tensors.items()}


def in_old_spelling(tensors):
    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    return {old(name): array for name, array in tensors.items()}


def with_position_ids(tensors):
    prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    return {**tensors, f"{prefix}embeddings.position_ids": np.arange(10)[None]}


ENCODER, CLASSIFIER = "BertModel", "BertForSequenceClassification"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "architecture, change",
    [
        (ENCODER, None),
        (CLASSIFIER, None),
        (ENCODER, with_prefix),
        (CLASSIFIER, without_prefix),
        (CLASSIFIER, in_old_spelling),
        (CLASSIFIER, with_position_ids),
        (ENCODER, with_position_ids),
        ("BertForPreTraining", None),
    ],
)
def test_unmodified_is_byte_identical(folders, assert_same_tensors, architecture, change, dtype):
    source = folders.make("source", architecture, dtype)
    if change:
        folders.rewrite(source, change)
    convert.import_folder(source, folders.root / "native")
    convert.export_folder(folders.root / "native", folders.root / "back")
    assert_same_tensors(folders.tensors(source), folders.tensors(folders.root / "back"))
    read = [json.loads((folder / "config.json").read_text()) for folder in (source, folders.root / "back")]
    assert read[0].items() <= read[1].items()
    # Without our own folder in between as well.
    convert.save(folders.root / "direct", convert.load(source))
    assert_same_tensors(folders.tensors(source), folders.tensors(folders.root / "direct"))


@pytest.mark.parametrize("architecture", ["BertForTokenClassification", "BertForMultipleChoice", "BertForMaskedLM"])
def test_heads_of_other_tasks_are_left_aside_and_come_back(folders, assert_same_tensors, architecture):
    source = folders.make("source", architecture)
    checkpoint = convert.load(source, heads=())
    assert checkpoint.labels is None
    assert checkpoint.params.keys() == {"backbone"}
    assert checkpoint.manifest.unused
    convert.save(folders.root / "back", checkpoint)
    assert_same_tensors(folders.tensors(source), folders.tensors(folders.root / "back"))


def test_mixed_dtypes_come_back_each_in_its_own(folders, assert_same_tensors):
    source = folders.make("source")
    folders.rewrite(source, lambda t: {n: a.astype("float16") if "query" in n else a for n, a in t.items()})
    checkpoint = convert.load(source)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(checkpoint.params)} == {"float32"}
    convert.save(folders.root / "back", checkpoint)
    assert_same_tensors(folders.tensors(source), folders.tensors(folders.root / "back"))


def test_shards_are_read_and_written(folders, assert_same_tensors):
    source = folders.make("source")
    expected = folders.tensors(source)
    convert.save(folders.root / "shards", convert.load(source), max_shard_size=2000)
    files = sorted(file.name for file in (folders.root / "shards").glob("*.safetensors"))
    assert len(files) > 2
    index = json.loads((folders.root / "shards" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in expected.values())
    assert sorted(set(index["weight_map"].values())) == files
    assert_same_tensors(expected, folders.tensors(folders.root / "shards"))
    convert.save(folders.root / "whole", convert.load(folders.root / "shards"))
    assert_same_tensors(expected, folders.tensors(folders.root / "whole"))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folders.root / "shards")
    np.testing.assert_array_equal(theirs.classifier.weight.detach().numpy(), expected["classifier.weight"])
    with pytest.raises(ValueError, match="max_shard_size must be at least 1 byte, got 0"):
        convert.save(folders.root / "none", convert.load(source), max_shard_size=0)


def test_minilm_is_byte_identical(minilm, folders, assert_same_tensors):
    manifest = convert.import_folder(minilm, folders.root / "native")
    assert [entry.hf_name for entry in manifest.kept] == ["embeddings.position_ids"]
    convert.export_folder(folders.root / "native", folders.root / "back")
    assert_same_tensors(folders.tensors(minilm), folders.tensors(folders.root / "back"))
    assert (folders.root / "back" / "tokenizer.json").read_bytes() == (minilm / "tokenizer.json").read_bytes()
    assert transformers.AutoTokenizer.from_pretrained(folders.root / "back")("hello")["input_ids"] == [101, 7592, 102]


def logits_of_both(folder, config, params):
    ids = np.random.default_rng(0).integers(1, 30, (3, 6)).astype(np.int32)
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(ids).long()).logits.numpy()
    ours = classifier(config, theirs.shape[1]).apply(params, {"input_ids": ids})
    return np.asarray(ours), theirs, model


def test_a_bare_backbone_with_a_new_head_loads_in_torch(folders):
    source = folders.make("source", ENCODER)
    folders.rewrite(source, with_position_ids)
    checkpoint = convert.load(source)
    fresh = classifier(checkpoint.config, 3).init(jax.random.key(0), {"input_ids": np.ones((1, 4), np.int32)})
    params = convert.complete(checkpoint.params, fresh)
    assert params["backbone"] == checkpoint.params["backbone"]
    convert.save(folders.root / "tuned", checkpoint, params=params, labels=["bad", "fair", "good"])
    ours, theirs, model = logits_of_both(folders.root / "tuned", checkpoint.config, params)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    assert model.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert model.config.architectures == ["BertForSequenceClassification"]
    again = convert.load(folders.root / "tuned")
    assert again.labels == ["bad", "fair", "good"]
    np.testing.assert_array_equal(again.params["classifier"]["kernel"], params["classifier"]["kernel"])


def test_a_pretraining_checkpoint_with_a_new_head_leaves_the_old_heads_behind(folders):
    checkpoint = convert.load(folders.make("source", "BertForPreTraining"), heads=("classifier",))
    fresh = classifier(checkpoint.config, 2).init(jax.random.key(0), {"input_ids": np.ones((1, 4), np.int32)})
    params = convert.complete(checkpoint.params, fresh)
    manifest = convert.save(folders.root / "tuned", checkpoint, params=params)
    assert not manifest.unused
    ours, theirs, _ = logits_of_both(folders.root / "tuned", checkpoint.config, params)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_a_trained_classifier_keeps_names_and_loads_in_torch(folders):
    source = folders.make("source", num_labels=3)
    checkpoint = convert.load(source)
    params = jax.tree.map(lambda leaf: leaf * 1.5, checkpoint.params)
    convert.save(folders.root / "tuned", checkpoint, params=params)
    ours, theirs, _ = logits_of_both(folders.root / "tuned", checkpoint.config, params)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_a_model_made_from_nothing_loads_in_torch(folders):
    config = convert.load(folders.make("source", ENCODER)).config
    params = classifier(config, 2).init(jax.random.key(0), {"input_ids": np.ones((1, 4), np.int32)})
    convert.save(folders.root / "new", convert.Checkpoint("bert", config, params, labels=["no", "yes"]))
    ours, theirs, _ = logits_of_both(folders.root / "new", config, params)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert convert.load(folders.root / "new").config == config


def test_a_tied_tensor_follows_the_one_it_equals(folders):
    source = folders.make("source", "BertForPreTraining")
    words, decoder = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    folders.rewrite(source, lambda t: {**t, decoder: t[words]})
    checkpoint = convert.load(source)
    assert (decoder, words) in checkpoint.manifest.tied
    params = jax.tree.map(lambda leaf: leaf + 1, checkpoint.params)
    convert.save(folders.root / "tuned", checkpoint, params=params)
    written = folders.tensors(folders.root / "tuned")
    np.testing.assert_array_equal(written[decoder], folders.tensors(source)[words] + 1)
    # One that was not tied in the source stays as it was, and its head cannot be taken.
    folders.rewrite(source, lambda t: {**t, decoder: t[words] * 2})
    with pytest.raises(ValueError, match=f"tensor {decoder} differs from {words}, with which family bert shares"):
        convert.load(source)
    checkpoint = convert.load(source, heads=())
    assert (decoder, words) not in checkpoint.manifest.tied
    convert.save(folders.root / "untied", checkpoint, params={"backbone": params["backbone"]})
    np.testing.assert_array_equal(folders.tensors(folders.root / "untied")[decoder], folders.tensors(source)[decoder])


def test_dtype_overrides_the_remembered_one(folders):
    source = folders.make("source", dtype=torch.float16)
    convert.import_folder(source, folders.root / "native")
    convert.export_folder(folders.root / "native", folders.root / "wide", dtype="float32")
    written = folders.tensors(folders.root / "wide")
    assert {array.dtype.name for array in written.values()} == {"float32"}
    assert json.loads((folders.root / "wide" / "config.json").read_text())["dtype"] == "float32"
    checkpoint = convert.load(source)
    params = jax.tree.map(lambda leaf: leaf * 1e6, checkpoint.params)
    with pytest.raises(ValueError, match=r"parameter backbone/.* overflows float16: export with dtype='float32'"):
        convert.save(folders.root / "tuned", checkpoint, params=params)
