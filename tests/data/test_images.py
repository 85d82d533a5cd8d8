"""Images from every kind of source, the rows that are bad in each, the cache, and splits."""

import io
import json
import os
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from jaxptft import data
from jaxptft.data import image_store
from jaxptft.data import images as images_module
from jaxptft.data.cache import MANIFEST

RANDOM = np.random.default_rng(1)
PIXELS = RANDOM.integers(0, 256, (6, 8, 8, 3), np.uint8)
CLASSES = ["cat", "dog", "cat", "dog", "cat", "dog"]


def encoded(pixels, kind="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


FILES = [encoded(pixels) for pixels in PIXELS]


def in_folders(root, files=FILES, classes=CLASSES):
    for number, (content, name) in enumerate(zip(files, classes, strict=True)):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{number}.png").write_bytes(content)
    return root


BY_CLASS = [0, 2, 4, 1, 3, 5]  # rows of a folder: its classes in order, and their files


def test_class_folders(tmp_path):
    images = data.read_images(in_folders(tmp_path / "pets"))
    np.testing.assert_array_equal(images.pixels, PIXELS[BY_CLASS])
    assert (images.names, images.labels.tolist()) == (("cat", "dog"), [0, 0, 0, 1, 1, 1])
    assert (images.size, images.channels, len(images)) == ((8, 8), 3, 6)
    assert images.keys == [f"{CLASSES[row]}/{row}.png" for row in BY_CLASS]
    assert str(images.report) == "6 rows, none skipped"
    assert images.rows.tolist() == [1, 2, 3, 4, 5, 6]


def test_flat_folder_and_what_lies_beside_images(tmp_path):
    in_folders(tmp_path, classes=["photos"] * 6)
    (tmp_path / "photos" / "readme.txt").write_text("x")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    for source in (tmp_path / "photos", tmp_path):  # one folder alone is no class
        images = data.read_images(source)
        assert (images.labels, images.names, len(images)) == (None, (), 6)
        np.testing.assert_array_equal(images.pixels, PIXELS)
    with pytest.raises(ValueError, match=r"photos: 0\.png lies in no folder that names its class, and labels are need"):
        data.read_images(tmp_path / "photos", labelled=True)
    (tmp_path / "6.png").write_bytes(FILES[0])
    with pytest.raises(ValueError, match=r"images lie both in it \(6\.png\) and in folders of it \(photos\)"):
        data.read_images(tmp_path)
    assert len(data.read_images(tmp_path, labelled=False)) == 7
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: holds no image, no file that ends in \.png, .* \(it is empty\)"):
        data.read_images(tmp_path / "empty")
    (tmp_path / "empty" / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"suffixes found: \.txt"):
        data.read_images(tmp_path / "empty")


def test_folder_splits(tmp_path):
    tmp_path = tmp_path / "pets"
    for name, rows in (("train", slice(None)), ("val", slice(0, 4)), ("test", slice(2, 4))):
        in_folders(tmp_path / name, FILES[rows], CLASSES[rows])
    (tmp_path / "notes").mkdir()
    assert data.image_split_names(tmp_path) == ("train", "val", "test")
    splits = data.read_image_splits(tmp_path, test=tmp_path)
    assert [len(part) for part in splits[:3]] == [6, 4, 2]
    assert splits.origin == splits.evaluation.source == f"{tmp_path}[val]"
    assert splits.test.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="has several splits; choose one of 'train', 'val', 'test'"):
        data.read_images(tmp_path)
    with pytest.raises(ValueError, match="there is no split 'dev'; splits found: 'train', 'val', 'test'"):
        data.read_images(tmp_path, split="dev")
    in_folders(tmp_path / "more", FILES[:2], ["x", "x"])
    assert data.image_split_names(tmp_path) == ("train", "val", "test", "more")
    assert data.read_images(tmp_path, split="more").labels is None
    shutil.rmtree(tmp_path / "more")
    shutil.rmtree(tmp_path / "val")
    shutil.rmtree(tmp_path / "test")
    assert data.read_images(tmp_path).names == ("cat", "dog")  # train alone, since it has folders of classes
    with pytest.raises(ValueError, match="train: has no splits, and split 'x' was asked of it"):
        data.read_images(tmp_path / "train", split="x")
    columns = data.ImageColumns(label="kind")
    with pytest.raises(ValueError, match="train: has no columns, and 'kind' was given as the one of the label"):
        data.read_images(tmp_path / "train", columns=columns)
    with pytest.raises(ValueError, match="sklearn:digits: has no columns, and 'row' was given as the one of the id"):
        data.read_images("sklearn:digits", columns=data.ImageColumns(id="row"))


