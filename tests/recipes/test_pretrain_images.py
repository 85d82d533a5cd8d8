"""Pre-training on images: what is left in the folder, going on after a stop, and what is refused."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import transformers
from PIL import Image

from jaxptft import data, models, train
from jaxptft.objectives import Context
from jaxptft.recipes import pretrain_images as recipe
from jaxptft.recipes import settings
from jaxptft.recipes.image_objectives import from_nothing, objective_of, preprocessing_for, views_of
from jaxptft.recipes.model_source import open_model
from jaxptft.recipes.pretrain_images_run import PretrainImagesRun

SMALL = {"backbone": "conv", "shape": {"widths": (4, 8)}, "code": {"size": 6}}


@pytest.fixture(scope="module")
def vae(tmp_path_factory, pretrain_images):
    return pretrain_images(tmp_path_factory.mktemp("runs") / "vae", objective="vae", **SMALL)


@pytest.fixture(scope="module")
def gan(tmp_path_factory, pretrain_images):
    return pretrain_images(tmp_path_factory.mktemp("runs") / "gan", objective="gan", **SMALL)


@pytest.fixture(scope="module")
def beit(tmp_path_factory, pretrain_images):
    values = {
        "objective": "beit",
        "shape": {"patch_size": 2, "layers": 1, "width": 8},
        "masked": {"tokens": 5, "tokenizer_steps": 4},
    }
    return pretrain_images(tmp_path_factory.mktemp("runs") / "beit", **values)


PICTURES = {
    "moco": {"features", "filters", "views"},
    "mae": {"features", "filters", "reconstructions"},
    "beit": {"features", "filters", "words"},
    "vae": {"features", "filters", "reconstructions", "interpolations", "samples"},
    "gan": {"features", "filters", "interpolations", "samples"},
}
HEADS = {
    "moco": set(),
    "mae": {"decoder"},
    "beit": {"mim"},
    "vae": {"decoder", "latent_mean", "latent_log_variance"},
    "gan": {"generator", "discriminator"},
}


SLOW = ("gan", "vae")  # which no other test here has trained already


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in PICTURES]
)
def test_a_folder_is_left(name, request):
    run = request.getfixturevalue(name)
    drawn = [*(run.out / "pictures").iterdir()]
    assert "was not drawn" not in run.said
    assert {path.stem for path in drawn} == PICTURES[name], run.said
    for path in drawn:
        with Image.open(path) as picture:
            picture.load()
            assert np.ptp(np.asarray(picture.convert("L"))) > 100, path  # something is drawn
    report = json.loads((run.out / "report.json").read_text())
    # 48 images, of which a tenth of each class is held out.
    assert (report["steps"], sum(report["rows"].values()), report["metrics"]) == (6, 48, run.metrics)
    losses = {metric: value for metric, value in run.metrics.items() if metric.endswith("/loss")}
    total = losses.pop("pretraining/loss")
    assert total == pytest.approx(sum(losses.values()))
    _, checkpoint = open_model(run.out)
    assert set(checkpoint.params) == {"backbone", *HEADS[name]}
    assert (run.out / "model/preprocessor_config.json").is_file()


def test_the_last_model_of_a_gan_is_kept(gan):
    assert gan.best_step == 6


def test_neighbours_choose_where_asked(moco, lines_of):
    found = {line["step"]: line["pretraining/neighbours"] for line in lines_of(moco.out, "evaluation")}
    assert found.keys() == {3, 6}
    assert moco.best_step == max(found, key=lambda step: (found[step], -step))


def test_the_statistics_of_the_batches_are_saved(moco, resnet, tensors_of):
    """Those of the imported model, renewed; transformers reads them."""
    before, after = tensors_of(resnet), tensors_of(moco.out / "model")
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name for name in before if "running" in name} <= moved
    _, checkpoint = open_model(moco.out)
    pixels = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    found = models.pooled(checkpoint.config).apply(checkpoint.params, {"image": pixels})
    theirs = transformers.AutoModel.from_pretrained(moco.out / "model").eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).pooler_output.flatten(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def arrays_of(out) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, as Orbax gives it."""
    (last,) = out.glob("checkpoints/step_*")
    tree = ocp.PyTreeCheckpointer().restore(last / "arrays")
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


