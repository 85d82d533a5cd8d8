"""Weight files as arrays, against the safetensors package's own reading of them."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxptft.convert.tensors import read_safetensors

DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?", ml_dtypes.bfloat16]


def test_every_dtype_reads_as_the_package_reads_it(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "model.safetensors"
    drawn = {f"t{number}": rng.integers(0, 2, (3, number + 1)).astype(dtype) for number, dtype in enumerate(DTYPES)}
    save_file({**drawn, "scalar": np.full((), 2.5, np.float32), "none": np.zeros((0, 4), np.float32)}, path)
    found, expected = read_safetensors(path), load_file(path)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_tensors_are_views_of_the_file(tmp_path):
    """Even where they begin at no multiple of their size; and they outlive the file's name."""
    path = tmp_path / "model.safetensors"
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    about = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    header = json.dumps({"w": about}).encode()
    header += b" " * (-len(header) % 4 + 1)
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    found = read_safetensors(path)["w"]
    assert found.base is not None
    assert not found.flags.writeable
    path.unlink()
    np.testing.assert_array_equal(found, values)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0