def test_train_may_be_a_class(tmp_path):
    in_folders(tmp_path / "traffic", classes=["train", "bus", "train", "bus", "train", "bus"])
    assert data.image_split_names(tmp_path / "traffic") == ()
    assert data.read_images(tmp_path / "traffic").names == ("bus", "train")


def test_class_that_training_did_not_have(tmp_path):
    in_folders(tmp_path / "a")
    in_folders(tmp_path / "b", FILES[:2], ["cat", "fox"])
    for on_bad_row in ("error", "skip"):
        with pytest.raises(
            ValueError, match=r"b, row 2, column 'folder': label 'fox' is not known; known are: cat, do"
        ):
            data.read_image_splits(tmp_path / "a", tmp_path / "b", on_bad_row=on_bad_row)


@pytest.fixture
def table(tmp_path):
    """A function: suffix, what its lines are -> a table beside a folder `x` with six images, 0.png to 5.png."""
    in_folders(tmp_path / "set", classes=["x"] * 6)

    def make(suffix, content):
        path = tmp_path / "set" / f"rows{suffix}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def test_tables_of_paths(table, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [(f"x/{number}.png", CLASSES[number]) for number in range(6)]
    found = {
        suffix: data.read_images(table(suffix, content))
        for suffix, content in {
            ".csv": "image,label\n" + "".join(f"{path},{name}\n" for path, name in rows),
            ".tsv": "filename\tclass\n" + "".join(f"{path}\t{name}\n" for path, name in rows),
            ".jsonl": "".join(json.dumps({"file_name": path, "label": name}) + "\n" for path, name in rows),
        }.items()
    }
    paths = pyarrow.table({"path": [path for path, _ in rows], "label": [name for _, name in rows]})
    pyarrow.parquet.write_table(paths, tmp_path / "set" / "p.parquet")
    held = pyarrow.table({"img": pyarrow.array(FILES, pyarrow.binary()), "label": CLASSES})
    pyarrow.parquet.write_table(held, tmp_path / "bytes.parquet")
    found["parquet"] = data.read_images(tmp_path / "set" / "p.parquet")
    found["bytes"] = data.read_images(tmp_path / "bytes.parquet")
    for images in found.values():
        np.testing.assert_array_equal(images.pixels, PIXELS)
        assert (images.labels.tolist(), images.names) == ([0, 1, 0, 1, 0, 1], ("cat", "dog"))
    assert len({images.fingerprint for images in found.values()}) == 1
    assert found[".csv"].keys == [path for path, _ in rows]
    assert found[".csv"].rows.tolist() == [2, 3, 4, 5, 6, 7]  # as an editor counts


def test_absolute_and_parent_paths(table, tmp_path):
    (tmp_path / "up.png").write_bytes(FILES[3])
    path = table(".csv", f"image,id\n../up.png,7\n{tmp_path}/set/x/2.png,8\n")
    images = data.read_images(path, columns=data.ImageColumns(id="id"))
    np.testing.assert_array_equal(images.pixels, PIXELS[[3, 2]])
    assert (images.labels, images.keys) == (None, ["7", "8"])


