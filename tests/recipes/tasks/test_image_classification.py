"""Fine-tuning on images from a pre-trained backbone, and what transformers makes of the model."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from jaxptft.recipes import finetune, settings
from jaxptft.recipes.model_source import open_model
from jaxptft.recipes.tasks import image_classification


@pytest.fixture(scope="module")
def tune(fine_tune, digits):
    """A function: (out, model, **changed values) -> a fine-tuning on the digits."""

    def run(out, model, **changes):
        values = {"task": "image_classification", "model": str(model), "train": str(digits), "test": str(digits)}
        return fine_tune(out, **values | {"eval": None, "max_length": 128} | changes)

    return run


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tune, moco):
    out = tmp_path_factory.mktemp("runs") / "tuned"
    return tune(out, moco.out, steps=30, evaluate_every=15, learning_rate=0.02, sampling="balanced")


def torchs(folder, images) -> np.ndarray:
    """transformers' probabilities for PNG files, in the order of their names."""
    files = sorted(images.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file), np.float32) for file in files])[:, None] / 127.5 - 1
    with torch.no_grad():
        model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
        return model(torch.from_numpy(pixels)).logits.double().softmax(-1).numpy()


def test_it_learns_from_the_pre_trained_backbone(tuned, moco):
    assert f"model: resnet from {moco.out}, head fresh" in tuned.said
    assert "classes: 0, 1, 4" in tuned.said
    metrics = tuned.reports["test"].metrics
    assert metrics["classification/accuracy"] > 0.6  # of three classes
    recorded = json.loads((tuned.out / "report.json").read_text())
    assert recorded["test"]["metrics"] == metrics
    assert (sum(recorded["rows"].values()), recorded["rows"]["test"]) == (48 + 18, 18)
    fields = json.loads((tuned.out / "model/config.json").read_text())
    assert fields["id2label"] == {"0": "0", "1": "1", "2": "4"}
    assert (tuned.out / "model/preprocessor_config.json").is_file()


def test_evaluate_and_predict_repeat_the_run_and_torch(tuned, digits, command, tmp_path):
    told = command("evaluate", tuned.out, "--data", digits, "--split", "test", "--out", tmp_path / "e.json")
    assert told.status == 0, told.err
    found = json.loads((tmp_path / "e.json").read_text())["metrics"]
    assert found == pytest.approx(tuned.reports["test"].metrics, abs=1e-6)
    told = command("predict", tuned.out, "--data", digits / "test", "--out", tmp_path / "p.jsonl", "--batch-size", 5)
    assert told.status == 0, told.err
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    files = sorted((digits / "test").glob("*/*.png"))
    assert [line["row"] for line in lines] == list(range(1, 19))
    assert [line["id"] for line in lines] == [f"{file.parent.name}/{file.name}" for file in files]
    expected = torchs(tuned.out / "model", digits / "test")
    np.testing.assert_allclose([list(line["probabilities"].values()) for line in lines], expected, atol=1e-5)
    right = np.mean([line["label"] == file.parent.name for line, file in zip(lines, files, strict=True)])
    assert right == pytest.approx(found["classification/accuracy"])


def test_a_table_carries_its_ids(tuned, digits, command, tmp_path):
    rows = [f"{digits}/test/{digit}/{name},{code}" for digit, name, code in ((4, "12.png", "x7"), (0, "24.png", "x9"))]
    (tmp_path / "rows.csv").write_text("\n".join(["image,code", *rows]) + "\n")
    line = ("predict", tuned.out, "--data", tmp_path / "rows.csv", "--out", tmp_path / "p.jsonl")
    assert command(*line, "--id", "code").status == 0
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["x7", "x9"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moco", "mae"])
def test_a_frozen_backbone_keeps_every_bit(name, request, tune, tmp_path):
    """Running statistics too; of a masked autoencoder the encoder is taken."""
    source = request.getfixturevalue(name)
    run = tune(tmp_path / "run", source.out, freeze="backbone", steps=2, evaluate_every=2)
    before, after = (open_model(out)[1].params["backbone"] for out in (source.out, run.out))
    expected = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(before)}
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(after)}
    common = expected.keys() & found.keys()
    assert expected.keys() - common <= {"['embeddings']['fixed_positions']"}
    for path in common:
        assert np.asarray(found[path]).tobytes() == np.asarray(expected[path]).tobytes(), path
    model = transformers.AutoModelForImageClassification.from_pretrained(run.out / "model")
    assert type(model).__name__ == ("ResNetForImageClassification" if name == "moco" else "ViTForImageClassification")


