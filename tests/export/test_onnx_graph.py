import numpy as np
import pytest

from jaxptft import export
from jaxptft.export import onnx_graph

pytest.importorskip("jax2onnx", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")


def written(model, folder):
    sizes = {"batch": 1, "length": 16, "choices": 2}
    return export.write_onnx(
        folder, model.function, model.params, model.inputs, limits=model.limits, sizes=sizes, probe=model.draw
    )


def check(model, graph, sizes):
    rows = model.draw(sizes)
    for name, values in model.function(model.params, rows).items():
        np.testing.assert_allclose(graph(rows)[name], values, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "multiple_choice"), ("modernbert", "token_classification"), ("gpt2", "classification")],
)
def test_batch_choices_and_length_stay_free(exportable, tmp_path, family, task):
    model = exportable(family, task)
    inputs = written(model, tmp_path)
    assert inputs == model.inputs
    check(model, export.Graph(tmp_path, inputs), {"batch": 5, "length": 9, "choices": 3})


@pytest.mark.parametrize("family", ["vit", "beit", "conv"])
def test_images_come_as_bytes_in_any_number(exportable, tmp_path, family):
    model = exportable(family)
    inputs = written(model, tmp_path)
    assert inputs["image"] == export.Input(("batch", 8, 8, 3), "uint8")
    check(model, export.Graph(tmp_path, inputs), {"batch": 5})


@pytest.mark.parametrize(("able", "axes"), [("batch", ("batch", 16)), ("", (1, 16))])
def test_what_cannot_be_free_is_fixed_and_rows_are_padded_to_it(exportable, tmp_path, monkeypatch, able, axes):
    model, convert = exportable("bert", "token_classification"), onnx_graph._convert

    def unable(folder, function, params, inputs, limits):
        free = {axis for one in inputs.values() for axis in one.axes if isinstance(axis, str)}
        if free - {able}:
            raise TypeError("a size is not known")
        convert(folder, function, params, inputs, limits)

    monkeypatch.setattr(onnx_graph, "_convert", unable)
    inputs = written(model, tmp_path)
    assert inputs["input_ids"].axes == axes
    check(model, export.Graph(tmp_path, inputs), {"batch": 3, "length": 9})


def test_what_is_converted_wrongly_is_refused(exportable, tmp_path, monkeypatch):
    model, convert = exportable("conv"), onnx_graph._convert

    def wrong(folder, function, params, inputs, limits):
        convert(folder, lambda *given: {k: 1.1 * v for k, v in function(*given).items()}, params, inputs, limits)

    monkeypatch.setattr(onnx_graph, "_convert", wrong)
    with pytest.raises(ValueError, match=r"cannot convert this model .*its logits differ by .*choose another format"):
        written(model, tmp_path)


def test_what_onnxruntime_cannot_run_is_refused(exportable, tmp_path):
    with pytest.raises(ValueError, match=r"jax2onnx cannot convert this model .*choose another format"):
        written(exportable("resnet"), tmp_path)
