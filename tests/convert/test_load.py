"""What a folder may hold, what is refused and in which words, and the account that is given."""

import hashlib
import json

import numpy as np
import pytest
from flax.serialization import msgpack_restore, msgpack_serialize
from transformers import AutoTokenizer

from jaxptft import convert
from jaxptft.convert.wording import reason


def refused(folder, message, error=ValueError, **arguments):
    with pytest.raises(error, match=message) as caught:
        convert.load(folder, **arguments)
    assert "\n" not in str(caught.value)


def test_manifest_accounts_for_every_tensor(folders):
    source = folders.make("source", "BertForPreTraining")
    folders.rewrite(source, lambda t: {**t, "bert.embeddings.position_ids": np.arange(10)[None]})
    manifest = convert.inspect(source)
    tensors = folders.tensors(source)
    listed = [entry.hf_name for entry in (*manifest.used, *manifest.kept, *manifest.unused)]
    assert sorted(listed) == sorted(tensors)
    assert [entry.hf_name for entry in manifest.kept] == ["bert.embeddings.position_ids"]
    assert not manifest.unused
    assert manifest.heads == ("mlm", "nsp")
    assert {entry.hf_name for entry in manifest.used if entry.hf_name.startswith("cls.")} == {
        name for name in tensors if name.startswith("cls.")
    }
    assert all(tensors[entry.hf_name].shape == entry.shape for entry in manifest.used)
    assert not manifest.missing
    assert not manifest.problems
    assert convert.Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    text = str(manifest)
    assert "bert.embeddings.word_embeddings.weight [float32 30x8] -> backbone/embeddings/word/embedding" in text
    assert "kept: 1\n  bert.embeddings.position_ids [int64 1x10]" in text
    assert convert.load(source).manifest == manifest
    without = convert.inspect(source, heads=())
    assert {entry.hf_name.split(".")[0] for entry in without.unused} == {"cls"}
    assert not without.heads


def test_inspect_lists_what_load_refuses(folders):
    source = folders.make("source")
    folders.rewrite(source, lambda t: {**t, "adapter.weight": np.ones(2, np.float32)})
    manifest = convert.inspect(source)
    assert manifest.problems[0].startswith("1 tensor unknown to family bert: adapter.weight")
    assert "problem: 1 tensor unknown" in str(manifest)
    assert manifest.heads == ("classifier",)
    assert manifest.classes == 2


def test_unknown_tensors_are_refused_unless_allowed(folders, assert_same_tensors):
    source = folders.make("source")
    folders.rewrite(source, lambda t: {**t, "adapter.down": np.ones(2, np.float32), "other": np.ones(1, np.float32)})
    refused(source, r"2 tensors unknown to family bert: adapter.down, other; pass allow_unused")
    refused(source, r"1 tensor unknown to family bert: other;", allow_unused=["adapter.*"])
    checkpoint = convert.load(source, allow_unused=["adapter.*", "other"])
    assert [entry.hf_name for entry in checkpoint.manifest.unused] == ["adapter.down", "other"]
    convert.save(folders.root / "back", checkpoint)
    assert_same_tensors(folders.tensors(source), folders.tensors(folders.root / "back"))


def test_missing_tensors_are_refused_unless_allowed(folders, assert_same_tensors):
    source = folders.make("source", "BertModel")
    folders.rewrite(source, lambda t: {n: a for n, a in t.items() if "pooler" not in n})
    refused(
        source, r"2 tensors of family bert missing from the source: pooler.dense.weight, pooler.dense.bias; pass allow"
    )
    checkpoint = convert.load(source, allow_missing=["pooler.*"])
    assert checkpoint.manifest.missing == ("pooler.dense.weight", "pooler.dense.bias")
    assert "pooler" not in checkpoint.params["backbone"]
    convert.save(folders.root / "back", checkpoint)
    assert_same_tensors(folders.tensors(source), folders.tensors(folders.root / "back"))
    fresh = {"backbone": {"pooler": {"kernel": np.eye(8, dtype=np.float32), "bias": np.zeros(8, np.float32)}}}
    full = convert.complete(checkpoint.params, fresh)
    convert.save(folders.root / "full", checkpoint, params=full)
    np.testing.assert_array_equal(folders.tensors(folders.root / "full")["pooler.dense.weight"], np.eye(8))
    folders.rewrite(source, lambda t: {n: a for n, a in t.items() if "layer.1.attention.self.key.bias" not in n})
    refused(source, "encoder.layer.1.attention.self.key.bias", allow_missing=["pooler.*"])


