"""Sentences from every kind of file, and what is said of those that are bad."""

import json

import numpy as np
import pytest

from jaxptft import data
from jaxptft.data import TagColumns

WORDS = [["EU", "rejects", "German", "call"], ["Peter", "Blackburn"], ["."]]
TAGS = [["B-ORG", "O", "B-MISC", "O"], ["B-PER", "I-PER"], ["O"]]
NAMES = ("O", "B-MISC", "I-MISC", "B-ORG", "I-ORG", "B-PER", "I-PER")

SPACES = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
call NN I-NP O

-DOCSTART- -X- -X- O
Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
-DOCSTART- -X- -X- O


. . O O
"""
TABS = """# one sentence
EU\tB-ORG
rejects\tO
German\tB-MISC
call\tO

#\tO
"""


def check(taggings):
    assert taggings.words == WORDS
    assert taggings.tags == TAGS
    assert taggings.scheme == "IOB2"
    assert taggings.names == NAMES
    assert taggings.report == data.Report(rows=3)


@pytest.mark.parametrize("name", ["train.txt", "train.conll", "eng.train"])
@pytest.mark.parametrize("bom, newline", [(b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n")])
def test_conll(tmp_path, name, bom, newline):
    (tmp_path / name).write_bytes(bom + SPACES.encode().replace(b"\n", newline))
    taggings = data.read_taggings(tmp_path / name)
    check(taggings)
    np.testing.assert_array_equal(taggings.rows, [3, 9, 14])  # lines of the first words, by hand
    phrases = data.read_taggings(tmp_path / name, columns=TagColumns(tags="3"))
    assert phrases.tags == [["B-NP", "B-VP", "B-NP", "I-NP"], ["B-NP", "I-NP"], ["O"]]


def test_conll_with_tabs(tmp_path):
    (tmp_path / "t.tsv").write_text(TABS)
    taggings = data.read_taggings(tmp_path / "t.tsv")
    assert (taggings.words, taggings.tags) == ([WORDS[0], ["#"]], [TAGS[0], ["O"]])
    (tmp_path / "spaces.conll").write_text("#EU\tfan B-ORG\nnow O\n".replace("\t", "_"))
    assert data.read_taggings(tmp_path / "spaces.conll").words == [["#EU_fan", "now"]]  # no comment


def test_json_lines_and_parquet(tmp_path):
    lines = [json.dumps({"tokens": words, "ner_tags": tags}) for words, tags in zip(WORDS, TAGS, strict=True)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    check(data.read_taggings(str(tmp_path / "t.jsonl")))
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"words": WORDS, "tags": TAGS, "id": [1, 2, 3]}), tmp_path / "t.parquet")
    check(data.read_taggings(tmp_path / "t.parquet"))


DECLARED = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-MISC", "I-MISC"]  # in the order of the hub's conll2003


def test_numbers_of_a_data_set_that_declares_their_names(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "pos_tags": datasets.List(datasets.Value("int64")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=DECLARED)),
        }
    )
    rows = {"tokens": WORDS, "pos_tags": [[0]] * 3}
    rows["ner_tags"] = [[DECLARED.index(tag) for tag in tags] for tags in TAGS]
    dataset = datasets.Dataset.from_dict(rows, features)
    dataset.save_to_disk(str(tmp_path / "saved"))
    dataset.to_parquet(str(tmp_path / "t.parquet"))
    for source in (dataset, tmp_path / "saved", tmp_path / "t.parquet"):
        taggings = data.read_taggings(source)
        assert (taggings.words, taggings.tags, taggings.names) == (WORDS, TAGS, tuple(DECLARED))


def rows_file(tmp_path, *rows, name="t.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps({"words": words, "tags": tags}) + "\n" for words, tags in rows))
    return path


def test_iob1_is_learnt_as_iob2_unless_asked_otherwise(tmp_path):
    path = rows_file(tmp_path, (["a", "b", "c"], ["I-X", "B-X", "I-X"]), (["d", "e"], ["O", "I-Y"]))
    taggings = data.read_taggings(path)
    assert (taggings.scheme, taggings.tags) == ("IOB2", [["B-X", "B-X", "I-X"], ["O", "B-Y"]])
    taggings = data.read_taggings(path, learn="IOB1")
    assert (taggings.scheme, taggings.tags) == ("IOB1", [["I-X", "B-X", "I-X"], ["O", "I-Y"]])
    taggings = data.read_taggings(path, learn="IOBES")
    assert taggings.tags == [["S-X", "B-X", "E-X"], ["O", "S-Y"]]
    assert taggings.names == ("O", "B-X", "I-X", "E-X", "S-X", "B-Y", "I-Y", "E-Y", "S-Y")
    # Asked to be read as IOB2, an I- that goes on with nothing is part of no entity, and counted.
    taggings = data.read_taggings(path, scheme="IOB2")
    assert (taggings.loose, taggings.tags) == (2, [["I-X", "B-X", "I-X"], ["O", "I-Y"]])


def test_tags_that_mark_no_entities(tmp_path):
    path = rows_file(tmp_path, (["a", "runs"], ["DET", "VERB"]))
    taggings = data.read_taggings(path, scheme=None)
    assert (taggings.scheme, taggings.names) == (None, ("DET", "VERB"))
    with pytest.raises(ValueError, match="tags that mark no entities cannot be turned into IOBES"):
        data.read_taggings(path, scheme=None, learn="IOBES")


BAD = [
    ((["a"], ["O", "O"]), "'tags': has 2 tags for 1 words, expected as many"),
    (([], []), "'words': has no words"),
    ((None, ["O"]), "'words': has no value"),
    (("a b", ["O", "O"]), r"'words': is 'a b' \(str\), expected a list of words"),
    ((["a"], "O"), r"'tags': is 'O' \(str\), expected a list of tags"),
    ((["a", " "], ["O", "O"]), "'words': word 2 is empty"),
    ((["a", 5], ["O", "O"]), "'words': word 2 is 5"),
    ((["a"], ["X-PER"]), "'tags': tag 1 is 'X-PER', expected O, or B-, I-, E-, S- and a type"),
    ((["a"], ["PER"]), "'tags': tag 1 is 'PER', expected O"),
    ((["a"], [3]), "'tags': tag 1 is 3, and the column declares no names for numbers"),
    ((["a"], [None]), "'tags': tag 1 has no value"),
]


@pytest.mark.parametrize("row, said", BAD)
def test_bad_rows(tmp_path, row, said):
    path = rows_file(tmp_path, (["a", "b"], ["B-X", "O"]), row)
    with pytest.raises(ValueError, match=rf"t\.jsonl, row 2, column {said}.*; correct the row, or skip such rows"):
        data.read_taggings(path)
    taggings = data.read_taggings(path, on_bad_row="skip")
    assert (len(taggings), taggings.report.skipped, taggings.report.rows) == (1, 1, 2)


def test_bad_lines_of_conll_files(tmp_path):
    path = tmp_path / "t.conll"
    path.write_bytes(b"a B-X\nb\nc O\n\nd O\n\n\xff O\n")
    with pytest.raises(ValueError, match=r"t\.conll, row 2: has 1 column where the file's first word has 2; correct"):
        data.read_taggings(path)
    taggings = data.read_taggings(path, on_bad_row="skip", scheme=None, names=("O",))
    assert (taggings.words, taggings.report.skipped) == ([["d"]], 2)
    assert "row 7, column '1': word 1 is not UTF-8 text" in taggings.report.examples[1]
    (tmp_path / "none.txt").write_text("-DOCSTART- O\n\n")
    with pytest.raises(ValueError, match=r"none\.txt: holds no word, expected a word and its tag a line"):
        data.read_taggings(tmp_path / "none.txt")
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"t\.csv: a \.csv file holds no sentences of words; expected CoNLL columns"):
        data.read_taggings(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="has no splits, and split 'test' was asked of it"):
        data.read_taggings(path, split="test")


def test_whole_files_that_are_bad(tmp_path):
    path = rows_file(tmp_path, (["a"], ["O"]), (["b"], ["O"]))
    with pytest.raises(ValueError, match="column 'tags': every word has tag 'O'; a tagger needs two tags"):
        data.read_taggings(path)
    path = rows_file(tmp_path, (["a"], ["B-X"]), (["b"], ["I-X"]))
    with pytest.raises(
        ValueError, match=r"t\.jsonl: its tags are of no one scheme: row 2 is not IOB2 \(I-X\), and row"
    ):
        data.read_taggings(path)
    with pytest.raises(ValueError, match=r"row 1, column 'tags': tag 'B-X' is not known; known are: O, B-Y, I-Y"):
        data.read_taggings(path, scheme="IOB2", names=("O", "B-Y", "I-Y"))
    path = rows_file(tmp_path, ([], []))
    with pytest.raises(ValueError, match="every row was refused; 1 rows, 1 skipped"):
        data.read_taggings(path, on_bad_row="skip")
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        data.read_taggings(tmp_path / "nothing.conll")


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"tokens": "toks"}, r"there is no column 'toks' for the words; columns found: 'words', 'tags', 'labels'"),
        ({}, r"several columns could be the tags \('tags', 'labels'\); choose one"),
        ({"tags": "words"}, "the words and the tags are both in column 'words'"),
    ],
)
def test_columns_that_are_not_there(tmp_path, columns, said):
    (tmp_path / "t.jsonl").write_text('{"words": ["a"], "tags": ["O"], "labels": ["O"]}\n')
    with pytest.raises(ValueError, match=said):
        data.read_taggings(tmp_path / "t.jsonl", columns=TagColumns(**columns))
    (tmp_path / "t.conll").write_text("a O\n")
    with pytest.raises(ValueError, match="there is no column '3' for the tags; columns found: '1', '2'"):
        data.read_taggings(tmp_path / "t.conll", columns=TagColumns(tags="3"))
    (tmp_path / "u.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="no column could be the words; choose one; columns found: 'a'"):
        data.read_taggings(tmp_path / "u.jsonl")


def test_rows_to_tag(tmp_path):
    (tmp_path / "t.csv").write_text("text,id\nPeter's EU.,7\n")
    found = data.read_sentences(tmp_path / "t.csv", columns=TagColumns(id="id"))
    assert found.words == [["Peter", "'s", "EU", "."]]
    assert found.places == [[(0, 5), (5, 7), (8, 10), (10, 11)]]
    assert (found.texts, found.tags, found.keys) == (["Peter's EU."], None, ["7"])
    (tmp_path / "t.txt").write_text(SPACES)
    assert data.read_sentences(tmp_path / "t.txt").words == WORDS
    (tmp_path / "t.jsonl").write_text('{"text": "a b", "tokens": ["a b", "c"]}\n')
    assert data.read_sentences(tmp_path / "t.jsonl").words == [["a b", "c"]]
    assert data.read_sentences(tmp_path / "t.jsonl", columns=TagColumns(text="text")).words == [["a", "b"]]
    (tmp_path / "t.tsv").write_text("text\tn\na b\t1\n")
    assert data.read_sentences(tmp_path / "t.tsv", columns=TagColumns(text="text")).words == [["a", "b"]]
    with pytest.raises(ValueError, match="there is no column 'key' for the id; columns found: 'text', 'tokens'"):
        data.read_sentences(tmp_path / "t.jsonl", columns=TagColumns(id="key"))
    (tmp_path / "u.jsonl").write_text('{"text": "a", "key": 1.5}\n')
    with pytest.raises(ValueError, match=r"row 1, column 'key': is 1\.5 \(float\), expected text or a whole number"):
        data.read_sentences(tmp_path / "u.jsonl", columns=TagColumns(id="key"))


def test_fingerprint_and_selection(tmp_path):
    path = rows_file(tmp_path, (["a", "b"], ["B-X", "O"]), (["c"], ["B-Y"]), (["d"], ["O"]))
    taggings = data.read_taggings(path)
    chosen = taggings.select(np.array([2, 0]))
    assert (chosen.words, chosen.tags, chosen.rows.tolist()) == ([["d"], ["a", "b"]], [["O"], ["B-X", "O"]], [3, 1])
    other = rows_file(tmp_path, (["a"], ["B-X"]), (["b", "c"], ["O", "B-Y"]), (["d"], ["O"]), name="o.jsonl")
    others = [data.read_taggings(path, learn=scheme) for scheme in ("IOB1", "IOBES")]
    prints = {part.fingerprint for part in (taggings, chosen, data.read_taggings(other), *others)}
    assert len(prints) == 5