def test_columns(table):
    path = table(".csv", "image,path,label,class\nx/0.png,x/1.png,a,b\nx/1.png,x/1.png,b,a\n")
    with pytest.raises(
        ValueError, match=r"rows\.csv: several columns could be the image \('image', 'path'\); choose one"
    ):
        data.read_images(path)
    with pytest.raises(ValueError, match=r"several columns could be the label \('label', 'class'\)"):
        data.read_images(path, columns=data.ImageColumns("image"))
    chosen = data.ImageColumns("path", "class")
    assert data.read_images(path, columns=chosen).names == ("a", "b")
    assert data.read_images(path, columns=data.ImageColumns("path", "")).labels is None
    with pytest.raises(ValueError, match="there is no column 'file' for the image; columns found: 'image', 'path'"):
        data.read_images(path, columns=data.ImageColumns("file"))
    with pytest.raises(ValueError, match="the label needs a column; columns found"):
        data.read_images(path, columns=data.ImageColumns("path", ""), labelled=True)
    with pytest.raises(ValueError, match="no column could be the image; choose one; columns found: 'a', 'label'"):
        data.read_images(table(".csv", "a,label\nx/0.png,b\n"))
    with pytest.raises(ValueError, match="no column could be the label; choose one; columns found: 'image'"):
        data.read_images(table(".csv", "image\nx/0.png\n"), labelled=True)
    with pytest.raises(ValueError, match="column 'image' appears twice"):
        data.read_images(table(".csv", "image,image\nx/0.png,x/0.png\n"))


def csv(bad: str | bytes) -> bytes:
    """Two good rows (lines 2 and 3), the bad one (line 4), a good one (line 5)."""
    bad = bad.encode() if isinstance(bad, str) else bad
    return b"image,label\nx/0.png,cat\nx/1.png,dog\n" + bad + b"\nx/2.png,cat\n"


ROWS = {
    "missing file": (
        csv("x/9.png,cat"),
        "image",
        "no such file",
        r"set/x/9\.png is not there; paths are taken from the",
    ),
    "a folder": (csv("x,cat"), "image", "no such file", "set/x is no file"),
    "nothing outside": (csv("../../x/0.png,cat"), "image", "no such file", "is not there"),
    "address": (
        csv("https://a.b/c.png,cat"),
        "image",
        "wrong type",
        "is 'https://a.b/c.png', an address; expected the",
    ),
    "no image": (csv(",cat"), "image", "missing value", "has no image"),
    "NUL": (csv(b"x/\x00.png,cat"), "image", "NUL byte", "holds a NUL byte"),
    "latin-1": (csv(b"x/\xe9.png,cat"), "image", "not UTF-8", "is not UTF-8 text .byte 0xe9"),
    "long name": (csv("x" * 5000 + ",cat"), "image", "unreadable file", "cannot be opened"),
    "ragged": (csv("x/0.png"), "label", "ragged row", "has 1 field where the header has 2"),
    "too many fields": (csv("x/0.png,cat,dog"), None, "ragged row", "has 3 fields where the header has 2"),
    "no label": (csv("x/0.png,"), "label", "missing value", "has no label"),
    "real label": (csv("x/0.png,0.5"), "label", "wrong type", "is '0.5', a real number"),
    "unlabelled": (csv("x/0.png,-1"), "label", "unlabelled", "is -1, which marks an unlabelled row"),
    "label in latin-1": (csv(b"x/0.png,\xe9"), "label", "not UTF-8", "byte 0xe9"),
    "text called .png": (csv("bad/text.png,cat"), "image", "not an image", r"bad/text\.png is no image \(PNG, JPEG"),
    "empty file": (csv("bad/empty.png,cat"), "image", "empty file", r"bad/empty\.png is empty \(0 bytes\)"),
    "png cut": (csv("bad/cut.png,cat"), "image", "truncated image", r"bad/cut\.png is cut short"),
    "jpeg cut": (csv("bad/cut.jpg,cat"), "image", "truncated image", r"bad/cut\.jpg is cut short"),
    "giant": (
        csv("bad/giant.png,cat"),
        "image",
        "too large",
        r"bad/giant\.png is 30 x 40 pixels, more than max_pixels=",
    ),
}