RUNS = ["moco", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mae", "beit", "vae", "gan"))]
HELD = {  # beside Adam's moments
    "moco": ("queue", "running_mean", "target"),
    "mae": (),
    "beit": (),
    "vae": (),
    "gan": ("generator", "discriminator"),
}


@pytest.mark.parametrize("name", RUNS)
def test_stopped_and_resumed_it_ends_with_the_same_bits(name, request, pretrain_images, tmp_path, monkeypatch):
    """Moving average, queue and statistics of batches included."""
    whole, out = request.getfixturevalue(name), tmp_path / "run"
    values = whole.config.model_dump(exclude_unset=True) | {"out": str(out), "pictures": False}
    batch_at = data.ImageBatches.batch_at

    def stops(batches, step):
        if batches.shuffle and step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_at(batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(data.ImageBatches, "batch_at", stops)
        with pytest.raises(train.Stopped, match="stopped by SIGTERM"):
            pretrain_images(**values)
    assert not (out / "model").exists()
    again = pretrain_images(**values, resume=True)
    assert (again.metrics, again.best_step) == (whole.metrics, whole.best_step)
    for file in ("metrics.jsonl", "model/model.safetensors", "model/config.json", "report.json"):
        assert (out / file).read_bytes() == (whole.out / file).read_bytes(), file
    expected, found = arrays_of(whole.out), arrays_of(out)
    assert found.keys() == expected.keys()
    held = " ".join(found)
    assert all(word in held for word in ("mu", *HELD[name])), held
    for path, array in expected.items():
        assert found[path].tobytes() == array.tobytes(), path


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_devices_learn_what_one_learns(name, request, pretrain_images, tmp_path, lines_of, tensors_of):
    """What is drawn goes by the image, and statistics and queue are those of the whole batch."""
    whole = request.getfixturevalue(name)
    values = whole.config.model_dump(exclude_unset=True) | {"out": str(tmp_path / "run"), "pictures": False}
    values.pop("devices")
    two = pretrain_images(**values, devices=2)
    for kind in ("train", "evaluation"):
        one, other = ([dict(line) for line in lines_of(run.out, kind)] for run in (whole, two))
        assert [line["step"] for line in other] == [line["step"] for line in one]
        for expected, found in zip(one, other, strict=True):
            assert found.keys() == expected.keys()
            assert expected.pop("kind") == found.pop("kind")
            for metric in expected:
                assert found[metric] == pytest.approx(expected[metric], rel=2e-3, abs=2e-4), metric
    before, after = tensors_of(whole.out / "model"), tensors_of(two.out / "model")
    for tensor, expected in before.items():
        if "num_batches" not in tensor:
            # A rate of .003 lets Adam move no element by more than .02 in six steps, whatever its gradient.
            np.testing.assert_allclose(after[tensor], expected, atol=4e-3, err_msg=tensor)


def test_other_images_on_resume_are_refused(gan, digits, tmp_path, command):
    shutil.copytree(gan.out, tmp_path / "run")
    shutil.copytree(digits, tmp_path / "images")
    Image.new("L", (8, 8)).save(tmp_path / "images/train/0/more.png")
    told = command("pretrain", "images", "--resume", "--out", tmp_path / "run", "--data", tmp_path / "images")
    assert told.status == 2
    assert "data is" in told.err or "another training data" in told.err


def config(**values) -> recipe.Config:
    return settings.build(recipe.Config, {"data": "x", "out": "y"} | values)


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"model": "m", "backbone": "vit"}, "backbone is the checkpoint's own; leave it out"),
        ({"model": "m", "shape": {"width": 8}}, "shape is the checkpoint's own"),
        ({"freeze": "backbone"}, "freeze keeps what was imported, and nothing was"),
        ({"bitfit": True}, "bitfit keeps what was imported"),
        ({"objective": "mae", "projection": {"hidden": 8}}, "projection is for simclr, moco, moco_v3, byol"),
        ({"objective": "vae", "contrast": {"queue": 8}}, "contrast is for simclr"),
        ({"masked": {"ratio": 0.5}}, "masked is for mae and beit"),
        ({"code": {"size": 8}}, "code is for autoencoder, denoising, sparse, vae, gan"),
        (
            {"objective": "gan", "views": {"mirrored": False}},
            "views do not go with gan, which draws",
        ),
        ({"objective": "mae", "backbone": "conv"}, "mae hides patches, so its backbone is vit; got conv"),
        (
            {"objective": "vae", "backbone": "vit"},
            "vae has a backbone of conv or mlp, whose mirror .* got vit",
        ),
        ({"objective": "gan", "monitor": "loss"}, "the losses of a gan do not say which model is best"),
        ({"objective": "byol", "contrast": {"queue": 8}}, "contrast.queue is for moco, and objective is byol; leave"),
        ({"contrast": {"decay": 0.5}}, "contrast.decay is for moco, moco_v3, byol, and objective is simclr"),
        ({"objective": "byol", "contrast": {"temperature": 0.5}}, "contrast.temperature is for simclr, moco, moco_v3,"),
        ({"objective": "mae", "masked": {"tokens": 8}}, "masked.tokens is for beit, and objective is mae"),
        ({"objective": "vae", "code": {"noise": "gaussian"}}, "code.noise is for denoising, and objective is vae"),
        ({"objective": "gan", "code": {"beta": 2.0}}, "code.beta is for vae, and objective is gan"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_values_that_would_be_ignored_are_refused(values, expected):
    with pytest.raises(ValueError, match=expected):
        config(**values)


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"objective": "rotation", "backbone": "vit", "shape": {"stem": "cifar"}}, "shape.stem is not for vit"),
        (
            {"backbone": "resnet18", "shape": {"patch_size": 2}},
            "shape.patch_size is not for resnet18, which takes",
        ),
        ({"objective": "autoencoder", "shape": {"features": 8}}, "under autoencoder the features are the code"),
        ({"objective": "mae", "shape": {"patch_size": 1}}, "a patch of one number has nothing to normalise"),
    ],
    ids=["stem", "patch", "features", "mae"],
)
def test_shapes_that_do_not_fit(values, expected):
    with pytest.raises(ValueError, match=expected):
        from_nothing(config(**values), (8, 8), 1)


