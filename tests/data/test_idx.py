"""IDX files written by hand, byte by byte, and every way in which they may be wrong."""

import gzip
import struct

import numpy as np
import pytest

from jaxptft import data
from jaxptft.data.idx import idx_pairs, read_idx


def idx(kind: int, shape, values: bytes) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values


IMAGES = idx(8, (3, 2, 2), bytes(range(12)))
LABELS = idx(8, (3,), bytes([7, 0, 7]))


@pytest.mark.parametrize("packed", [False, True])
def test_values_as_written(tmp_path, packed):
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(IMAGES) if packed else IMAGES)
    np.testing.assert_array_equal(read_idx(path), np.arange(12).reshape(3, 2, 2))
    assert read_idx(path).dtype == np.uint8


@pytest.mark.parametrize("kind, code", [(0x09, "b"), (0x0B, "h"), (0x0C, "i"), (0x0D, "f"), (0x0E, "d")])
def test_other_types_are_big_endian(tmp_path, kind, code):
    path = tmp_path / "x"
    path.write_bytes(idx(kind, (2,), struct.pack(f">2{code}", -3, 100)))
    found = read_idx(path)
    np.testing.assert_array_equal(found, [-3, 100])
    assert found.dtype.isnative
    assert found.dtype == np.dtype(code)


PACKED = gzip.compress(IMAGES)
BAD = {
    "empty": (b"", "x: is empty, expected an IDX file"),
    "gzip of nothing": (gzip.compress(b""), "x: is empty, expected an IDX file"),
    "magic": (b"\x00\x01" + IMAGES[2:], "x: is no IDX file: it begins with 0x00010803, expected 0x0000"),
    "type": (b"\x00\x00\x07\x03" + IMAGES[4:], "begins with 0x00000703, .* a type of 0x08, 0x09"),
    "no dimensions": (b"\x00\x00\x08\x00", "x: is no IDX file"),
    "text": (b"a,b\n1,2\n", "x: is no IDX file: it begins with 0x612c620a"),
    "three bytes": (b"\0\0\x08", "x: is no IDX file: it begins with 0x000008,"),
    "header": (IMAGES[:9], "x: is cut short within its header of 3 sizes"),
    "values": (IMAGES[:-1], "x: is cut short: 3 x 2 x 2 values of 1 bytes are 12, and it has 11; get"),
    "no values": (IMAGES[:16], "are 12, and it has 0;"),
    "more": (IMAGES + b"\0", "x: goes on after its last value: 3 x 2 x 2 values of 1 bytes are 12, and it has more"),
    "huge": (idx(14, (2**32 - 1,) * 3, b"12"), "x: is cut short: 4294967295 x 4294967295 x 4294967295 values of 8"),
    "huge, packed": (gzip.compress(idx(14, (2**32 - 1,) * 3, b"12")), "x: is cut short: 4294967295 x .* it has 2;"),
    "more, packed": (gzip.compress(IMAGES + b"abc"), "x: goes on after its last value"),
    "gzip cut": (PACKED[:-12], "x: its gzip data is damaged or cut short"),
    "gzip damaged": (PACKED[:-8] + bytes(4) + PACKED[-4:], "x: its gzip data is damaged or cut short"),
}


@pytest.mark.parametrize("content, said", BAD.values(), ids=BAD)
def test_bad_file(tmp_path, content, said):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        read_idx(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "mnist"
    root.mkdir()
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(IMAGES))
    (root / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(LABELS))
    (root / "t10k-images.idx3-ubyte").write_bytes(idx(8, (2, 2, 2), bytes(range(8))))
    (root / "t10k-labels.idx1-ubyte").write_bytes(idx(8, (2,), bytes([0, 7])))
    return root


def test_canonical_folder(folder):
    assert data.image_split_names(folder) == ("train", "test")
    images = data.read_images(folder, split="train")
    np.testing.assert_array_equal(images.pixels[..., 0], np.arange(12).reshape(3, 2, 2))
    assert (images.names, images.labels.tolist()) == (("0", "7"), [1, 0, 1])
    assert (images.size, images.channels, images.source) == ((2, 2), 1, f"{folder}[train]")
    splits = data.read_image_splits(folder, evaluation=folder / "train-images-idx3-ubyte.gz", test=folder)
    assert (len(splits.train), len(splits.evaluation), len(splits.test)) == (3, 3, 2)
    assert splits.test.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="mnist: has several splits; choose one of 'train', 'test'"):
        data.read_images(folder)
    with pytest.raises(ValueError, match="mnist: there is no split 'dev'; splits found: 'train', 'test'"):
        data.read_images(folder, split="dev")


def test_one_file_with_labels_beside_it_or_without(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    assert data.read_images(path).labels.tolist() == [1, 0, 1]
    assert data.read_images(path, labelled=False).labels is None
    with pytest.raises(ValueError, match=r"ubyte\.gz: has no splits, and split 'train' was asked of it"):
        data.read_images(path, split="train")
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    assert idx_pairs(folder)["train"].labels is None
    assert data.read_images(path).labels is None
    with pytest.raises(ValueError, match=r"ubyte\.gz: has no labels, and labels are needed"):
        data.read_images(path, labelled=True)


PAIRS = {
    "too few": ("labels", idx(8, (2,), b"\0\1"), "labels-idx1-ubyte.gz: has 2 labels for the 3 images of train-images"),
    "real": ("labels", idx(13, (3,), bytes(12)), r"holds float32 of shape \(3,\), expected one whole number a row"),
    "square": ("labels", idx(8, (3, 1), bytes(3)), r"holds uint8 of shape \(3, 1\), expected one whole number a row"),
    "vectors": ("images", idx(8, (3, 4), bytes(12)), r"holds uint8 of shape \(3, 4\), expected uint8 of \(images, hei"),
    "deep": ("images", idx(11, (3, 2, 2), bytes(24)), r"holds int16 of shape \(3, 2, 2\), expected uint8"),
    "none": ("images", idx(8, (0, 2, 2), b""), r"has no images; its shape is \(0, 2, 2\)"),
}


@pytest.mark.parametrize("file, content, said", PAIRS.values(), ids=PAIRS)
def test_files_that_do_not_fit(folder, file, content, said):
    path = next(folder.glob(f"train-{file}*"))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        data.read_images(folder, split="train")