@pytest.mark.parametrize("content, column, reason, said", ROWS.values(), ids=ROWS)
def test_bad_rows_of_a_table(table, content, column, reason, said):
    path = table(".csv", content)
    bad = path.parent / "bad"
    bad.mkdir()
    noise = RANDOM.integers(0, 256, (32, 32, 3), np.uint8)
    for name, inside in {
        "text.png": b"hello",
        "empty.png": b"",
        "cut.png": encoded(noise)[:1000],
        "cut.jpg": encoded(noise, "JPEG")[:1000],
        "giant.png": encoded(np.zeros((40, 30), np.uint8)),
    }.items():
        (bad / name).write_bytes(inside)
    place = r"rows\.csv, row 4" + (f", column '{column}'" if column else "")
    with pytest.raises(ValueError, match=f"{place}: .*{said}.*on_bad_row='skip'$") as caught:
        data.read_images(path, max_pixels=1100)
    assert "\n" not in str(caught.value)
    images = data.read_images(path, max_pixels=1100, on_bad_row="skip")
    assert (images.report.rows, images.report.by_reason) == (4, {reason: 1})
    assert images.rows.tolist() == [2, 3, 5]
    np.testing.assert_array_equal(images.pixels, PIXELS[:3])
    assert images.labels.tolist() == [0, 1, 0]


def test_bad_files_of_a_folder(tmp_path):
    root = in_folders(tmp_path / "pets")
    (root / "cat" / "2.png").write_bytes(b"")
    (root / "dog" / "3.png").write_bytes(FILES[3][:50])
    (root / "dog" / os.fsdecode(b"\xff.png")).write_bytes(FILES[0])
    with pytest.raises(ValueError, match=r"pets, row 7: .*\.png': the name is not UTF-8 text .byte 0xff"):
        data.read_images(root)
    (root / "dog" / os.fsdecode(b"\xff.png")).unlink()
    with pytest.raises(ValueError, match=r"pets, row 2: cat/2\.png is empty \(0 bytes\); correct the row, or skip"):
        data.read_images(root)
    for cache in (True, True, False):  # read, read from the cache, and read without
        images = data.read_images(root, on_bad_row="skip", cache=cache)
        assert images.report.by_reason == {"empty file": 1, "truncated image": 1}
        assert images.report.examples[0] == f"{root}, row 2: cat/2.png is empty (0 bytes)"
        np.testing.assert_array_equal(images.pixels, PIXELS[[0, 4, 1, 5]])
    with pytest.raises(ValueError, match=r"cat/2\.png is empty"):  # what was skipped is not forgotten
        data.read_images(root)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"every row was refused; 6 rows, 6 skipped \(6 empty file\); the first: "):
        data.read_images(root, on_bad_row="skip")


SOURCES = {
    "header alone": (".csv", "image,label\n", r"rows\.csv: has a header and no rows"),
    "empty table": (".csv", "", r"rows\.csv: is empty, expected a header and rows"),
    "one class": (".csv", "image,label\nx/0.png,a\nx/1.png,a\n", "every row has label 'a'; a classifier needs two"),
    "an image": (".png", FILES[0], r"rows\.png: is one image; expected a folder of images, a table \(\.csv"),
    "another file": (".xyz", "x", r"rows\.xyz: has suffix '\.xyz'; expected a folder"),
}


@pytest.mark.parametrize("suffix, content, said", SOURCES.values(), ids=SOURCES)
def test_bad_sources(table, suffix, content, said):
    with pytest.raises(ValueError, match=said):
        data.read_images(table(suffix, content), labelled=True)


def test_no_such_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such file or folder"):
        data.read_images(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="data source is int"):
        data.read_images(3)
    with pytest.raises(ValueError, match="on_bad_row is 'ignore'; choose 'error' or 'skip'"):
        data.read_images("sklearn:digits", on_bad_row="ignore")


