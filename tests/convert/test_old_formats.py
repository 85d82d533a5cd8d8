"""pytorch_model.bin without unpickling, flax_model.msgpack, and all of it where torch cannot be imported."""

import collections
import json
import os
import pickle
import subprocess
import sys
import zipfile

import flax.serialization
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert


def as_bin(folders, name="source", architecture="BertForSequenceClassification", dtype=torch.float32):
    source = folders.make(name, architecture, dtype)
    expected = folders.tensors(source)
    state = getattr(transformers, architecture).from_pretrained(source, dtype=dtype).state_dict()
    (source / "model.safetensors").unlink()
    return source, expected, state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_bin_is_read_only_when_allowed(folders, assert_same_tensors, dtype):
    source, expected, state = as_bin(folders, dtype=dtype)
    torch.save(state, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds only a pickle-based pytorch_model\.bin: pass allow_bin=True"):
        convert.load(source)
    convert.save(folders.root / "back", convert.load(source, allow_bin=True))
    assert_same_tensors(expected, folders.tensors(folders.root / "back"))


def test_views_parameters_and_shards_of_a_bin_are_read(folders, assert_same_tensors):
    source, expected, state = as_bin(folders)
    # A transposed view, a slice with an offset, a Parameter, and two files.
    name = "bert.pooler.dense.weight"
    state[name] = state[name].t().contiguous().t()
    whole = torch.cat([torch.zeros(3), state["bert.pooler.dense.bias"]])
    state["bert.pooler.dense.bias"] = whole[3:]
    state["classifier.bias"] = torch.nn.Parameter(state["classifier.bias"])
    names = sorted(state)
    files = {"a.bin": names[:10], "b.bin": names[10:]}
    for file, held in files.items():
        torch.save({name: state[name] for name in held}, source / file)
    weight_map = {name: file for file, held in files.items() for name in held}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    convert.save(folders.root / "back", convert.load(source, allow_bin=True))
    assert_same_tensors(expected, folders.tensors(folders.root / "back"))


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "function, name",
    [(os.system, "posix.system|nt.system"), (eval, "__builtin__.eval"), (getattr, "__builtin__.getattr")],
)
def test_a_malicious_pickle_runs_nothing(folders, function, name):
    source, _, state = as_bin(folders)
    witness = folders.root / "witness"
    argument = f"touch {witness}" if function is os.system else f"open({str(witness)!r}, 'w')"
    arguments = ("name", "upper") if function is getattr else (argument,)
    torch.save({**state, "classifier.bias": Calls(function, *arguments)}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"its pickle names ({name}), which plain tensors do not need: refused"):
        convert.load(source, allow_bin=True)
    assert not witness.exists()
    # A raw unpickle of the same file does run it: the test would notice.
    if function is not getattr:
        torch.load(source / "pytorch_model.bin", weights_only=False)
        assert witness.exists()


def write_zip(path, value=None, pickled=None, storages=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(value) if pickled is None else pickled)
        for key, data in storages:
            archive.writestr(f"x/data/{key}", data)


def test_bins_that_are_not_state_dicts_are_refused(folders):
    source, _, state = as_bin(folders)
    path = source / "pytorch_model.bin"

    def refused(message):
        with pytest.raises(ValueError, match=message) as caught:
            convert.load(source, allow_bin=True)
        assert "\n" not in str(caught.value)

    path.write_bytes(pickle.dumps({}))
    refused("is not a torch zip file .* save it again as safetensors")
    torch.save(state, path, _use_new_zipfile_serialization=False)
    refused("is not a torch zip file")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/other", b"")
    refused("must hold one data.pkl, got 0")
    write_zip(path, [1])
    refused("must hold a dict of tensors, got list")
    write_zip(path, {"epoch": 3})
    refused("entry 'epoch' is int, expected a tensor under a name")
    write_zip(path, collections.OrderedDict(model={"a": 1}))
    refused("entry 'model' is dict, expected a tensor under a name")
    write_zip(path, pickled=b"\x80\x02garbage")
    refused("is damaged or no state dict")
    torch.save({"a": torch.sparse_coo_tensor([[0]], [1.0], (2,), check_invariants=True)}, path)
    refused("_rebuild_sparse_tensor, which plain tensors do not need")
    torch.save({"a": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("pytorch_model/data.pkl")
    write_zip(path, pickled=pickled, storages=[("0", b"1234")])
    refused("storage 0 holds 4 bytes, expected 4 x float32")
    # Four elements claimed as five: byte 4 of the shape becomes 5.
    write_zip(path, pickled=pickled.replace(b"K\x04\x85", b"K\x05\x85"), storages=[("0", bytes(16))])
    refused(r"a tensor of shape \(5,\), strides \(1,\) leaves its storage of 4 elements")


def test_flax_msgpack_is_read(folders, assert_same_tensors):
    # transformers 4's Flax naming, by hand: nested by the dots, kernel/scale/embedding for weight, kernels [in, out].
    source = folders.make("source")
    expected = folders.tensors(source)
    tree: dict = {}
    for name, array in expected.items():
        *parents, leaf = name.split(".")
        if leaf == "weight":
            kind = "embedding" if "_embeddings" in name else "scale" if "LayerNorm" in name else "kernel"
            leaf, array = kind, array.T if kind == "kernel" else array
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = np.ascontiguousarray(array)
    (source / "model.safetensors").unlink()
    path = source / "flax_model.msgpack"
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    convert.save(folders.root / "back", convert.load(source))
    assert_same_tensors(expected, folders.tensors(folders.root / "back"))
    for damaged in (b"", path.read_bytes()[:-50], b"\xc1"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"flax_model\.msgpack is not a readable msgpack file"):
            convert.load(source)
    path.write_bytes(flax.serialization.msgpack_serialize({"a": {"b": "text"}}))
    with pytest.raises(ValueError, match=r"flax_model.msgpack: a.b is str, expected an array"):
        convert.load(source)
    path.write_bytes(b"\x01")
    with pytest.raises(ValueError, match="must hold a tree of parameters, got int"):
        convert.load(source)


def test_works_where_torch_and_transformers_cannot_be_imported(folders, assert_same_tensors):
    source, expected, state = as_bin(folders)
    torch.save(state, source / "pytorch_model.bin")
    code = (
        "import sys\n"
        "sys.modules.update(torch=None, transformers=None, datasets=None, orbax=None)\n"
        "from jaxptft import convert\n"
        "convert.import_folder(sys.argv[1], sys.argv[2], allow_bin=True)\n"
        "convert.export_folder(sys.argv[2], sys.argv[3])\n"
    )
    places = [str(source), str(folders.root / "native"), str(folders.root / "back")]
    subprocess.run([sys.executable, "-c", code, *places], check=True, capture_output=True, text=True)
    assert_same_tensors(expected, folders.tensors(folders.root / "back"))


def test_a_cold_import_is_light():
    code = (
        "import sys, jaxptft.convert\n"
        "heavy = {'torch', 'transformers', 'datasets', 'orbax', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