def test_half_a_head_is_refused(folders):
    source = folders.make("source")
    folders.rewrite(source, lambda t: {n: a for n, a in t.items() if n != "classifier.bias"})
    refused(source, "1 tensor of family bert missing from the source: classifier.bias")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: {**t, "bert.embeddings.word_embeddings.weight": np.ones((31, 8), np.float32)},
            r"tensor bert.embeddings.word_embeddings.weight has shape \(31, 8\) where the config asks for \(30, 8\)",
        ),
        (
            lambda t: {**t, "classifier.bias": np.ones(2, np.int32)},
            "tensor classifier.bias has dtype int32, expected one of float16",
        ),
        (
            lambda t: {**t, "classifier.bias": np.array([0.1, 1 / 3])},
            "tensor classifier.bias is float64 and would lose digits as float32",
        ),
        (
            lambda t: {**t, "pooler.dense.bias": np.ones(8, np.float32)},
            "tensors bert.pooler.dense.bias and pooler.dense.bias are the same parameter",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folders, change, message):
    source = folders.make("source")
    folders.rewrite(source, change)
    refused(source, message)


@pytest.mark.parametrize("name, shown", [("a\nb", r"'a\\nb'"), ("x" * 500, r"'x{12}\.\.\.x{13}'"), ("", "''")])
def test_a_tensor_of_a_misleading_name_is_refused_in_one_line(folders, name, shown):
    source = folders.make("source")
    folders.rewrite(source, lambda t: {**t, name: np.ones(2, np.float32)})
    refused(source, rf"source holds a tensor called {shown}: expected a name of 1 to 200 printable characters")


def test_what_a_library_says_of_a_file_is_cut_short():
    said = reason(ValueError("of\n" + "x" * 5000))
    assert said.startswith("of xxx")
    assert said.endswith("xxx...")
    assert len(said) == 200


def test_of_many_problems_the_first_are_told(folders):
    source = folders.make("source")
    folders.configure(source, hidden_size=4)
    problems = convert.inspect(source).problems
    assert len(problems) > 30
    refused(
        source,
        rf"embeddings has shape .*; and {len(problems) - 8} more problems, which inspect lists$".replace(
            "embeddings", r"word_embeddings\.weight"
        ),
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"architectures": [["BertModel"]]},
            r"config\.json: architectures must be a list of names, got \[\['BertModel'\]\]",
        ),
        ({"line\nbreak": 1}, r"config\.json: unknown field 'line\\nbreak' may change"),
        ({"hidden_act": "x" * 9999}, r"config\.json: hidden_act must be one of .*, got 'x{12}\.\.\.x{13}'$"),
        ({"vocab_size": 2**31}, r"config\.json: vocab_size must be an integer of at most 2147483647, got 2147483648"),
    ],
)
def test_fields_that_mislead_are_refused_in_one_line(folders, changes, message):
    source = folders.make("source")
    folders.configure(source, **changes)
    refused(source, message)


def test_inspect_names_the_folder_too(folders):
    source = folders.make("source")
    folders.configure(source, num_hidden_layers=10**6)
    with pytest.raises(
        ValueError, match=r"source: the config asks for 1000000 layers where the source holds \d+ tensors"
    ):
        convert.inspect(source)


def test_float64_that_float32_holds_exactly_comes_back(folders, assert_same_tensors):
    source = folders.make("source")
    folders.rewrite(source, lambda t: {n: a.astype(np.float64) for n, a in t.items()})
    convert.save(folders.root / "back", convert.load(source))
    assert_same_tensors(folders.tensors(source), folders.tensors(folders.root / "back"))


