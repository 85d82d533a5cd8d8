import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxptft import export
from jaxptft.export import runner

TEXT_TASKS = ("classification", "multi_label", "regression", "token_classification", "question_answering")
NEEDED = ("SHA256SUMS", "model.json", "model.stablehlo", "run.py", "weights.npz")


@pytest.mark.parametrize("platform", export.PLATFORMS)
@pytest.mark.parametrize("family", ["bert", "modernbert", "gpt2", "vit", "beit", "resnet", "conv"])
def test_every_family_lowers_for_every_platform_without_calls_of_its_own(exportable, family, platform):
    model = exportable(family)
    lowered = export.lower(
        model.function, model.params, model.inputs, limits=model.limits, platforms=(platform,)
    ).mlir_module()
    calls = set(re.findall(r"stablehlo\.custom_call @(\w+)", lowered))
    # What jax puts in itself, to check the symbolic sizes when it is called.
    assert calls <= {"shape_assertion"}


@pytest.mark.parametrize(
    ("family", "task"),
    [*(("bert", task) for task in TEXT_TASKS), ("gpt2", "classification"), ("modernbert", "multiple_choice")],
)
def test_one_program_gives_the_models_numbers_at_any_batch_and_length(exportable, family, task):
    model = exportable(family, task)
    exported = export.lower(model.function, model.params, model.inputs, limits=model.limits)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    weights = runner_weights(model.params)
    for sizes in ({"batch": 1, "length": 5, "choices": 2}, {"batch": 3, "length": 32, "choices": 4}):
        rows = model.draw(sizes)
        found, expected = exported.call(weights, rows), model.function(model.params, rows)
        assert set(found) == set(expected)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, atol=1e-5)


def runner_weights(params):
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(entry.key for entry in path): leaf for path, leaf in flat}


def test_choices_of_padding_alone_have_no_probability(exportable):
    model = exportable("bert", "multiple_choice")
    rows = model.draw({"batch": 1, "length": 4, "choices": 3})
    rows["attention_mask"][...] = 1
    rows["attention_mask"][0, 2] = 0
    found = model.function(model.params, rows)["probabilities"][0]
    assert found[2] == 0
    assert float(found[:2].sum()) == pytest.approx(1.0)


def test_the_weights_are_beside_the_program_and_numpy_reads_them(artifact):
    folder, model = artifact
    with np.load(folder / "weights.npz", allow_pickle=False) as stored:
        weights = {name: stored[name] for name in stored.files}
    expected = runner_weights(model.params)
    assert weights.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(weights[path], leaf)


def test_an_artifact_gives_the_models_numbers_and_fills_in_what_is_usual(artifact):
    folder, model = artifact
    loaded = export.Artifact(folder)
    rows = model.draw({"batch": 2, "length": 6})
    np.testing.assert_allclose(loaded(rows)["logits"], model.function(model.params, rows)["logits"], atol=1e-5)
    bare = {"input_ids": rows["input_ids"].astype(np.int64)}
    usual = bare | {"attention_mask": np.ones((2, 6)), "token_type_ids": np.zeros((2, 6), np.int32)}
    np.testing.assert_allclose(loaded(bare)["logits"], model.function(model.params, usual)["logits"], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"input_ids": None}, "input input_ids is missing; expected input_ids, attention_mask, token_type_ids"),
        ({"input_ids": np.full((2, 6), 40)}, "ids outside 0 to 39"),
        ({"input_ids": np.full((2, 6), -1)}, "ids outside 0 to 39"),
        ({"input_ids": np.zeros((2, 6))}, r"float64 \[2, 6\]; expected int32 \[batch, length\]"),
        ({"attention_mask": np.ones((2, 5), int)}, r"attention_mask is int64 \[2, 5\]"),
        ({"input_ids": np.zeros((2, 33), int)}, "length is 33, and the model takes 32 at most"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(artifact, changes, complaint):
    folder, model = artifact
    rows = model.draw({"batch": 2, "length": 6}) | changes
    if rows["input_ids"] is None or rows["input_ids"].shape[1] > 32:
        rows = {name: array for name, array in changes.items() if array is not None}
    with pytest.raises(ValueError, match=complaint):
        export.Artifact(folder)(rows)


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("damage", ["flip", "delete", "cut"])
def test_a_damaged_or_absent_file_is_named(artifact, tmp_path, name, damage):
    folder = shutil.copytree(artifact[0], tmp_path / "copy")
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    # A sum that was damaged itself is told as that of its file, or as a line.
    with pytest.raises((ValueError, FileNotFoundError), match="." if name == "SHA256SUMS" else name):
        export.Artifact(folder)


def test_no_change_of_a_bit_and_no_cut_goes_unseen(artifact, tmp_path):
    folder, random = shutil.copytree(artifact[0], tmp_path / "copy"), np.random.default_rng(0)
    needed = [name for name in NEEDED if name != "SHA256SUMS"]
    export.verify(folder, needed)
    for number in range(300):
        path = folder / NEEDED[number % len(NEEDED)]
        content = path.read_bytes()
        place = int(random.integers(len(content)))
        flipped = content[:place] + bytes([content[place] ^ 1 << int(random.integers(8))]) + content[place + 1 :]
        path.write_bytes(content[:place] if number % 3 == 0 else flipped)
        with pytest.raises((ValueError, FileNotFoundError), match=r"damaged|missing|another SHA-256"):
            export.verify(folder, needed)
        path.write_bytes(content)
    export.verify(folder, needed)


@pytest.mark.parametrize("name", ["model.json", "model.stablehlo", "weights.npz"])
def test_a_file_that_the_sums_do_not_list_is_not_trusted(artifact, tmp_path, name):
    folder = shutil.copytree(artifact[0], tmp_path / "copy")
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(line for line in lines if not line.endswith(f" {name}\n")))
    with pytest.raises(ValueError, match=f"SHA256SUMS is damaged: it does not list {name}"):
        export.Artifact(folder)


def test_what_is_no_description_of_this_version_is_refused(artifact, tmp_path):
    folder = shutil.copytree(artifact[0], tmp_path / "copy")
    known = json.loads((folder / "model.json").read_text())
    for content, complaint in (
        (json.dumps(known | {"version": 2}), "is of version 2, and this program reads 1"),
        (json.dumps({"version": 1, "format": "stablehlo"}), "does not tell task"),
        (json.dumps(known | {"format": "onnx"}), "was exported as onnx, not as stablehlo"),
        ("[]", "is damaged"),
        ("{", "is damaged"),
    ):
        (folder / "model.json").write_text(content)
        export.write_sums(folder)
        with pytest.raises(ValueError, match=complaint):
            export.Artifact(folder)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils' sha256sum")
def test_the_sums_are_those_of_sha256sum(artifact):
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=artifact[0], capture_output=True)
    assert done.returncode == 0


def test_the_file_that_travels_along_imports_nothing_of_ours():
    tree = ast.parse(Path(runner.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    beyond = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert beyond == {"jax", "numpy", "tokenizers"}  # the last where rows are texts
