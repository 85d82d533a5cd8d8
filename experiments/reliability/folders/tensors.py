"""Damage to the files of tensors: headers that lie, files cut short, an index of shards that misleads."""

import contextlib
import json
import struct

import numpy as np

from folders.draw import ODD, deep, flipped, pick
from folders.sound import INDEX, SHARDS, WEIGHTS, Files, joined, parted

LINKS = ("SELF", ".", "..", "nothing", INDEX, "/dev/null", "FIFO")


def header_bits(rng: np.random.Generator, files: Files) -> None:
    content = files[WEIGHTS]
    files[WEIGHTS] = flipped(rng, content, 0, 8 + struct.unpack("<Q", content[:8])[0])


def header_length(rng: np.random.Generator, files: Files) -> None:
    content = files[WEIGHTS]
    (length,) = struct.unpack("<Q", content[:8])
    near = [length + step for step in (-9, -1, 1, 2, 9)]
    lie = pick(rng, [0, 1, 7, len(content), len(content) - 8, 2**27, 2**32, 2**40, 2**63, 2**64 - 1, *near])
    files[WEIGHTS] = struct.pack("<Q", lie) + content[8:]


def header_json(rng: np.random.Generator, files: Files) -> None:
    _, values = parted(files[WEIGHTS])
    texts = (b"", b"{}", b"[]", b"null", b"{", b'{"a": 1}', b'{"__metadata__": []}', b"\xff\xfe", bytes(64), b"NaN")
    header = deep(rng) if rng.random() < 0.4 else pick(rng, texts)
    files[WEIGHTS] = joined(header, values if rng.random() < 0.5 else b"")


def offsets(rng: np.random.Generator, files: Files) -> None:
    header, values = parted(files[WEIGHTS])
    name, other = (pick(rng, list(header)) for _ in range(2))
    begin, end = header[name]["data_offsets"]
    beyond = [len(values), len(values) + 4]
    drawn = [int(rng.integers(-8, len(values) + 64)) for _ in range(2)]
    lies = (
        [end, begin], [begin, end + 4], [begin + 4, end], [begin - 4, end - 4], [begin, begin], [0, end], beyond, drawn,
        [begin, 2**40], [2**63, 2**63 + 4], [begin, 2**64], [-4, end], [begin], [begin, end, end], [], None, "0",
        [str(begin), str(end)], [float(begin), float(end)], header[other]["data_offsets"],
    )  # fmt: skip
    header[name]["data_offsets"] = pick(rng, lies)
    files[WEIGHTS] = joined(json.dumps(header).encode(), values)


def header_shapes(rng: np.random.Generator, files: Files) -> None:
    header, values = parted(files[WEIGHTS])
    entry = header[pick(rng, list(header))]
    shape = entry["shape"]
    size = int(np.prod(shape))
    lies = (
        [], [0], [size], [1, size], shape[::-1], [*shape, 1], [1] * 40 + shape, [2**20, 2**20], [2**32, 2**32],
        [2**63, 2], [2**64], [-1, *shape[1:]], [-size], [0, 2**60], [float(size)], [None], "8", None, [[size]],
        [step + int(rng.integers(-2, 3)) for step in shape],
    )  # fmt: skip
    entry["shape"] = pick(rng, lies)
    if rng.random() < 0.3:  # and the offsets agree with it
        first = entry["data_offsets"][0]
        with contextlib.suppress(TypeError, ValueError):
            entry["data_offsets"] = [first, first + 4 * int(np.prod(entry["shape"], dtype=object))]
    files[WEIGHTS] = joined(json.dumps(header).encode(), values)


def header_types(rng: np.random.Generator, files: Files) -> None:
    header, values = parted(files[WEIGHTS])
    entry = header[pick(rng, list(header))]
    names = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F4", "F6_E2M3", "C64", "I64", "U64", "I32", "U32")
    entry["dtype"] = pick(rng, (*names, "I16", "I8", "U8", "BOOL", "f32", "object", "O", "", None, 32, ["F32"], {}))
    width = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
    if rng.random() < 0.6 and type(entry["dtype"]) is str and (bytes_ := width.get(entry["dtype"])):
        # A whole file of another type: the values of every other tensor move along.
        begin, end = entry["data_offsets"]
        size, step = (end - begin) // 4 * bytes_, (end - begin) // 4 * bytes_ - (end - begin)
        values = values[:begin] + bytes(rng.integers(0, 2, size, np.uint8)) + values[end:]
        for one in header.values():
            if one["data_offsets"][0] >= end:
                one["data_offsets"] = [place + step for place in one["data_offsets"]]
        entry["data_offsets"] = [begin, begin + size]
    files[WEIGHTS] = joined(json.dumps(header).encode(), values)


