"""More rows by guessed words, from the command line; which tokens are likely is torch's word."""

import csv
import json

import datasets
import numpy as np
import pytest
import torch
import transformers

ROWS = [("The film was very good", "pos"), ("it is BAD", "neg"), ("a book, and so.", "pos"), ("zebra", "neg")]


@pytest.fixture(scope="module")
def masked(tmp_path_factory, make_model):
    return make_model(tmp_path_factory.mktemp("models") / "masked", "BertForMaskedLM")


@pytest.fixture
def source(csv_file, tmp_path):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("label", "text", "note"), *((label, text, f"n{n}") for n, (text, label) in enumerate(ROWS))]
        )
    return path


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def augmented(command, masked, tmp_path):
    """A function: data, flags -> the rows written."""

    def run(data, *flags, out="out.csv"):
        told = command("augment", masked, "--data", data, "--out", tmp_path / out, *flags)
        assert told.status == 0, told.err
        return (lines(tmp_path / out) if out.endswith("csv") else (tmp_path / out).read_text()), told.out

    return run


def test_copies_follow_their_row_and_keep_everything_but_some_words(augmented, source):
    rows, said = augmented(source, "--copies", "2", "--rate", "0.4")
    assert [row["note"] for row in rows] == [f"n{n}" for n in range(4) for _ in range(3)]
    replaced = 0
    for number, (text, label) in enumerate(ROWS):
        original, *copies = rows[3 * number : 3 * number + 3]
        assert original == {"label": label, "text": text, "note": f"n{number}"}
        for copy in copies:
            assert (copy["label"], copy["note"]) == (label, f"n{number}")
            before, after = text.split(), copy["text"].split()
            assert len(before) == len(after)
            changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
            assert changed
            replaced += len(changed)
            for old, new in changed:
                assert old.strip(",.").lower() != new.strip(",.").lower()
                assert old[-1].isalnum() or new[-1] == old[-1]  # what is no word stays
                assert old[0].isupper() == new[0].isupper()
    assert f"12 rows with {replaced} words replaced, from 4 rows" in said
    assert any(row["text"].split()[-1].isupper() for row in rows if row["note"] == "n1")


def test_it_is_the_same_every_time_whatever_the_batch_and_another_with_another_seed(augmented, source):
    first = augmented(source, "--copies", "2", out="1.csv")[0]
    assert augmented(source, "--copies", "2", "--batch-size", "3", out="2.csv")[0] == first
    assert augmented(source, "--copies", "2", "--seed", "1", out="3.csv")[0] != first
    assert augmented(source, "--no-originals", out="4.csv")[0] == [row for n, row in enumerate(first) if n % 3 == 1]


def test_with_top_1_the_guess_is_torchs_likeliest_word(augmented, masked, csv_file, tmp_path):
    path = csv_file(tmp_path / "one.csv", [("film", "x"), ("book", "y")])
    rows = augmented(path, "--top-k", "1", "--no-originals")[0]
    model = transformers.AutoModelForMaskedLM.from_pretrained(masked).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(masked)
    with torch.no_grad():
        logits = model(**tokenizer("[MASK]", return_tensors="pt")).logits[0, 1].numpy()
    words = [token for token in tokenizer.get_vocab() if token.isalnum()]
    for row, old in zip(rows, ("film", "book"), strict=True):
        others = [word for word in words if word != old]
        assert row["text"] == others[int(np.argmax([logits[tokenizer.get_vocab()[word]] for word in others]))]


def test_pairs_lists_and_declared_classes_as_json_lines(augmented, tmp_path):
    features = {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string")}
    features |= {"label": datasets.ClassLabel(names=["no", "yes"]), "tags": [datasets.Value("int32")]}
    values = {
        "premise": ["the film", "a book"],
        "hypothesis": ["it was good", "so bad"],
        "label": [1, 0],
        "tags": [[1], []],
    }
    datasets.Dataset.from_dict(values, features=datasets.Features(features)).to_parquet(tmp_path / "p.parquet")
    text, _ = augmented(tmp_path / "p.parquet", "--rate", "1.0", out="out.jsonl")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [(row["label"], row["tags"]) for row in rows] == [("yes", [1])] * 2 + [("no", [])] * 2
    for old, new in (rows[:2], rows[2:]):
        for column in ("premise", "hypothesis"):
            pairs = list(zip(old[column].split(), new[column].split(), strict=True))
            assert all(before != after for before, after in pairs)  # every word of both texts


def test_words_beyond_what_the_model_sees_stay(augmented, csv_file, tmp_path):
    path = csv_file(tmp_path / "long.csv", [(" ".join(["film"] * 30), "x")])
    rows = augmented(path, "--rate", "1.0", "--no-originals")[0]
    words = rows[0]["text"].split()
    # The model takes 20 tokens, two of them special.
    assert "film" not in words[:18]
    assert words[18:] == ["film"] * 12


def test_bad_rows_are_refused_or_counted(refused, augmented, masked, csv_file, tmp_path):
    path = csv_file(tmp_path / "bad.csv", [("film", "x"), ("", "y")])
    assert "row 3, column 'text': is empty" in refused("augment", masked, "--data", path, "--out", tmp_path / "o.csv")
    assert not (tmp_path / "o.csv").exists()
    assert "from 2 rows, 1 bad rows skipped" in augmented(path, "--on-bad-row", "skip")[1]


def test_what_does_not_fit_is_refused(refused, masked, encoder, source, csv_file, tmp_path):
    def complaint(*flags, model=masked, data=source, out="o.csv"):
        return refused("augment", model, "--data", data, "--out", tmp_path / out, *flags)

    assert "has no head that predicts masked words; pre-train it first" in complaint(model=encoder)
    assert "expected a file ending in .csv, .tsv, .jsonl" in complaint(out="o.txt")
    assert "--out and --data are both" in complaint("--overwrite", out="rows.csv")
    (tmp_path / "there.csv").write_text("mine")
    assert "there.csv exists; choose another --out" in complaint(out="there.csv")
    numbers = csv_file(tmp_path / "marks.csv", [("...", "x"), ("?!", "y")])
    assert "its texts hold no word that could be replaced" in complaint(data=numbers)
    (tmp_path / "lists.jsonl").write_text('{"text": "a film", "tags": [1]}\n')
    assert "column 'tags' holds a list, which .csv cannot; write .jsonl" in complaint(data=tmp_path / "lists.jsonl")
    (tmp_path / "tabs.jsonl").write_text('{"text": "a film", "note": "x\\ty"}\n')
    assert "column 'note' holds a tab" in complaint(data=tmp_path / "tabs.jsonl", out="o.tsv")
