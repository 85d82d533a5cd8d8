"""Probes of a model's features, against the same measures of what `embed` writes."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxptft.recipes import embed, probe, probing, settings


@pytest.fixture(scope="module")
def features_of(tmp_path_factory):
    """A function: what a model's backbone makes of rows, as `embed` writes it."""

    def of(model, source, **values) -> probing.Features:
        out = tmp_path_factory.mktemp("features") / "found.npz"
        embed.run(settings.build(embed.Config, {"model": str(model), "data": str(source), "out": str(out)} | values))
        with np.load(out) as found:
            return probing.Features(found["features"], found["labels"])

    return of


@pytest.fixture(scope="module")
def images(tmp_path_factory, moco, digits, quickly):
    out = tmp_path_factory.mktemp("probes") / "images"
    values = {"baselines": ["random", "pixels"], "labels_a_class": [2, 12], "seeds": 2, "neighbours": 5}
    config = settings.build(probe.Config, {"model": str(moco.out), "train": str(digits), "out": str(out)} | values)
    with quickly():
        return config, probe.run(config)


def test_images_are_judged_by_their_features(images, features_of, moco, digits):
    _, result = images
    pair = [features_of(moco.out, digits, split=split) for split in ("train", "test")]
    assert result.linear["model"] == [probing.linear_probe(*pair).accuracy]
    assert result.neighbours["model"] == [probing.nearest_neighbours(*pair, k=5)]
    few = [probing.linear_probe(probing.draw(pair[0], 2, seed), pair[1], seed=seed).accuracy for seed in (0, 1)]
    assert result.curve["model"][2] == few


def test_and_so_are_pixels_and_models_that_learnt_nothing(images, digits):
    """Pixels are those of the files, read by Pillow."""
    _, result = images
    sets = []
    for split in ("train", "test"):
        files = sorted((digits / split).glob("*/*.png"))
        labels = [["0", "1", "4"].index(file.parent.name) for file in files]
        pixels = np.stack([np.asarray(Image.open(file), np.float32).ravel() / 255 for file in files])
        sets.append(probing.Features(pixels, np.array(labels)))
    assert result.linear["pixels"] == [probing.linear_probe(*sets).accuracy]
    assert result.neighbours["pixels"] == [probing.nearest_neighbours(*sets, k=5)]
    assert [len(result.linear[name]) for name in ("model", "random", "pixels")] == [1, 2, 1]
    assert {name: list(points) for name, points in result.curve.items()} == {key: [2, 12] for key in result.linear}


def test_what_is_kept(images):
    config, result = images
    report = json.loads((config.out / "report.json").read_text())
    assert report["rows"] == {"train": 48, "test": 18}
    assert (report["linear"], report["neighbours"]) == (result.linear, result.neighbours)
    assert report["curve"]["pixels"]["2"] == result.curve["pixels"][2]
    with Image.open(config.out / "curve.png") as picture:
        picture.load()


def test_texts_too(command, features_of, encoder, files, tmp_path):
    line = ("--train", files.train, "--test", files.test, "--seeds", 1, "--rows", 40, "--out", tmp_path / "probe")
    told = command("probe", encoder, *line)
    assert told.status == 0, told.err
    report = json.loads((tmp_path / "probe/report.json").read_text())
    train, test = features_of(encoder, files.train), features_of(encoder, files.test)
    chosen = np.linspace(0, 63, 40).round().astype(int)  # evenly from all 64
    pair = probing.Features(train.vectors[chosen], train.labels[chosen]), test
    assert report["linear"]["model"] == [probing.linear_probe(*pair).accuracy]
    assert report["rows"] == {"train": 40, "test": 30}
    assert len(report["linear"]["random"]) == 1
    assert not (tmp_path / "probe/curve.png").exists()


def test_what_is_refused(refused, images, encoder, moco, digits, files):
    config, _ = images
    assert "holds a report; choose another --out" in refused("probe", moco.out, "--train", digits, "--out", config.out)
    assert "has no split to test on; give --test" in refused("probe", encoder, "--train", files.train)
    told = refused("probe", encoder, "--train", files.train, "--test", files.test, "--baselines", "pixels")
    assert "baselines asks for pixels, and" in told
    told = refused("probe", moco.out, "--train", digits, "--labels-a-class", 13, "--seeds", 1)
    assert "class 1 has 12 training rows, and 13 are asked for; ask fewer" in told
    for points in ([2, 1], [0], [3, 3]):
        with pytest.raises(ValueError, match="expected rising numbers of at least 1"):
            settings.build(probe.Config, {"model": "m", "train": "t", "labels_a_class": points})