@pytest.fixture
def data_set(tmp_path):
    paths = in_folders(tmp_path / "files", classes=["x"] * 6) / "x"
    rows = {
        "image": [{"bytes": content, "path": None} for content in FILES[:3]]
        + [{"bytes": None, "path": str(paths / f"{number}.png")} for number in (3, 4, 5)],
        "label": [0, 1, 0, 1, 0, 1],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    return datasets.Dataset.from_dict(rows, features=features)


def test_data_sets(tmp_path, data_set, monkeypatch):
    data_set.save_to_disk(tmp_path / "saved")
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("datasets decoded an image"))
    for source in (data_set, tmp_path / "saved"):
        images = data.read_images(source)
        np.testing.assert_array_equal(images.pixels, PIXELS)
        assert (images.names, images.labels.tolist()) == (("dog", "cat"), [0, 1, 0, 1, 0, 1])
    assert images.keys[:2] == [1, 2]
    data_set.to_parquet(tmp_path / "p.parquet")
    assert data.read_images(tmp_path / "p.parquet").fingerprint == images.fingerprint


def test_hub_name(monkeypatch, data_set):
    asked = []
    found = datasets.DatasetDict(train=data_set, test=data_set.select([4, 1]))

    def load_dataset(*arguments):
        asked.append(arguments)
        return found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = data.read_image_splits("owner/pets", test="owner/pets", fraction=2)
    assert set(asked) == {("owner", "pets")}
    assert [len(part) for part in splits[:3]] == [4, 2, 2]
    assert splits.test.source == "owner/pets[test]"
    np.testing.assert_array_equal(splits.test.pixels, PIXELS[[4, 1]])


BAD_VALUES = {
    "nothing": (None, "missing value", "has no image"),
    "text": ({"bytes": b"text", "path": None}, "not an image", "the image of row 2 is no image"),
    "named": ({"bytes": FILES[0][:60], "path": "a.png"}, "truncated image", r"a\.png is cut short"),
    "address": ({"bytes": None, "path": "hf://x/y.png"}, "wrong type", "an address"),
}


@pytest.mark.parametrize("value, reason, said", BAD_VALUES.values(), ids=BAD_VALUES)
def test_bad_rows_of_a_data_set(data_set, value, reason, said):
    features = datasets.Features({"image": datasets.Image()})
    rows = [{"bytes": FILES[0], "path": None}, value]
    source = datasets.Dataset.from_dict({"image": rows}, features=features)
    with pytest.raises(ValueError, match=f"the data set given, row 2, column 'image': .*{said}"):
        data.read_images(source)
    assert data.read_images(source, on_bad_row="skip").report.by_reason == {reason: 1}


def test_numbers_are_no_images(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"image": 3}\n')
    with pytest.raises(
        ValueError, match=r"row 1, column 'image': is 3 \(int\), expected the path or the bytes of an im"
    ):
        data.read_images(path)