def test_labels(folders):
    source = folders.make("source", id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    assert convert.load(source).labels == ["no", "yes"]
    assert convert.load(source, labels=["down", "up"]).labels == ["down", "up"]
    refused(source, r"3 labels were given where the classifier has 2 classes; pass heads=\(\)", labels=["a", "b", "c"])
    checkpoint = convert.load(source, heads=(), labels=["a", "b", "c"])
    assert checkpoint.labels == ["a", "b", "c"]
    assert "classifier" not in checkpoint.params
    folders.configure(source, drop=["id2label", "label2id"])
    assert convert.load(source).labels == ["LABEL_0", "LABEL_1"]
    folders.configure(source, id2label={"0": "a", "1": "b", "2": "c"})
    refused(source, "id2label names 3 classes where the classifier has 2")
    folders.configure(source, id2label={"0": "a", "2": "b"})
    refused(source, r"id2label must name ids 0 to 1 once each, got \[0, 2\]")
    folders.configure(source, id2label={"x": "a", "1": "b"})
    refused(source, "id2label must have the ids as keys")
    folders.configure(source, id2label=["a", "b"])
    refused(source, "id2label must map ids to names, got list")


def test_model_type(folders):
    source = folders.make("source")
    refused(source, "heads must be 'source' or a tuple of names among classifier, .*, got 'mlm'", heads="mlm")
    refused(source, "family bert has no head 'tokens': expected one of classifier, token_classifier", heads=("tokens",))
    refused(source, "says model_type 'bert', but family='gpt2' was asked for", family="gpt2")
    folders.configure(source, drop=["model_type"])
    refused(source, r"names no model_type: pass family= \(one of albert, .*bert, distilbert")
    assert convert.load(source, family="bert").family == "bert"
    refused(source, r"model_type 't5' is not supported: expected one of albert, .*bert", family="t5")
    folders.configure(source, model_type="bert", architectures="BertModel")
    refused(source, "architectures must be a list of names, got 'BertModel'")
    folders.configure(source, model_type=["bert"])
    refused(source, r"model_type \['bert'\] is not supported")
    folders.configure(source, model_type="t5")
    refused(source, r"model_type 't5' is not supported: expected one of albert, .*bert")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key', which changes"),
        ({"is_decoder": True}, "is_decoder is True, which changes"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is .* which changes"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map is .* not supported"),
        (
            {"rotary_base": 1, "qk_norm": True},
            r"unknown field qk_norm, rotary_base .* allow_unused=\['config.qk_norm'\]",
        ),
        ({"hidden_act": "gelo"}, "hidden_act must be one of .* got 'gelo'"),
        ({"hidden_act": ["gelu"]}, "hidden_act must be one of"),
        ({"num_attention_heads": 3}, "hidden_size must be a multiple of heads, got width 8 and 3 heads"),
        ({"hidden_size": "8"}, "hidden_size must be an integer of at least 1, got '8'"),
        ({"layer_norm_eps": None}, "layer_norm_eps must be a positive number, got None"),
        ({"hidden_dropout_prob": 2}, "hidden_dropout_prob must be a probability"),
    ],
)
def test_config_audit_refuses(folders, changes, message):
    source = folders.make("source")
    folders.configure(source, **changes)
    refused(source, f"config.json: {message}")


def test_an_absurd_number_of_layers_is_refused_at_once(folders):
    source = folders.make("source")
    folders.configure(source, num_hidden_layers=10**9)
    refused(source, "the config asks for 1000000000 layers where the source holds 41 tensors")


def test_an_unknown_field_can_be_allowed_and_travels_along(folders):
    source = folders.make("source")
    folders.configure(source, lab_notes="hello", pruned_heads={})
    checkpoint = convert.load(source, allow_unused=["config.lab_*"])
    convert.save(folders.root / "back", checkpoint)
    assert json.loads((folders.root / "back" / "config.json").read_text())["lab_notes"] == "hello"


def test_files_that_are_absent_or_damaged(folders):
    refused(folders.root / "nowhere", "nowhere is not a folder: expected one with config.json", FileNotFoundError)
    source = folders.make("source")
    whole = (source / "model.safetensors").read_bytes()
    for damaged in (b"", b"xx", whole[:100], whole[:-10], b"\xff" * 8 + whole[8:], whole[:8] + b"\x00" + whole[9:]):
        (source / "model.safetensors").write_bytes(damaged)
        refused(source, "model.safetensors is not a readable safetensors file")
    (source / "model.safetensors").unlink()
    refused(source, "source holds no weights: expected model.safetensors", FileNotFoundError)
    (source / "config.json").write_text("{")
    refused(source, "config.json is not valid JSON")
    (source / "config.json").write_text("[]")
    refused(source, "config.json must hold a JSON object, got list")
    (source / "config.json").unlink()
    refused(source, "config.json does not exist: a model folder needs config.json", FileNotFoundError)


