import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxptft import convert, data, models
from jaxptft.recipes.inference import Opened
from jaxptft.recipes.model_source import locate, model_fingerprint, open_model
from jaxptft.recipes.tasks.classification import logits


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_run_folder_stands_for_its_model(finished):
    assert locate(finished.out) == finished.out / "model"
    assert locate(finished.out / "model") == finished.out / "model"


def test_hugging_face_folders_and_converted_ones_are_themselves(classifier, tmp_path):
    convert.import_folder(classifier, tmp_path / "converted")
    assert locate(classifier) == classifier
    assert locate(str(tmp_path / "converted")) == tmp_path / "converted"


def test_a_converted_folder_gives_the_same_parameters(classifier, tmp_path):
    convert.import_folder(classifier, tmp_path / "converted")
    (_, one), (_, other) = open_model(classifier), open_model(tmp_path / "converted")
    assert one.labels == other.labels == ["neg", "pos"]
    np.testing.assert_array_equal(one.params["classifier"]["kernel"], other.params["classifier"]["kernel"])


def test_what_holds_no_model_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model: expected config\.json, a run's model/"):
        locate(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        locate(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("model: x\n")
    with pytest.raises(FileNotFoundError, match="is a run that has no model/ yet; finish it with --resume"):
        locate(tmp_path)


@pytest.mark.parametrize("name", ["no-such-model-here", "nobody/no-such-model"])
def test_a_name_that_the_hub_does_not_give_is_said(name):
    with pytest.raises(FileNotFoundError, match=f"{name} is no folder, and the hub did not give it: ") as raised:
        locate(name)
    assert "\n" not in str(raised.value)


def test_a_model_without_a_head_classifies_nothing(encoder):
    with pytest.raises(ValueError, match="has no head of a task; fine-tune it first"):
        Opened(encoder)


def test_a_model_that_lacks_tensors_classifies_nothing(classifier, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(classifier, folder)
    tensors = {name: array for name, array in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing from the source: pooler\.dense"):
        Opened(folder)
    convert.import_folder(folder, tmp_path / "converted", allow_missing=["pooler.*"])
    with pytest.raises(ValueError, match=r"converted lacks backbone/pooler/(kernel|bias); fine-tune it first"):
        Opened(tmp_path / "converted").model("classification", classes=2)


def test_a_model_that_gives_nan_is_an_error(classifier, tmp_path, make_model):
    folder = make_model(tmp_path / "model", "BertForSequenceClassification")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"classifier.bias": np.array([np.nan, 0], np.float32)}, folder / "model.safetensors")
    table = data.make_table(["the film", "a book"])
    with pytest.raises(FloatingPointError, match="the rows given, row 1: the model gives NaN or infinity"):
        logits(Opened(folder), table, say=lambda _: None)


def test_another_family_is_refused(classifier, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match="model_type 't5' is not supported"):
        open_model(tmp_path)


def test_a_fingerprint_tells_parameters_architectures_and_preprocessing_apart():
    params, other = {"w": np.zeros(2)}, {"w": np.ones(2)}
    bert, relu = models.BertConfig(), models.BertConfig(activation="relu")
    made = [
        model_fingerprint(params, bert),
        model_fingerprint(other, bert),
        model_fingerprint(params, relu),
        model_fingerprint(params, models.Gpt2Config()),
        model_fingerprint(params, bert, {"mean": 0.5}),
    ]
    assert len(set(made)) == len(made)
    assert model_fingerprint(params, models.BertConfig()) == made[0]
    assert model_fingerprint(params, models.BertConfig(scan_layers=True, remat="full")) == made[0]  # the same model
