import json

import pytest
from safetensors.numpy import load_file, save_file


@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_there_and_back_is_byte_for_byte_the_same(kind, command, tmp_path, request):
    source = request.getfixturevalue(kind)
    there = command("convert", "import", source, tmp_path / "flax")
    back = command("convert", "export", tmp_path / "flax", tmp_path / "back")
    assert (there.status, back.status) == (0, 0), (there.err, back.err)
    one, other = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert one.keys() == other.keys()
    assert all(other[name].tobytes() == array.tobytes() for name, array in one.items())
    configs = [json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back")]
    assert configs[0] == configs[1]
    assert (tmp_path / "back/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_export_in_another_precision(command, classifier, tmp_path):
    assert command("convert", "import", classifier, tmp_path / "flax").status == 0
    assert command("convert", "export", tmp_path / "flax", tmp_path / "half", "--dtype", "float16").status == 0
    assert {array.dtype.name for array in load_file(tmp_path / "half/model.safetensors").values()} == {"float16"}


def test_inspect_shows_what_an_import_would_use(command, classifier):
    told = command("convert", "inspect", classifier)
    assert (told.status, told.err) == (0, "")
    assert "bert.embeddings.word_embeddings.weight" in told.out or "used" in told.out


def test_without_its_head(command, classifier, tmp_path):
    assert command("convert", "import", classifier, tmp_path / "flax", "--heads", "none").status == 0
    assert json.loads((tmp_path / "flax/jaxptft.json").read_text())["labels"] is None


def test_heads_by_name(command, refused, classifier, tmp_path):
    assert command("convert", "inspect", classifier).out.startswith("family bert, heads classifier over 2 classes")
    told = command("convert", "inspect", classifier, "--heads", "mlm", "classifier")
    assert told.out.startswith("family bert, heads classifier over 2 classes")
    assert command("convert", "inspect", classifier, "--heads", "mlm").out.startswith("family bert, heads none")
    message = "family bert has no head 'tokens': expected one of classifier, token_classifier"
    assert message in refused("convert", "import", classifier, tmp_path / "flax", "--heads", "tokens")


def test_a_run_folder_stands_for_its_model(command, refused, classifier, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert "is a run that has no model/ yet" in refused("convert", "inspect", tmp_path)
    (tmp_path / "model").symlink_to(classifier)
    assert command("convert", "inspect", tmp_path).out == command("convert", "inspect", classifier).out
    assert command("convert", "import", tmp_path, tmp_path / "flax").status == 0
    assert (tmp_path / "flax/params.msgpack").is_file()


def test_what_is_there_is_kept_unless_told_otherwise(command, refused, classifier, tmp_path):
    line = ("convert", "import", classifier, tmp_path / "flax")
    assert command(*line).status == 0
    assert "exists and is not empty" in refused(*line)
    assert command(*line, "--overwrite").status == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("")
    assert "holds no model, so it is not overwritten" in refused(*line[:-1], tmp_path / "mine", "--overwrite")


def test_problems_are_listed_and_the_status_is_2(command, refused, classifier, tmp_path):
    tensors = load_file(classifier / "model.safetensors")
    del tensors["classifier.bias"]
    save_file(tensors | {"stranger": tensors["classifier.weight"]}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((classifier / "config.json").read_bytes())
    told = command("convert", "inspect", tmp_path)
    assert told.status == 2
    assert "would be refused: 2 problems, listed above" in told.err
    assert "stranger" in told.out
    assert "classifier.bias" in told.out
    assert "stranger" in refused("convert", "import", tmp_path, tmp_path / "flax")
    assert not (tmp_path / "flax").exists()
    allowed = ("--allow-unused", "stranger", "--allow-missing", "classifier.*")
    assert command("convert", "inspect", tmp_path, *allowed).status == 0


def test_what_does_not_fit_is_refused(refused, classifier, tmp_path):
    assert "is not a folder" in refused("convert", "inspect", tmp_path / "nowhere")
    assert "config.json does not exist" in refused("convert", "import", tmp_path, tmp_path / "flax")
    assert "jaxptft.json does not exist" in refused("convert", "export", classifier, tmp_path / "out")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert "model_type 't5' is not supported" in refused("convert", "import", tmp_path, tmp_path / "flax")
    (tmp_path / "config.json").write_text("{")
    assert "is not valid JSON" in refused("convert", "inspect", tmp_path)
    assert "SOURCE, DESTINATION must be given" in refused("convert", "import", classifier)