def test_shard_index_is_checked(folders):
    convert.save(folders.root / "source", convert.load(folders.make("whole")), max_shard_size=4000)
    source = folders.root / "source"
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name, file = next(iter(index["weight_map"].items()))

    def with_map(weight_map):
        path.write_text(json.dumps({"weight_map": weight_map}))

    for outside in ("../whole/model.safetensors", "/etc/passwd", "..", "a\\b", ""):
        with_map({**index["weight_map"], name: outside})
        refused(source, "which is not a plain file name inside the folder")
    with_map({**index["weight_map"], name: "model-9.safetensors"})
    refused(source, "names shard model-9.safetensors, which does not exist", FileNotFoundError)
    with_map({**index["weight_map"], "bert.ghost": file})
    refused(source, f"puts tensor bert.ghost in {file}, which does not hold it")
    with_map([1])
    refused(source, "must map tensor names to file names under weight_map")
    (source / "copy.safetensors").write_bytes((source / file).read_bytes())
    with_map({**index["weight_map"], name: "copy.safetensors"})
    refused(source, "repeats tensor .* of another shard")


def test_save_refuses(folders):
    checkpoint = convert.load(folders.make("source"))
    backbone = checkpoint.params["backbone"]
    out = folders.root / "out"
    with pytest.raises(
        FileExistsError, match="source exists and is not empty: choose another folder or pass overwrite"
    ):
        convert.save(folders.root / "source", checkpoint)
    with pytest.raises(ValueError, match="no rule of family bert takes parameter lm_head/kernel: leave it out"):
        convert.save(out, checkpoint, params={**checkpoint.params, "lm_head": {"kernel": np.ones(1)}})
    with pytest.raises(ValueError, match="parameter backbone/pooler/kernel is missing"):
        convert.save(out, checkpoint, params={"backbone": {n: v for n, v in backbone.items() if n != "pooler"}})
    wrong = {**checkpoint.params, "classifier": {"kernel": np.ones((7, 2)), "bias": np.ones(2)}}
    with pytest.raises(
        ValueError, match=r"parameter classifier/kernel has shape \(7, 2\), which makes classifier.weight"
    ):
        convert.save(out, checkpoint, params=wrong)
    with pytest.raises(ValueError, match="1 labels were given for a classifier of 2 classes"):
        convert.save(out, checkpoint, labels=["one"])
    with pytest.raises(ValueError, match=r"labels must differ from each other, got \['a', 'a'\]"):
        convert.save(out, checkpoint, labels=["a", "a"])
    assert sorted(path.name for path in folders.root.iterdir()) == ["source"]


def test_overwriting(folders):
    checkpoint = convert.load(folders.make("source"))
    other = folders.root / "letters"
    other.mkdir()
    convert.save(other, checkpoint)
    (other / "stale.bin").write_bytes(b"")
    convert.save(other, checkpoint, overwrite=True)
    assert sorted(path.name for path in other.iterdir()) == ["config.json", "model.safetensors"]
    (other / "config.json").unlink()
    with pytest.raises(FileExistsError, match="letters holds no model, so it is not overwritten"):
        convert.save(other, checkpoint, overwrite=True)
    assert sorted(path.name for path in folders.root.iterdir()) == ["letters", "source"]


def test_tokenizer_files_travel_along(folders):
    source = folders.make("source")
    (source / "vocab.txt").write_text("[PAD]\n")
    (source / "notes.txt").write_text("stays")
    convert.import_folder(source, folders.root / "native")
    convert.export_folder(folders.root / "native", folders.root / "back")
    assert (folders.root / "back" / "vocab.txt").read_text() == "[PAD]\n"
    assert not (folders.root / "back" / "notes.txt").exists()
    (source / "vocab.txt").write_text("other\n")
    convert.save(folders.root / "borrowed", convert.read_native(folders.root / "native"), tokenizer_from=source)
    assert (folders.root / "borrowed" / "vocab.txt").read_text() == "other\n"


def test_a_vocabulary_alone_makes_the_same_tokenizer_from_our_own_folder(folders):
    """transformers takes the tokenizer's class from the model_type in config.json."""
    source = folders.make("source")
    (source / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "##ly"]))
    convert.import_folder(source, folders.root / "native")
    theirs, ours = (AutoTokenizer.from_pretrained(folder) for folder in (source, folders.root / "native"))
    assert type(ours) is type(theirs)
    assert ours("goodly bad")["input_ids"] == theirs("goodly bad")["input_ids"] == [2, 5, 6, 1, 3]


