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


@pytest.fixture
def deep(make_model, tmp_path):
    """Four layers that predict words, and a tokenizer."""
    return make_model(tmp_path / "deep", "BertForMaskedLM", num_hidden_layers=4)


def test_a_changed_model_has_what_was_asked_for(command, deep, tmp_path, make_tokenizer):
    words = json.loads((deep / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "larger").mkdir()
    make_tokenizer(tmp_path / "larger", [*words, "[E1]", "[E2]"])
    line = ["convert", "change", deep, "--out", tmp_path / "new", "--drop-layers", "1-2", "--add-layers", "0"]
    line += ["--vocab-size", len(words) + 2, "--tokenizer", tmp_path / "larger", "--new-head", "classification"]
    line += ["--labels", "neg", "pos", "--reinit", "backbone/layer_2/**", "backbone/pooler/*"]
    told = command(*line)
    assert (told.status, told.err) == (0, "")
    for words_of in (
        "layers: 4 -> 3",
        "vocabulary: 19 -> 21",
        "heads: mlm -> classifier",
        "started anew: 18 parameters",
    ):
        assert words_of in told.out
    one, other = (load_file(folder / "model.safetensors") for folder in (deep, tmp_path / "new"))
    name = "bert.encoder.layer.{}.intermediate.dense.weight".format
    for new, old in ((0, 0), (1, 0)):
        assert other[name(new)].tobytes() == one[name(old)].tobytes()
    assert abs(other[name(2)]).max() < 0.15  # of deviation 0.02 now, 0.2 before
    assert other["bert.embeddings.word_embeddings.weight"].shape == (21, 16)
    fields = json.loads((tmp_path / "new/config.json").read_text())
    assert (fields["architectures"], fields["num_hidden_layers"]) == (["BertForSequenceClassification"], 3)
    assert fields["id2label"] == {"0": "neg", "1": "pos"}
    assert "[E2]" in (tmp_path / "new/tokenizer.json").read_text()
    assert command("convert", "inspect", tmp_path / "new").status == 0


def test_the_same_seed_makes_the_same_model(command, deep, tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        line = ("convert", "change", deep, "--out", tmp_path / name, "--new-head", "none", "--keep-layers", "0")
        assert command(*line, "--reinit", "**/layer_0/mlp/**", "--seed", seed).status == 0
    one, two, three = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


def test_a_change_that_cannot_be_is_refused(refused, deep, tmp_path):
    line = ("convert", "change", deep, "--out", tmp_path / "new")
    for flags, message in (
        ((), "nothing is to change; give keep_layers"),
        (("--keep-layers", "0", "--drop-layers", "1"), "keep_layers and drop_layers were both given"),
        (("--keep-layers", "0;2"), "keep_layers is '0;2'; expected numbers of layers such as 0,2,4 or 0-3,5"),
        (("--keep-layers", "0,9"), "keep_layers must be numbers of layers from 0 to 3, got 9"),
        (("--labels", "a", "--keep-layers", "0"), "classes and labels are those of a new head"),
        (("--reinit", "backbone/layer_9/**"), "pattern 'backbone/layer_9/**' matches nothing"),
        (("--vocab-size", "15"), "has 19 ids where the model would have 15 rows; give a vocab_size of 19"),
    ):
        assert message in refused(*line, *flags)
    assert not (tmp_path / "new").exists()