def test_sizes_and_channels(tmp_path):
    root = tmp_path / "mixed"
    root.mkdir()
    grey = PIXELS[0, ..., 0]
    for number in range(3):
        (root / f"{number}.png").write_bytes(encoded(grey))
    assert data.read_images(root).channels == 1
    (root / "3.png").write_bytes(FILES[1])
    (root / "4.png").write_bytes(encoded(grey))
    expected = np.stack([np.repeat(grey[..., None], 3, -1)] * 3 + [PIXELS[1], np.repeat(grey[..., None], 3, -1)])
    for cache in (True, False):  # colour came after grey
        np.testing.assert_array_equal(data.read_images(root, cache=cache).pixels, expected)
    np.testing.assert_array_equal(data.read_images(root, channels=1).pixels[0, ..., 0], grey)
    (root / "5.png").write_bytes(encoded(PIXELS[2, :5]))
    with pytest.raises(ValueError, match=r"mixed: 0\.png is 8 x 8 pixels and 5\.png 8 x 5; give the size that all are"):
        data.read_images(root)
    images = data.read_images(root, size=(4, 6))
    assert images.pixels.shape == (6, 4, 6, 3)
    expected = Image.fromarray(PIXELS[1]).resize((6, 4), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(data.read_images(root, size=(4, 6), fit="squash").pixels[3], expected)


def test_grey_made_colour_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(image_store, "_CHUNK", 50)  # not a multiple of an image
    files = [encoded(pixels[..., 0]) for pixels in PIXELS[:5]] + [FILES[5]]
    images = data.read_images(in_folders(tmp_path / "x", files, ["x"] * 6))
    np.testing.assert_array_equal(images.pixels[:5], np.repeat(PIXELS[:5, ..., :1], 3, -1))
    np.testing.assert_array_equal(images.pixels[5], PIXELS[5])


class TestCache:
    @pytest.fixture
    def root(self, tmp_path):
        return in_folders(tmp_path / "pets")

    @pytest.fixture
    def decoded(self, monkeypatch):
        """How many files were decoded so far, as a list with one number."""
        count = [0]
        own = images_module.decode_all

        def counting(*arguments, **options):
            for item in own(*arguments, **options):
                count[0] += 1
                yield item

        monkeypatch.setattr(images_module, "decode_all", counting)
        return count

    def test_what_was_decoded_is_not_decoded_again(self, root, decoded, tmp_path):
        first = data.read_images(root)
        again = data.read_images(root)
        assert decoded == [6]
        assert isinstance(again.store.pixels.base, np.memmap)
        assert not again.store.pixels.flags.writeable
        np.testing.assert_array_equal(again.pixels, first.pixels)
        shutil.copytree(root, tmp_path / "elsewhere")  # the same bytes with other names and times
        assert data.read_images(tmp_path / "elsewhere").fingerprint == first.fingerprint
        data.read_images(root, labelled=False)
        assert decoded == [6]
        data.read_images(root, size=4)
        assert decoded == [12]
        assert data.read_images(root, cache=False).fingerprint == first.fingerprint
        assert decoded == [18]

    def test_a_changed_file_is_decoded(self, root, decoded):
        data.read_images(root)
        path = root / "cat" / "0.png"
        facts = path.stat()
        other = PIXELS[0].copy()
        other[0, 0] ^= 255
        content = encoded(other)
        if len(content) < len(FILES[0]):  # as long as it was, which no reader minds
            content += bytes(len(FILES[0]) - len(content))
        path.write_bytes(content)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        np.testing.assert_array_equal(data.read_images(root).pixels[0], other)
        assert decoded == [12]

    @pytest.mark.parametrize("damage", ["flip", "cut", "manifest", "digests"])
    def test_a_damaged_entry_is_made_anew(self, root, decoded, own_cache, damage):
        data.read_images(root)
        (folder,) = (path for path in (own_cache / "images").iterdir() if path.is_dir())
        if damage == "manifest":
            (folder / MANIFEST).write_text("{")
        elif damage == "digests":
            (folder / "digests.bin").unlink()
        else:
            pixels = (folder / "pixels.bin").read_bytes()
            (folder / "pixels.bin").write_bytes(pixels[:-1] + bytes([pixels[-1] ^ 1] if damage == "flip" else []))
        np.testing.assert_array_equal(data.read_images(root).pixels, PIXELS[BY_CLASS])
        assert decoded == [12]

    def test_nothing_is_left_of_a_failure(self, root, own_cache):
        (root / "dog" / "5.png").write_bytes(b"x")
        with pytest.raises(ValueError, match=r"dog/5\.png is no image"):
            data.read_images(root)
        assert [path.name for path in (own_cache / "images").iterdir() if path.is_dir()] == []

    def test_files_that_change_while_they_are_read(self, root, monkeypatch):
        own = images_module.decode_all

        def meddling(*arguments, **options):
            yield from own(*arguments, **options)
            (root / "cat" / "0.png").write_bytes(FILES[1] + b"\0")

        monkeypatch.setattr(images_module, "decode_all", meddling)
        with pytest.raises(ValueError, match="pets: files changed while they were read; read them again"):
            data.read_images(root)

    def test_a_folder_that_cannot_be_written(self, root, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("JAXPTFT_CACHE", str(tmp_path / "file"))
        with pytest.raises(
            OSError, match=r"images cannot be written \(.*\); JAXPTFT_CACHE names another, and cache=Fal"
        ):
            data.read_images(root)
        assert len(data.read_images(root, cache=False)) == 6


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    found = load_digits()
    images = data.read_images("sklearn:digits")
    np.testing.assert_array_equal(np.round(images.pixels[..., 0] * (16 / 255)), found.images)
    np.testing.assert_array_equal(images.labels, found.target)
    assert (images.names, images.size, images.pixels.max()) == (tuple("0123456789"), (8, 8), 255)
    train, test = (data.read_images("sklearn:digits", split=split) for split in ("train", "test"))
    np.testing.assert_array_equal(np.concatenate([train.pixels, test.pixels]), images.pixels)
    assert len(test) == 360
    with pytest.raises(ValueError, match="sklearn:digits: there is no split 'dev'; splits found: 'train', 'test'"):
        data.read_images("sklearn:digits", split="dev")
    larger = data.read_images("sklearn:digits", split="test", size=16, channels=3)
    expected = Image.fromarray(test.pixels[5, ..., 0]).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(larger.pixels[5], np.repeat(np.asarray(expected)[..., None], 3, -1))


def test_splits_keep_shape_classes_and_equal_images_together():
    splits = data.read_image_splits("sklearn:digits", test="sklearn:digits", fraction=0.2, seed=1)
    rest, held = splits.train, splits.evaluation
    assert (len(rest), len(held), len(splits.test)) == (1150, 287, 360)  # 1437 rows, a fifth of them 287.4
    assert splits.origin == "287 images cut from sklearn:digits[train], seed 1"
    assert rest.names == held.names == splits.test.names
    assert not set(rest.rows.tolist()) & set(held.rows.tolist())
    shares = np.bincount(held.labels) / np.bincount(np.concatenate([rest.labels, held.labels]))
    assert np.abs(shares - 0.2).max() < 0.01  # of each class alike
    repeated = data.make_images(np.concatenate([PIXELS, PIXELS]))
    left, right = data.split_images(repeated, 4, seed=0)
    assert {row % 6 for row in left.rows - 1} | {row % 6 for row in right.rows - 1} == set(range(6))
    assert not {row % 6 for row in left.rows - 1} & {row % 6 for row in right.rows - 1}
    other = data.read_image_splits("sklearn:digits", fraction=0.2, seed=2)
    assert other.evaluation.rows.tolist() != held.rows.tolist()


def test_select_and_fingerprints():
    images = data.make_images(PIXELS, CLASSES)
    chosen = images.select(np.array([5, 0, 0]))
    np.testing.assert_array_equal(chosen.pixels, PIXELS[[5, 0, 0]])
    assert (chosen.labels.tolist(), chosen.rows.tolist()) == ([1, 0, 0], [6, 1, 1])
    np.testing.assert_array_equal(chosen.take(np.array([1])), PIXELS[:1])
    again = data.make_images(PIXELS[[5, 0, 0]], ["dog", "cat", "cat"])
    assert chosen.fingerprint == again.fingerprint
    kinds = [images, chosen, data.make_images(PIXELS), data.make_images(PIXELS, CLASSES[::-1])]
    kinds += [data.make_images(PIXELS, CLASSES, names=("dog", "cat")), data.make_images(PIXELS.reshape(6, 4, 16, 3))]
    assert len({kind.fingerprint for kind in kinds}) == len(kinds)
    assert images.content == kinds[2].content != chosen.content


@pytest.mark.parametrize(
    "pixels, labels, said",
    [
        (
            PIXELS.astype(np.float32),
            None,
            r"pixels are float32 of shape \(6, 8, 8, 3\), expected uint8 \(0 to 255\) of",
        ),
        (PIXELS[..., :2], None, r"of shape \(6, 8, 8, 2\), expected uint8"),
        (PIXELS[0, 0], None, r"of shape \(8, 3\), expected uint8"),
        (PIXELS[:0], None, r"of shape \(0, 8, 8, 3\), expected"),
        (PIXELS, ["a"], "the images given: 1 labels for 6 images; expected as many"),
        (PIXELS, [1, 2, 1, 2, 1, -1], "the images given, row 6, column 'label': is -1, which marks an unlabelled row"),
    ],
)
def test_bad_images_in_memory(pixels, labels, said):
    with pytest.raises(ValueError, match=said):
        data.make_images(pixels, labels)