def test_our_own_folder_loads_as_its_source_does(folders, assert_same_tensors):
    source = folders.make("source", id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    folders.rewrite(source, lambda t: {**t, "bert.embeddings.position_ids": np.arange(10)[None]})
    native = folders.root / "native"
    convert.import_folder(source, native)
    assert convert.inspect(native) == convert.inspect(source)
    for heads in ("source", ()):
        ours, theirs = convert.load(native, heads=heads), convert.load(source, heads=heads)
        assert (ours.labels, ours.config, ours.manifest) == (theirs.labels, theirs.config, theirs.manifest)
        assert ours.params.keys() == theirs.params.keys()
        convert.save(folders.root / f"back_{len(heads)}", ours)
        assert_same_tensors(folders.tensors(source), folders.tensors(folders.root / f"back_{len(heads)}"))


def test_native_folder_refuses_damage(folders):
    native = folders.root / "native"
    convert.import_folder(folders.make("source"), native)
    weights = bytearray((native / "params.msgpack").read_bytes())
    weights[len(weights) // 2] ^= 1
    (native / "params.msgpack").write_bytes(weights)
    with pytest.raises(ValueError, match=r"params\.msgpack has another SHA-256 than it was written with"):
        convert.read_native(native)
    (native / "params.msgpack").unlink()
    with pytest.raises(FileNotFoundError, match=r"params\.msgpack does not exist: import the model again"):
        convert.read_native(native)
    (native / "params.msgpack").write_bytes(b"")
    (native / "jaxptft.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match=r"jaxptft\.json is damaged: it has no sha256 of params\.msgpack"):
        convert.read_native(native)
    (native / "jaxptft.json").write_text('{"format": 7}')
    with pytest.raises(ValueError, match=r"jaxptft\.json is of format 7, expected 2"):
        convert.read_native(native)
    (native / "jaxptft.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"jaxptft\.json does not exist"):
        convert.read_native(native)


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("config", {"vocab_size": 31}, r"word_embeddings.weight \(30, 8\) where the config asks for \(31, 8\)"),
        ("config", {"layers": 10**6}, r"the config asks for 1000000 layers where there are \d+ parameters"),
        ("config", {"heads": {}}, r"BertConfig\.heads must be an integer of at least 1, got \{\}"),
        ("labels", "../..", r"labels must be a list of names, got '\.\./\.\.'"),
        ("labels", ["a", "a"], r"labels must differ from each other, got \['a', 'a'\]"),
        ("extras", {"dtypes": {"a": 2}}, r"extras\.dtypes must map names to names"),
        ("extras", {"dtypes": {"a": "bool"}}, r"extras\.dtypes has 'bool', expected one of float16, bfloat16, float32"),
        ("extras", {"names": 1}, r"extras\.names must map names to names"),
        ("extras", {"names": {"pooler.dense.bias": "x"}}, r"names calls pooler\.dense\.bias x, which bert knows as an"),
        ("manifest", {"used": 5}, "TypeError 'int' object is not iterable"),
    ],
)
def test_native_folder_refuses_a_description_that_was_changed(folders, key, change, message):
    native = folders.root / "native"
    convert.import_folder(folders.make("source"), native)
    description = json.loads((native / "jaxptft.json").read_text())
    description[key] = {**description[key], **change} if isinstance(change, dict) else change
    (native / "jaxptft.json").write_text(json.dumps(description))
    for read in (convert.read_native, convert.load, convert.inspect):
        with pytest.raises(ValueError, match=rf"jaxptft\.json is damaged: .*{message}"):
            read(native)


def test_native_folder_refuses_weights_of_other_kinds(folders):
    native = folders.root / "native"
    convert.import_folder(folders.make("source"), native)
    whole = (native / "params.msgpack").read_bytes()
    description = (native / "jaxptft.json").read_text()

    def refused_with(weights: bytes, message: str) -> None:
        old, new = (hashlib.sha256(content).hexdigest() for content in (whole, weights))
        (native / "params.msgpack").write_bytes(weights)
        (native / "jaxptft.json").write_text(description.replace(old, new))
        with pytest.raises(ValueError, match=message):
            convert.read_native(native)

    refused_with(whole[:-50], r"params\.msgpack is damaged: \w+ ")
    tree = msgpack_restore(whole)
    tree["params"]["backbone"]["embeddings"]["word"]["embedding"] = np.zeros((30, 8), np.int32)
    refused_with(msgpack_serialize(tree), "backbone/embeddings/word/embedding is int32, expected float32")
    tree = {**msgpack_restore(whole), "extras": {"a": "text"}}
    refused_with(msgpack_serialize(tree), r"tensor a of params\.msgpack is str, expected an array")
