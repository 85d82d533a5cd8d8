"""Reading `pytorch_model.bin` without torch and without unpickling objects.

Such a file is a zip of raw storages and a pickle that says how they make up tensors. The unpickler here knows the few
names that plain tensors need and maps them onto numpy; whatever else a pickle names is an error, and nothing it
names is imported or called. The zip format of torch >= 1.6 only.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from reprlib import repr as shown
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxptft.convert.wording import reason

_STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _StorageType(NamedTuple):
    dtype: Any


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a torch state dict; a one-line ValueError naming the file and, for a foreign object, its name."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError):
        raise ValueError(
            f"{path} is not a torch zip file (torch < 1.6 wrote another format): save it again as safetensors"
        ) from None
    with archive:
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{path} must hold one data.pkl, got {len(pickles)}: save it again as safetensors")
        try:
            state = _TensorUnpickler(archive, pickles[0]).load()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        except Exception as error:  # a damaged pickle can raise nearly anything
            said = f"{type(error).__name__} {reason(error)}"
            raise ValueError(f"{path} is damaged or no state dict: {said}") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} must hold a dict of tensors, got {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise ValueError(f"{path}: entry {shown(name)} is {type(value).__name__}, expected a tensor under a name")
    return dict(state)


class _TensorUnpickler(pickle.Unpickler):
    """Resolves the names in `find_class` and nothing else, and storages from the archive."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(archive.open(name), encoding="utf-8")
        self._archive = archive
        self._root = name.removesuffix("data.pkl")
        self._storages: dict[str, np.ndarray] = {}
        if f"{self._root}byteorder" in archive.namelist() and archive.read(f"{self._root}byteorder") != b"little":
            raise ValueError("the file is big-endian, which is not supported")
        # Fresh functions for each file: a pickle can set attributes on what it is handed.
        self._known: dict[tuple[str, str], Callable[..., Any] | type] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _rebuild(*arguments[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda *arguments: _tensor(arguments[0]),
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if (module, name) in self._known:
            return self._known[module, name]
        raise ValueError(f"its pickle names {module}.{name}, which plain tensors do not need: refused, nothing was run")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, _StorageType) or not isinstance(key, str):
            raise ValueError(f"storage {shown(pid)} is of an unknown kind")
        if key not in self._storages:
            info = self._archive.getinfo(f"{self._root}data/{key}")
            dtype = np.dtype(storage.dtype)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
                raise ValueError(f"storage {key} holds {info.file_size} bytes, expected {count} x {dtype.name} stored")
            self._storages[key] = np.frombuffer(self._archive.read(info), dtype)
        return self._storages[key]


def _tensor(value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"a parameter is made from {type(value).__name__}, expected a tensor")
    return value


def _rebuild(storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    _tensor(storage)
    numbers = (offset, *shape, *strides)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    whole = all(isinstance(number, int) and number >= 0 for number in numbers)
    if not whole or (0 not in shape and last >= storage.size):
        raise ValueError(f"a tensor of shape {shape}, strides {strides} leaves its storage of {storage.size} elements")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    step = storage.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(storage[offset:], shape, [stride * step for stride in strides])
    return np.ascontiguousarray(view)
