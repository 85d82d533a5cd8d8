"""What a folder's preprocessor_config.json says of images, against transformers' own processors."""

import importlib
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxptft import data
from jaxptft.recipes.preprocessing import FILE, Preprocessing, read_preprocessing, usual, write_preprocessing

THREE = SimpleNamespace(channels=3, image_size=16)
VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 10, "width": 8}}
CLIP = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "crop_size": {"height": 8, "width": 8}}
BEIT = {"image_processor_type": "BeitImageProcessor", "do_center_crop": True, "crop_size": {"height": 8, "width": 8}}
CONVNEXT = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 10}, "crop_pct": 0.875}
COLOURS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}


@pytest.fixture
def read(tmp_path):
    """A function: the fields of the file -> what is read of it."""

    def of(fields, architecture=THREE) -> Preprocessing:
        (tmp_path / FILE).write_text(json.dumps(fields))
        return read_preprocessing(tmp_path, architecture)

    return of


def ours(preprocessing: Preprocessing, file) -> np.ndarray:
    """An image file as a model reads it."""
    images = data.read_images(
        str(file.parent),
        size=preprocessing.stored_size,
        channels=preprocessing.channels,
        fit=preprocessing.fit,
        resample=preprocessing.resample,
    )
    return np.asarray(preprocessing.view(jax.random.key(0), images.pixels[0]))


@pytest.mark.parametrize(
    "name, fields",
    [
        ("ViT", VIT | {"resample": 2} | COLOURS),
        ("ViT", VIT | {"resample": 3} | COLOURS),
        ("ViT", VIT | {"resample": 2, "do_normalize": False} | COLOURS),
        ("CLIP", CLIP | {"size": {"shortest_edge": 8}, "resample": 3} | COLOURS),
        ("CLIP", CLIP | {"size": {"shortest_edge": 12}, "resample": 3} | COLOURS),
        ("CLIP", CLIP | {"size": 12, "crop_size": 8, "resample": 3} | COLOURS),
        ("Beit", BEIT | {"size": {"height": 12, "width": 12}, "resample": 3} | COLOURS),
        ("ConvNext", CONVNEXT | {"resample": 3} | COLOURS),
        ("ConvNext", CONVNEXT | {"size": 10, "resample": 2} | COLOURS),  # as microsoft/resnet-50 has it
        ("ConvNext", CONVNEXT | {"size": {"shortest_edge": 384}, "resample": 2} | COLOURS),
    ],
    ids=["vit", "bicubic", "plain", "clip", "larger", "number", "beit", "convnext", "resnet", "squashed"],
)
@pytest.mark.parametrize("shape", [(20, 20), (20, 28)], ids=["square", "wide"])
def test_a_file_becomes_what_transformers_makes_of_it(name, fields, shape, read, tmp_path):
    module = importlib.import_module(f"transformers.models.{name.lower()}.image_processing_pil_{name.lower()}")
    theirs = getattr(module, f"{name}ImageProcessorPil").from_dict(fields)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8))
    image, preprocessing = noise.resize(shape[::-1], Image.Resampling.BICUBIC), read(fields)
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images/one.png")
    expected = theirs(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    found = ours(preprocessing, tmp_path / "images/one.png")
    assert found.shape == expected.shape
    if shape == (20, 20) or preprocessing.fit == "squash":
        np.testing.assert_allclose(found, expected, atol=0.021)  # a byte at most is rounded the other way: 1/255 / .2
        assert np.mean(np.abs(found - expected) > 1e-5) < 0.02
    else:  # we cut before we resize: places lie apart by a part of a pixel
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(
    "preprocessing",
    [
        usual((10, 8), 1),
        usual((8, 8), 3)._replace(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), resample="bicubic"),
        usual((8, 8), 3)._replace(fit="crop"),
        usual((8, 12), 1)._replace(fit="crop", margin=1.25, resample="bicubic"),
        usual((8, 8), 3)._replace(margin=1.5),
    ],
    ids=["grey", "colours", "crop", "margin", "squash"],
)
def test_what_is_written_is_read_again(preprocessing, tmp_path):
    write_preprocessing(tmp_path, preprocessing)
    again = read_preprocessing(tmp_path, SimpleNamespace(channels=preprocessing.channels, image_size=99))
    assert again == preprocessing
    assert json.loads((tmp_path / FILE).read_text())["rescale_factor"] == 1 / 255


def test_without_a_file_it_is_as_vit_has_it(tmp_path):
    """transformers' defaults of ViT: mean and deviation .5, so -1 to 1."""
    found = read_preprocessing(tmp_path, SimpleNamespace(channels=1, image_size=(4, 6)))
    assert found == Preprocessing((4, 6), 1, (0.5,), (0.5,))
    assert read_preprocessing(tmp_path, SimpleNamespace(channels=3)).size == (224, 224)
    ends = np.array([0, 255], np.uint8).reshape(1, 2, 1)
    np.testing.assert_allclose(found.view(jax.random.key(0), jnp.asarray(ends)).ravel(), [-1, 1])


def test_one_number_stands_for_all_channels(read):
    found = read(VIT | {"image_mean": 0.25, "image_std": [0.5]})
    assert (found.mean, found.std, found.size) == ((0.25,) * 3, (0.5,) * 3, (10, 8))


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"do_rescale": False}, "rescale_factor is not 1/255"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is not 1/255"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 numbers, and the model reads 3 channels; give as many"),
        ({"resample": 0}, r"resample is 0; expected 2 \(bilinear\) or 3 \(bicubic\); mend the file"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_refused_by_its_name(fields, expected, read):
    with pytest.raises(ValueError, match=f"preprocessor_config.json: {expected}"):
        read(VIT | fields)
