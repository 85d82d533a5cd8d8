"""Weight files <-> named numpy arrays: safetensors, whole or sharded, and the older formats behind their own readers.

Reading needs no torch. Writing is safetensors only, sharded beyond a size, with an index as Hugging Face writes it.
"""

import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shown

import numpy as np

from jaxptft.convert.hf_config import read_json
from jaxptft.convert.wording import LONGEST, is_plain, reason, spelt

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
BIN = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"
MSGPACK = "flax_model.msgpack"
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}


def read_tensors(folder: Path, *, allow_bin: bool = False) -> dict[str, np.ndarray]:
    """All tensors of a model folder by Hugging Face's names, from the safest format it holds.

    safetensors, then `pytorch_model.bin` (only where `allow_bin`; read without unpickling objects), then
    `flax_model.msgpack`. Raises FileNotFoundError or a one-line ValueError naming the file or tensor at fault.
    """
    tensors = _read(folder, allow_bin)
    if strange := [name for name in tensors if not is_plain(name)]:
        raise ValueError(
            f"{folder} holds a tensor called {shown(strange[0])}: expected a name of 1 to {LONGEST} printable "
            "characters; the file is damaged, or was made to mislead"
        )
    return tensors


def _read(folder: Path, allow_bin: bool) -> dict[str, np.ndarray]:
    from jaxptft.convert.flax_file import read_msgpack
    from jaxptft.convert.torch_file import read_torch

    if (folder / SAFETENSORS).is_file():
        return read_safetensors(folder / SAFETENSORS)
    if (folder / SAFETENSORS_INDEX).is_file():
        return _read_sharded(folder / SAFETENSORS_INDEX, read_safetensors)
    if allow_bin and (folder / BIN).is_file():
        return read_torch(folder / BIN)
    if allow_bin and (folder / BIN_INDEX).is_file():
        return _read_sharded(folder / BIN_INDEX, read_torch)
    if (folder / MSGPACK).is_file():
        return read_msgpack(folder / MSGPACK)
    if (folder / BIN).is_file() or (folder / BIN_INDEX).is_file():
        raise ValueError(f"{folder} holds only a pickle-based {BIN}: pass allow_bin=True to read its tensors")
    raise FileNotFoundError(
        f"{folder} holds no weights: expected {SAFETENSORS}, {SAFETENSORS_INDEX}, {BIN} or {MSGPACK}"
    )


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray], *, max_shard_size: int = 5_000_000_000) -> None:
    """Writes `model.safetensors`, or numbered shards of at most `max_shard_size` bytes and their index.

    A tensor larger than a shard gets one of its own. Raises ValueError for a size below 1.
    """
    from safetensors.numpy import save_file

    if max_shard_size < 1:
        raise ValueError(f"max_shard_size must be at least 1 byte, got {max_shard_size}")
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in tensors.items():
        if shards[-1] and size + array.nbytes > max_shard_size:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / SAFETENSORS, metadata={"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {
        "metadata": {"total_size": sum(array.nbytes for array in tensors.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of one file, most of them read-only views of it, whose bytes are read where they are used.

    Raises ValueError naming a file that is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:  # which checks the header and the places of all tensors
            mapped, begins = _mapped(path)
            tensors = {}
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                part = file.get_slice(name)
                dtype, shape = _DTYPES.get(part.get_dtype()), part.get_shape()
                if dtype is None or 0 in shape:
                    tensors[name] = file.get_tensor(name)
                else:
                    flat = np.frombuffer(mapped, dtype, count=math.prod(shape), offset=begins[name])
                    tensors[name] = flat.reshape(shape)
            return tensors
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {reason(error)}") from None


def _mapped(path: Path) -> tuple[mmap.mmap, dict[str, int]]:
    """A safetensors file in memory, and where in it each tensor begins: the file holds the size of its header in 8
    bytes, the header in JSON, and the tensors, whose places count from its end."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    end = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8:end])
    return mapped, {name: end + about["data_offsets"][0] for name, about in header.items() if name != "__metadata__"}


def _read_sharded(index: Path, read) -> dict[str, np.ndarray]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{index} must map tensor names to file names under weight_map")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(weight_map.values())):
        # A plain name only: an index must not reach outside its folder.
        if file in (".", "..") or not is_plain(file) or any(mark in file for mark in "/\\:"):
            raise ValueError(f"{index} names shard {shown(file)}, which is not a plain file name inside the folder")
        if not (index.parent / file).is_file():
            raise FileNotFoundError(f"{index} names shard {file}, which does not exist in {index.parent}")
        shard = read(index.parent / file)
        doubled = sorted(shard.keys() & tensors.keys())
        if doubled:
            raise ValueError(f"{index.parent / file} repeats tensor {spelt(doubled[0])} of another shard")
        lost = sorted(name for name, place in weight_map.items() if place == file and name not in shard)
        if lost:
            raise ValueError(f"{index} puts tensor {spelt(lost[0])} in {file}, which does not hold it")
        tensors |= shard
    return tensors
