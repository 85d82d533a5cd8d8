"""A run whose layers are scanned or computed again learns what one learns whose layers run one by one."""

import numpy as np
import pytest

from jaxptft.recipes import distill, pretrain, settings

WAY = {"scan_layers": True, "remat": "full"}


@pytest.fixture(scope="module")
def three_layers(make_model, tmp_path_factory):
    labels = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    folder = tmp_path_factory.mktemp("models") / "three"
    return str(make_model(folder, "BertForSequenceClassification", num_hidden_layers=3, **labels))


@pytest.fixture
def same_losses(lines_of):
    """A function: folders of runs -> asserts that their training losses are the same."""

    def compare(one, *others, rtol=1e-4):
        expected = [line["loss"] for line in lines_of(one, "train")]
        assert len(expected) > 2
        for other in others:
            np.testing.assert_allclose([line["loss"] for line in lines_of(other, "train")], expected, rtol=rtol)

    return compare


@pytest.mark.slow
def test_a_fine_tuning_and_going_on_in_another_way(fine_tune, three_layers, tmp_path, same_losses):
    """With a frozen layer, and dropout."""
    values = {"model": three_layers, "evaluate_every": 5, "log_every": 1, "dropout": 0.1, "learning_rate": 1e-3}
    values |= {"freeze": "backbone/{embeddings,layer_0}/**", "keep_checkpoints": 2}
    usual = fine_tune(tmp_path / "usual", **values, steps=10)
    scanned = fine_tune(tmp_path / "scanned", **values, steps=10, **WAY)
    same_losses(tmp_path / "usual", tmp_path / "scanned")
    assert "layers: scanned, remat full" in scanned.said
    assert "layers:" not in usual.said
    kept = settings.read_yaml(tmp_path / "scanned/config.yaml")
    assert (kept["scan_layers"], kept["remat"]) == (True, "full")
    model = "model/config.json"
    assert (tmp_path / "scanned" / model).read_bytes() == (tmp_path / "usual" / model).read_bytes()
    again = fine_tune(tmp_path / "scanned", **values, steps=12, remat="dots", resume=True)
    assert "note: scan_layers was True when the checkpoint was written and is False now" in again.said
    fine_tune(tmp_path / "usual", **values, steps=12, resume=True)
    same_losses(tmp_path / "usual", tmp_path / "scanned")


@pytest.mark.slow
def test_scanned_layers_under_other_splits(fine_tune, make_model, tmp_path, same_losses):
    model = make_model(tmp_path / "wide", hidden_size=128, intermediate_size=256, num_hidden_layers=2)
    values = {"model": str(model), "evaluate_every": 4, "log_every": 1, "learning_rate": 1e-3, "steps": 4}
    fine_tune(tmp_path / "whole", **values)
    splits = {
        "fsdp": {"devices": 8, "fsdp": 4},
        "pmap": {"devices": 2, "parallel": "pmap"},
        "accumulate": {"accumulate": 2, "steps_per_dispatch": 2},
    }
    for name, split in splits.items():
        fine_tune(tmp_path / name, **values, scan_layers=True, remat="dots_no_batch", **split)
    same_losses(tmp_path / "whole", *(tmp_path / name for name in splits), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["rtd", "mlm+sop"])
def test_a_pre_training(objective, encoder, tmp_path, same_losses, quickly):
    """Of ELECTRA, whose generator has layers too, and ALBERT, whose layers share their parameters."""
    said: list[str] = []
    rng = np.random.default_rng(0)
    draw = lambda: "Good " + " ".join(map(str, rng.choice(["good", "bad"], 5))) + "."  # noqa: E731
    (tmp_path / "text.txt").write_text("\n\n".join("\n".join(draw() for _ in range(4)) for _ in range(30)))
    values = {
        "corpus": [str(tmp_path / "text.txt")],
        "documents": "blank-line",
        "tokenizer": str(encoder),
        "objective": objective,
        "shape": {"layers": 3, "width": 16, "heads": 2, "mlp_width": 24, "positions": 24},
        "max_length": 16,
        "batch_size": 8,
        "steps": 4,
        "log_every": 1,
        "length_buckets": 1,
        "devices": 1,
    }
    for name, way in (("usual", {}), ("scanned", WAY)):
        config = settings.build(pretrain.Config, values | way | {"out": str(tmp_path / name)})
        with quickly():
            pretrain.run(config, say=said.append)
    same_losses(tmp_path / "usual", tmp_path / "scanned")
    assert said.count("layers: scanned, remat full") == 1


@pytest.mark.slow
def test_a_pre_training_on_images(pretrain_images, tmp_path, same_losses):
    values = {"objective": "mae", "shape": {"patch_size": 2, "layers": 3, "width": 8}, "pictures": False}
    values |= {"masked": {"decoder_width": 8, "decoder_layers": 2}}
    pretrain_images(tmp_path / "usual", **values)
    scanned = pretrain_images(tmp_path / "scanned", **values, **WAY)
    same_losses(tmp_path / "usual", tmp_path / "scanned")
    assert "layers: scanned, remat full" in scanned.said


@pytest.mark.slow
def test_a_distillation_that_matches_what_layers_leave_behind(base, three_layers, tmp_path, same_losses, quickly):
    values = {key: value for key, value in base.items() if key != "model"} | {"log_every": 1, "learning_rate": 1e-3}
    values |= {"teacher": three_layers, "student": "layers:0,2", "hidden": 1.0, "attention": 1.0, "relation": 1.0}
    for name, way in (("usual", {}), ("scanned", WAY)):
        config = settings.build(distill.Config, values | way | {"out": str(tmp_path / name)})
        with quickly():
            distill.run(config, say=lambda _: None)
    same_losses(tmp_path / "usual", tmp_path / "scanned")


def test_images_of_a_resnet_are_refused(resnet, digits, refused, tmp_path):
    line = ("pretrain", "images", "--data", digits, "--out", tmp_path / "run", "--devices", 1, "--model", resnet)
    assert "scan_layers is for transformers, and the model is of kind ResNet" in refused(*line, "--scan-layers")
    assert not (tmp_path / "run").exists()