@pytest.fixture(scope="module")
def read(resnet, digits):
    """A function: changed values of a fine-tuning -> its task, put together."""

    def of(**changes) -> image_classification.ImageClassification:
        values = {"task": "image_classification", "model": str(resnet), "train": str(digits), "out": "x"} | changes
        config, architecture = settings.build(finetune.Config, values), SimpleNamespace(channels=1)
        options = {"devices": 1, "checkpoint_names": None, "say": lambda text: None}
        return image_classification.read(config, folder=resnet, architecture=architecture, **options)

    return of


def test_rare_classes_come_as_often_where_asked(read):
    """Each row is drawn in proportion to 1 over the rows of its class."""
    assert read().batches["train"].weights is None
    task = read(sampling="balanced")
    counts = np.bincount(task.labels["train"])
    assert counts[0] > counts[1]
    weights = np.asarray(task.batches["train"].weights)
    expected = 1 / counts[task.labels["train"]]
    np.testing.assert_allclose(weights / weights.sum(), expected / expected.sum())
    assert task.batches["eval"].weights is None


@pytest.mark.parametrize("value", [{"max_length": 64}, {"length_buckets": 2}, {"tags": {"scheme": "IOB2"}}])
def test_what_only_texts_have_is_refused(read, value):
    (name,) = value
    with pytest.raises(ValueError, match=f"{name} is .*, and image_classification has no use for it; leave it out"):
        read(**value)


def test_classes_are_weighed_as_asked(read):
    counts = np.bincount(read().labels["train"])
    assert read(class_weights="balanced")._weights == pytest.approx((counts.sum() / 3 / counts).tolist())
    assert read(weights_by_class={"4": 2.5})._weights == [1.0, 1.0, 2.5]
    with pytest.raises(ValueError, match="weights_by_class names '7'; expected classes: 0, 1, 4"):
        read(weights_by_class={"7": 2.0})


@pytest.mark.parametrize("views", ["none", "flip", "crop_flip", "resized_crop"])
def test_views_have_the_size_that_the_model_reads(views, read):
    task = read(images={"views": views})
    image = task.batches["train"].batch_at(0)["image"][0]
    plain = np.asarray(task.preprocessing.view(jax.random.key(0), image))
    seen = [np.asarray(task._view(jax.random.key(number), image)) for number in range(4)]
    assert {view.shape for view in seen} == {(8, 8, 1)}
    known = [plain, plain[:, ::-1]]
    same = [any(np.allclose(view, one, atol=1e-6) for one in known[: 1 + (views != "none")]) for view in seen]
    assert all(same) == (views in ("none", "flip"))
    assert all(view.min() >= -1.0 and view.max() <= 1.0 for view in seen)


def test_models_and_tasks_must_fit(refused, encoder, resnet, digits, files, tmp_path):
    line = ("--out", tmp_path / "run", "--devices", 1)
    told = refused("finetune", "--model", encoder, "--task", "image_classification", "--train", digits, *line)
    assert "reads text, and task is image_classification; image_classification needs a model of images" in told
    told = refused("finetune", "--model", resnet, "--train", files.train, *line)
    assert "reads images, and task is classification; choose image_classification" in told
    images = ("finetune", "--model", resnet, "--task", "image_classification", "--train", digits, *line)
    told = refused(*images, "--forgetting.corpus", files.train)
    assert "forgetting reads text, and" in told
    texts = ("finetune", "--model", encoder, "--train", files.train, "--max-length", 16, *line)
    told = refused(*texts, "--images.views", "flip")
    assert "images is views='flip', and classification has no use for it; leave it out" in told
    assert not (tmp_path / "run").exists()


def test_images_of_another_class_are_refused(refused, tuned, digits, tmp_path):
    (tmp_path / "more/7").mkdir(parents=True)
    (tmp_path / "more/0").mkdir()
    for digit in ("0", "7"):
        Image.new("L", (8, 8)).save(tmp_path / f"more/{digit}/1.png")
    assert "'7'" in refused("evaluate", tuned.out, "--data", tmp_path / "more")