@pytest.mark.parametrize(
    "size, patch", [((224, 224), 16), ((28, 28), 4), ((32, 32), 4), ((8, 8), 2), ((8, 12), 2)], ids=str
)
def test_patches_divide_the_image(size, patch):
    made = from_nothing(config(objective="simclr", backbone="vit"), size, 3)
    assert made.config.patch_size == patch


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"kind": "none", "smallest": 0.5}, "views.smallest does not go with views of kind none"),
        ({"kind": "moco_v2", "mirrored": False}, "views.mirrored does not go with views of kind moco_v2"),
        ({"kind": "crop_flip", "strength": 0.5}, "views.strength does not go with views of kind crop_flip"),
    ],
    ids=["none", "mirrored", "strength"],
)
def test_views_that_do_not_fit(values, expected):
    asked = config(views=values)
    with pytest.raises(ValueError, match=expected):
        views_of(asked, preprocessing_for(asked, (8, 8), 1))


def position_objective(size, **shape):
    asked = config(objective="patch_position", **shape)
    architecture = from_nothing(asked, size, 1).config
    return objective_of(asked, architecture, preprocessing_for(asked, size, 1), steps=1)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({"backbone": "resnet18", "shape": {"widths": (4, 4, 4, 4)}}, marks=pytest.mark.slow),
        {"backbone": "vit", "shape": {"patch_size": 4, "layers": 1, "width": 8}},  # 6 pixels are no whole patches
    ],
    ids=["resnet", "vit"],
)
def test_parts_of_an_image_are_shown_to_what_reads_them(shape):
    objective = position_objective((28, 28), **shape)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), np.uint8),
        "ids": np.arange(2),
        "valid": np.ones(2, bool),
    }
    key = jax.random.key(0)
    params = jax.jit(objective.init)(key, batch)
    context = Context(objective.start(params, batch), {}, key, train=True, axis_name=None)
    found, _ = objective.loss(params, batch, context)
    assert np.isfinite(found["patch_position"].value())
    assert params["backbone"]


@pytest.mark.parametrize(
    "size, shape, expected",
    [
        ((28, 28), {"backbone": "conv"}, "kind conv and mlp read one size only: take a resnet or a vit"),
        ((28, 28), {"backbone": "mlp"}, "kind conv and mlp read one size only: take a resnet or a vit"),
        ((8, 8), {"backbone": "resnet18"}, "shows parts of 1 x 1, and needs 2 x 2: give larger images"),
        ((28, 28), {"backbone": "vit", "shape": {"patch_size": 7}}, "shows parts of 6 x 6, and needs 7 x 7"),
    ],
    ids=["conv", "mlp", "small", "patch"],
)
def test_parts_that_a_backbone_cannot_read(size, shape, expected):
    with pytest.raises(ValueError, match=expected):
        position_objective(size, **shape)


def test_what_is_said_in_one_line(encoder, resnet, digits, refused, tmp_path):
    line = ("pretrain", "images", "--data", digits, "--out", tmp_path / "run", "--devices", 1)
    assert "is a model of text; pre-train it with jaxptft pretrain" in refused(*line, "--model", encoder)
    assert "channels is 3, and" in refused(*line, "--model", resnet, "--channels", 3)
    told = refused(*line, "--model", resnet, "--objective", "mae")
    assert "objective mae continues from a model of the family vit_mae, and" in told
    assert not (tmp_path / "run").exists()


def test_neighbours_need_classes(digits, refused, tmp_path):
    line = ("pretrain", "images", "--data", digits / "train/0", "--out", tmp_path / "run", "--devices", 1)
    more = ("--objective", "autoencoder", "--shape.widths", 4, "--monitor", "neighbours")
    assert "the images of" in refused(*line, *more)


def test_a_model_is_trained_on_at_another_size(resnet, digits, quickly):
    """And what is saved will say so."""
    asked = config(data=str(digits), model=str(resnet), objective="rotation", image_size=12, devices=1)
    said: list[str] = []
    with quickly(), train.StopFlag() as stop:
        run = PretrainImagesRun(asked, name="", say=said.append, stop=stop)
    assert run.preprocessing is not None
    assert run.preprocessing.size == (12, 12)
    assert run.batches["train"].batch_at(0)["image"].shape[1:] == (12, 12, 1)
    assert "of 12 x 12 x 1 from" in said[0]
