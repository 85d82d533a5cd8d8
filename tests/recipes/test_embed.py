"""The vector of each row, against transformers' own models."""

import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import save_file

from jaxptft import models
from jaxptft.recipes.model_source import open_model


@pytest.fixture
def embed(command, tmp_path):
    """A function: the flags of `jaxptft embed` -> the arrays of its file."""

    def run(model, source, *flags) -> dict[str, np.ndarray]:
        told = command("embed", model, "--data", source, "--out", tmp_path / "found.npz", *flags)
        assert told.status == 0, told.err
        with np.load(tmp_path / "found.npz") as found:
            return dict(found)

    return run


def texts_and_labels(path) -> tuple[list[str], list[str]]:
    rows = [line.rpartition(",") for line in path.read_text().splitlines()[1:]]
    return [row[0] for row in rows], [row[2] for row in rows]


def test_texts_are_torchs_pooled_states(embed, encoder, files):
    texts, labels = texts_and_labels(files.dev)
    model = transformers.AutoModel.from_pretrained(encoder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    with torch.no_grad():
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        out = model(**batch)
        mask = batch["attention_mask"][..., None]
        mean = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
    found = embed(encoder, files.dev)
    np.testing.assert_allclose(found["features"], out.pooler_output.numpy(), atol=1e-5)  # what BERT's classifier reads
    assert found["features"].dtype == np.float32
    assert found["names"][found["labels"]].tolist() == labels
    assert found["rows"].tolist() == list(range(2, 26))  # the header is line 1
    found = embed(encoder, files.dev, "--pooling", "mean", "--batch-size", 7, "--overwrite")
    np.testing.assert_allclose(found["features"], mean.numpy(), atol=1e-5)


def test_texts_without_classes_have_none(embed, encoder, tmp_path):
    (tmp_path / "rows.csv").write_text("text\nit was good\nit was bad\n")
    assert embed(encoder, tmp_path / "rows.csv").keys() == {"features", "rows"}


def pictures(folder) -> np.ndarray:
    """All PNG files in the order of their names, from -1 to 1."""
    files = sorted(folder.glob("*/*.png"))
    return np.stack([np.asarray(Image.open(file), np.float32) for file in files])[..., None] / 127.5 - 1


def test_images_are_torchs_vectors(embed, moco, digits):
    found = embed(moco.out, digits, "--split", "test", "--batch-size", 5)
    pixels = torch.from_numpy(pictures(digits / "test").transpose(0, 3, 1, 2))
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(moco.out / "model").eval()
        expected = theirs(pixels).pooler_output.flatten(1).numpy()
    np.testing.assert_allclose(found["features"], expected, atol=1e-4)
    assert found["labels"].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert found["names"].tolist() == ["0", "1", "4"]
    np.testing.assert_array_equal(embed(moco.out, digits, "--overwrite")["features"].shape, expected.shape)  # test too


def test_a_masked_autoencoder_sees_all_patches(embed, mae, digits):
    found = embed(mae.out, digits / "test")
    _, checkpoint = open_model(mae.out)
    network = models.pooled(checkpoint.config, models.usual_pooling(checkpoint.config))
    expected = network.apply(checkpoint.params, {"image": pictures(digits / "test")})
    np.testing.assert_allclose(found["features"], expected, atol=1e-5)


def test_what_is_refused(refused, encoder, moco, digits, files, tmp_path):
    line = ("embed", encoder, "--data", files.dev, "--out")
    assert "give it a name that ends in .npz" in refused(*line, tmp_path / "found.csv")
    (tmp_path / "found.npz").write_text("mine")
    assert "found.npz exists; choose another --out, or pass --overwrite" in refused(*line, tmp_path / "found.npz")
    assert (tmp_path / "found.npz").read_text() == "mine"
    images = ("embed", moco.out, "--data", digits, "--out", tmp_path / "other.npz")
    assert "use pooling 'mean'" in refused(*images, "--pooling", "first")
    assert "'third'" in refused(*images, "--split", "third")
    assert "reads images; leave it out" in refused(*images, "--max-length", 64)
    one_split = ("embed", moco.out, "--data", digits / "test", "--out", tmp_path / "other.npz", "--split", "test")
    assert "the images are one split: leave it out" in refused(*one_split)
    assert not (tmp_path / "other.npz").exists()


def test_a_model_that_gives_nan_is_told_with_the_row(command, moco, digits, tmp_path, tensors_of):
    shutil.copytree(moco.out / "model", tmp_path / "model")
    tensors = tensors_of(tmp_path / "model")
    name = next(name for name in tensors if name.endswith("normalization.bias"))
    save_file(tensors | {name: tensors[name] * np.nan}, tmp_path / "model/model.safetensors")
    told = command("embed", tmp_path / "model", "--data", digits / "test", "--out", tmp_path / "found.npz")
    assert told.status == 2
    assert "row 1: the model gives NaN or infinity; its weights are broken" in told.err
    assert not (tmp_path / "found.npz").exists()