def tensor_names(rng: np.random.Generator, files: Files) -> None:
    header, values = parted(files[WEIGHTS])
    names = list(header)
    name = pick(rng, names)
    odd = ("", "a\nb", "\x00", "x" * 50_000, "../../x", "bert.", "classifier", "é" * 9, "bert.bert.pooler.dense.bias")
    choice = int(rng.integers(5))
    if choice == 0:  # twice under one name
        text = json.dumps(header)[:-1] + ", " + json.dumps({name: header[pick(rng, names)]})[1:]
        files[WEIGHTS] = joined(text.encode(), values)
        return
    entry = header.pop(name)
    if choice == 1:  # renamed
        header[pick(rng, odd)] = entry
    elif choice == 2:  # in the place of another
        header[pick(rng, [other for other in names if other != name])] = entry
    elif choice == 3:  # one more, of the values of another or of its own
        header[name] = entry
        extra = {**entry, "data_offsets": [len(values), len(values) + entry["data_offsets"][1]]}
        more = bool(rng.integers(2))
        header[pick(rng, (*odd, name.removeprefix("bert."), "bert." + name))] = extra if more else entry
        values += bytes(entry["data_offsets"][1]) * more
    files[WEIGHTS] = joined(json.dumps(header).encode(), values)


def cut(rng: np.random.Generator, files: Files) -> None:
    content = files[WEIGHTS]
    sizes = (0, 1, 7, 8, 9, len(content) - 1, len(content) - 4, int(rng.integers(len(content))))
    files[WEIGHTS] = content[: pick(rng, sizes)]


def longer(rng: np.random.Generator, files: Files) -> None:
    files[WEIGHTS] += rng.bytes(int(rng.integers(1, 64)))


def noise(rng: np.random.Generator, files: Files) -> None:
    files[WEIGHTS] = rng.bytes(int(rng.integers(1, 4096)))


def value_bits(rng: np.random.Generator, files: Files) -> None:
    content = files[WEIGHTS]
    files[WEIGHTS] = flipped(rng, content, 8 + struct.unpack("<Q", content[:8])[0], len(content))


def shards(rng: np.random.Generator, files: Files) -> None:
    index = json.loads(files[INDEX])
    places = index["weight_map"]
    name = pick(rng, list(places))
    outside = ("../outside.safetensors", "../../x", "/etc/passwd", "OUTSIDE", "..", ".", "", "a/b", "a\\b", "C:x", "~")
    odd = (*outside, INDEX, "config.json", "nothing.safetensors", "a\0b", "a\nb", "x" * 5000, 3, None, [], {})
    fates = (
        lambda: places.update({name: pick(rng, odd)}),
        lambda: places.update(dict.fromkeys(places, pick(rng, odd))),
        lambda: places.update({name: pick(rng, SHARDS)}),
        lambda: places.update({"surprise": pick(rng, SHARDS)}),
        lambda: places.pop(name),
        lambda: index.update(weight_map=pick(rng, ODD)),
        lambda: index.update(metadata=pick(rng, ODD)),
        lambda: files.pop(pick(rng, SHARDS)),
        lambda: files.update({SHARDS[0]: files[SHARDS[1]]}),
        lambda: files.update({SHARDS[0]: files[SHARDS[0]][: int(rng.integers(len(files[SHARDS[0]])))]}),
    )
    pick(rng, fates)()
    files[INDEX] = json.dumps(index).encode()
    if rng.random() < 0.1:
        files[INDEX] = flipped(rng, files[INDEX], 0, len(files[INDEX]))


def links(rng: np.random.Generator, files: Files) -> None:
    """A shard that is a link to itself, to the folder, to a device or to nothing; `_prepared` makes the link."""
    files["LINK"] = json.dumps([pick(rng, SHARDS), pick(rng, LINKS)]).encode()
