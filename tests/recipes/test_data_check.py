"""`data check` from the command line; every finding was put into the files by hand."""

import json

import pytest

HEADER = "text,label"
TRAIN = [
    ("a fine film", "pos"),
    ("A fine film!", "pos"),
    ("a dull film", "neg"),
    ("so so", "pos"),
    ("it was long", "odd"),
]
EVAL = [("a dull film", "neg"), ("so so.", "neg"), ("a new one", "pos"), ("no", "neg")]
TEST = [("a fine film", "-1"), ("never seen before", "-1")]


@pytest.fixture
def sources(csv_file, tmp_path):
    parts = {"train": TRAIN, "eval": EVAL, "test": TEST}
    files = {name: csv_file(tmp_path / f"{name}.csv", rows) for name, rows in parts.items()}
    return [part for name, path in files.items() for part in (f"--{name}", path)]


@pytest.fixture
def found(command, tmp_path):
    """A function: flags -> what was found, and what was said."""

    def check(*flags):
        told = command("data", "check", *flags, "--out", tmp_path / "found.json", "--overwrite")
        assert told.status == 0, told.err
        return json.loads((tmp_path / "found.json").read_text()), told.out

    return check


def test_everything_that_was_put_there_is_found(sources, found):
    facts, said = found(*sources)
    train, held, test = (facts["splits"][name] for name in ("train", "eval", "test"))
    assert [part["rows"] for part in (train, held, test)] == [5, 4, 2]
    assert (train["duplicates"], train["near_duplicates"]) == (0, 1)
    assert (train["labels"], held["labels"], test["labels"]) == (
        {"neg": 1, "odd": 1, "pos": 3},
        {"neg": 3, "pos": 1},
        None,
    )
    assert held["short_texts"] == 1
    assert facts["leaks"] == {
        "train in eval": {"rows": 2, "rows_with_a_text": 2},
        "train in test": {"rows": 1, "rows_with_a_text": 1},
        "eval in test": {"rows": 0, "rows_with_a_text": 0},
    }
    assert facts["absent_labels"] == {"eval": {"absent": ["odd"], "unknown": []}}
    assert (facts["contradictions"]["texts"], facts["contradictions"]["rows"]) == (1, 2)
    counts = {"bad_rows": 0, "duplicates": 1, "leaks": 3, "contradictions": 1, "absent_labels": 1, "short_texts": 1}
    assert facts["counts"] == counts | {"truncated": 0}
    assert facts["examples"]["contradictions"] == [
        {"split": "train", "row": 5, "texts": ["so so"]},
        {"split": "eval", "row": 3, "texts": ["so so."]},
    ]
    assert "labels that eval lacks: odd" in said
    assert "leaks: test, row 2: 'a fine film'" in said
    assert "60.0%" in said  # three of five training rows are pos
    assert (facts["unit"], train["lengths"]["longest"]) == ("words", 3)
    assert train["lengths"]["histogram"][:2] == [5, 0]


def test_lengths_in_tokens_against_the_models_limit(sources, found, encoder, csv_file, tmp_path):
    long = csv_file(tmp_path / "long.csv", [("the " * n, "x" if n % 2 else "y") for n in (1, 5, 6, 7, 14, 18, 19, 30)])
    facts, said = found("--train", long, "--model", encoder)
    part = facts["splits"]["train"]
    # The model takes 20 tokens, two of them special: 19 and 30 words are too many.
    assert (facts["unit"], facts["limit"], part["truncated"]) == ("tokens", 20, 2)
    assert part["lengths"]["histogram"][:4] == [3, 2, 3, 0]  # 3, 7, 8 | 9, 16 | 20, 21, 32, by hand
    assert (part["lengths"]["median"], part["lengths"]["longest"]) == (9, 32)
    assert "longer than 20" in said
    assert found("--train", long, "--tokenizer", encoder, "--max-length", "8")[0]["splits"]["train"]["truncated"] == 5


def test_numbers_label_sets_and_pairs(found, csv_file, tmp_path):
    numbers = csv_file(tmp_path / "n.csv", [("one", "1.5"), ("two", "2"), ("three", "x")])
    facts, said = found("--train", numbers, "--task", "regression")
    part = facts["splits"]["train"]
    assert (part["numbers"]["mean"], part["labels"], part["bad_rows"]) == (1.75, None, {"not a number": 1})
    assert "bad: not a number" in said
    sets = csv_file(tmp_path / "s.csv", [("one", "x|y"), ("two", ""), ("three", "x")])
    facts, said = found("--train", sets, "--task", "multi_label", "--labels.delimiter", "|")
    assert facts["splits"]["train"]["labels"] == {"x": 2, "y": 1}
    assert "(no label)" in said
    rows = [("one,two", "x"), ("three,four", "y")]
    pairs = csv_file(tmp_path / "p.csv", rows, "premise,hypothesis,label")
    other = csv_file(tmp_path / "q.csv", [("two,one", "x"), ("three,five", "y")], "premise,hypothesis,label")
    facts, _ = found("--train", pairs, "--eval", other)
    assert facts["leaks"] == {"train in eval": {"rows": 1, "rows_with_a_text": 2}}


def test_fail_on_ends_with_an_error_after_everything_is_said(sources, command, tmp_path):
    told = command("data", "check", *sources, "--fail-on", "leaks,bad_rows,duplicates", "--out", tmp_path / "f.json")
    assert told.status == 2
    assert told.err.startswith("jaxptft: error: the data has leaks (3), duplicates (1), which fail_on names")
    assert (tmp_path / "f.json").is_file()
    assert "shared between splits" in told.out
    assert command("data", "check", *sources, "--fail-on", "bad_rows,truncated").status == 0


def test_the_splits_of_one_source_are_all_looked_at(found, tmp_path):
    import datasets

    parts = {"train": TRAIN, "validation": EVAL, "test": [(text, "pos") for text, _ in TEST]}
    columns = {name: {"text": [t for t, _ in rows], "label": [y for _, y in rows]} for name, rows in parts.items()}
    stored = datasets.DatasetDict({name: datasets.Dataset.from_dict(values) for name, values in columns.items()})
    stored.save_to_disk(str(tmp_path / "saved"))
    facts, _ = found("--train", tmp_path / "saved")
    assert [facts["splits"][name]["rows"] for name in ("train", "eval", "test")] == [5, 4, 2]
    assert facts["leaks"]["train in test"]["rows"] == 1


def test_what_does_not_fit_is_refused(sources, refused, encoder, tmp_path):
    assert "there is no finding 'leak'; did you mean 'leaks'?" in refused(
        "data", "check", *sources, "--fail-on", "leak"
    )
    assert "max_length is in tokens; give --model" in refused("data", "check", *sources, "--max-length", "8")
    both = ("--model", encoder, "--tokenizer", encoder)
    assert "both model and tokenizer are given" in refused("data", "check", *sources, *both)
    (tmp_path / "there.json").write_text("mine")
    said = refused("data", "check", *sources, "--out", tmp_path / "there.json")
    assert "there.json exists; choose another --out, or pass --overwrite" in said
    no_label = ("--train", tmp_path / "bare.csv")
    (tmp_path / "bare.csv").write_text("text\na film\n")
    assert "no column could be the label" in refused("data", "check", *no_label)
