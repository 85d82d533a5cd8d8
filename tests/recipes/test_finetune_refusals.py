"""What a fine-tuning refuses: in one line, with status 2, and without taking the output folder."""

import json

import pytest


def bad_files(folder, csv_file):
    good = [("the film was good", "pos"), ("a book is bad", "neg")]
    (folder / "empty.csv").write_text("")
    csv_file(folder / "header.csv", [])
    csv_file(folder / "one_class.csv", [("the film was good", "pos")] * 4)
    csv_file(folder / "columns.csv", good, header="words,label")
    (folder / "latin.csv").write_bytes("text,label\nthe caf\xe9,pos\na book is bad,neg\n".encode("latin-1"))
    csv_file(folder / "stranger.csv", [*good, ("so so", "meh")])
    csv_file(folder / "gap.csv", [*good, ("", "pos")])


@pytest.mark.parametrize(
    "changes, expected",
    [
        (["--train", "empty.csv"], "empty.csv: is empty"),
        (["--train", "header.csv"], "header.csv: has a header and no rows"),
        (["--train", "one_class.csv"], "every row has label 'pos'; a classifier needs two classes"),
        (["--train", "columns.csv"], "no column could be the text; choose one; columns found: 'words', 'label'"),
        (["--columns.text", "txet"], "there is no column 'txet'"),
        (["--train", "latin.csv"], "row 2, column 'text': is not UTF-8 text (byte 0xe9"),
        (["--train", "gap.csv"], "row 4, column 'text': is empty"),
        (["--eval", "stranger.csv"], "row 4, column 'label': label 'meh' is not known; known are: neg, pos"),
        (["--test", "stranger.csv"], "row 4, column 'label': label 'meh' is not known"),
        (["--train", "nowhere.csv"], "nowhere.csv: there is no such file or folder"),
        (["--model", "./nowhere"], "nowhere does not exist"),
        (["--model", "."], "holds no model"),
        (["--max-length", "21"], "max_length is 21, but "),
        (["--learning-rate", "0"], "--learning-rate is 0.0: Input should be greater than 0"),
        (["--learning-rate", "-1e-3"], "--learning-rate is -0.001: Input should be greater than 0"),
        (["--learning-rate", "fast"], "--learning-rate: could not convert string to float: 'fast'"),
        (["--steps", "1.5"], "--steps"),
        (["--steps", "0"], "--steps is 0: Input should be greater than or equal to 1"),
        (["--epochs", "2"], "both steps and epochs are given; give one"),
        (["--optimizer.warmup", "1.0"], "--optimizer.warmup is 1.0: Input should be less than 1"),
        (["--optimizer.multipliers", "backbone/leyer_0/**", "0.5"], "pattern 'backbone/leyer_0/**' matches nothing"),
        (["--devices", "99"], "devices is 99, but this machine shows 8"),
        (["--freeze", "backbone/layer_9/**"], "pattern 'backbone/layer_9/**' matches nothing; nearest paths: "),
        (["--freeze", "**"], "freeze '**' leaves nothing to train"),
        (["--freeze", "bakbone"], "freeze 'bakbone' is neither 'none', 'backbone'"),
        (["--freeze", "all-but-top-2"], "cannot train the top 2 layers of a backbone with 1"),
        (["--freeze", "backbone", "--l2-to-pretrained", "0.1"], "l2_to_pretrained needs trainable parameters"),
        (["--from-scratch", "--l2-to-pretrained", "0.1"], "l2_to_pretrained needs trainable parameters"),
        (["--from-scratch", "--freeze", "backbone"], "every parameter starts afresh, and freeze='backbone' would keep"),
        (["--from-scratch", "--bitfit"], "so it starts afresh, and the plan would keep it there; let it train"),
        (
            ["--baseline", "scratch", "--lora.rank", "1", "--optimizer.multipliers", "lora/**", "2"],
            "optimizer.multipliers has 'lora/**', of which a baseline from scratch has nothing; leave out the pattern",
        ),
        (["--lerning-rate", "1"], "unknown flag --lerning-rate; did you mean 'learning-rate'?"),
        (["--optimizer.warmpu", "1"], "unknown flag --optimizer.warmpu; did you mean 'optimizer.warmup'?"),
        (
            ["--monitor", "accuracies"],
            "monitor is 'accuracies'; classification has accuracy, macro_f1, loss",
        ),
        (["--resume"], "holds no run to resume"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused_in_one_line(changes, expected, refused, flags, tmp_path, csv_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad_files(tmp_path, csv_file)
    replaced = {flag: value for flag, value in zip(changes[::2], changes[1::2], strict=False)}
    pairs = [(flag, value) for flag, value in zip(flags[::2], flags[1::2], strict=True) if flag not in replaced]
    complaint = refused("finetune", *(part for pair in pairs for part in pair), *changes)
    assert expected in complaint
    assert not (tmp_path / "run" / "config.yaml").exists()  # so that the corrected line is not told of a run there


def test_a_vocabulary_larger_than_the_embedding_table_is_refused(refused, flags, tmp_path, make_model):
    make_model(tmp_path / "model", vocab_size=18)  # its tokenizer knows 19 words
    complaint = refused("finetune", *flags, "--model", tmp_path / "model")
    assert "the tokenizer has 19 ids, and the model's embedding table 18 rows" in complaint


def test_a_checkpoint_of_another_family_is_refused(refused, flags, tmp_path, make_model):
    folder = make_model(tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text()) | {"model_type": "t5"}
    (folder / "config.json").write_text(json.dumps(fields))
    assert "t5" in refused("finetune", *flags, "--model", folder)


@pytest.mark.parametrize(
    "content, expected",
    [
        ("lerning_rate: 0.1", "config.yaml: unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ("optimizer: {warmpu: 0.1}", "unknown key 'optimizer.warmpu'; did you mean 'optimizer.warmup'?"),
        ("steps: yes", "'steps' is True: Input should be a number"),
        ("steps: many", "'steps' is 'many': Input should be a valid integer"),
        ("learning_rate: .inf", "'learning_rate' is inf: Input should be a finite number"),
        ("epochs: .inf", "'epochs' is inf: Input should be a finite number"),
        ("freeze: [1, 2]", "'freeze' is [1, 2]: Input should be a valid string"),
        ("optimizer: fast", "'optimizer' is 'fast': "),
        ("{steps: 3, epochs: 2}", "both steps and epochs are given; give one"),
        ("- 1", "holds a list; expected a mapping"),
        ("on: 1", "the key True is a bool; expected a name"),
        ("steps: [", "is not YAML: "),
        ("steps: 2020-13-45", "is not YAML: month must be in 1..12"),
        ("steps: !!int ''", "is not YAML: "),
        ("steps: !!python/object:os.system 1", "is not YAML: "),
        ("[" * 5000, "is not YAML: "),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(content, expected, refused, tmp_path, files, encoder):
    (tmp_path / "config.yaml").write_text(content)
    line = ["--model", encoder, "--train", files.train, "--out", tmp_path / "run"]
    complaint = refused("finetune", "--config", tmp_path / "config.yaml", *line)
    assert expected in complaint
    assert not (tmp_path / "run").exists()
