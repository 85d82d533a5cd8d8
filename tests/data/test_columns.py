import pytest

from jaxptft.data import Columns, infer_columns

# GLUE's and other well-known data sets' own column names, from their cards on the hub.
KNOWN = {
    "sst2": (("sentence", "label", "idx"), Columns("sentence", None, "label")),
    "mrpc": (("sentence1", "sentence2", "label", "idx"), Columns("sentence1", "sentence2", "label")),
    "qqp": (("question1", "question2", "label", "idx"), Columns("question1", "question2", "label")),
    "mnli": (("premise", "hypothesis", "label", "idx"), Columns("premise", "hypothesis", "label")),
    "qnli": (("question", "sentence", "label", "idx"), Columns("question", "sentence", "label")),
    "imdb": (("text", "label"), Columns("text", None, "label")),
    "boolq": (("question", "passage", "idx", "label"), Columns("question", "passage", "label")),
    "capitals": (("Label", "Review"), Columns("Review", None, "Label")),
}


@pytest.mark.parametrize(("found", "expected"), KNOWN.values(), ids=KNOWN)
def test_names_of_known_data_sets(found, expected):
    assert infer_columns(found, "t.csv") == expected


def test_unlabelled_needs_no_label():
    assert infer_columns(("text", "stars"), "t.csv", labelled=False) == Columns("text")
    assert infer_columns(("text", "label", "class"), "t.csv", labelled=False) == Columns("text")


def test_chosen_names_go_first():
    found = ("title", "text", "label", "mood", "uid")
    chosen = Columns(text="title", label="mood", id="uid")
    assert infer_columns(found, "t.csv", chosen=chosen) == Columns("title", None, "mood", "uid")


def test_empty_name_means_none():
    found = ("text", "hypothesis", "label")
    assert infer_columns(found, "t.csv").pair == "hypothesis"
    assert infer_columns(found, "t.csv", chosen=Columns(pair="")).pair is None


def test_a_column_has_one_role():
    # "category" is chosen as the text, so it is no longer a candidate for the label.
    chosen = Columns(text="category")
    assert infer_columns(("category", "label"), "t.csv", chosen=chosen) == Columns("category", None, "label")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (Columns(text="body"), r"t\.csv: there is no column 'body' for the text; columns found: 'text', 'label'"),
        (Columns(label="y"), r"t\.csv: there is no column 'y' for the label"),
        (Columns(pair="other"), r"t\.csv: there is no column 'other' for the pair"),
        (Columns(id="uid"), r"t\.csv: there is no column 'uid' for the id"),
        (Columns(text=""), r"t\.csv: the text needs a column; columns found: 'text', 'label'"),
        (Columns(label=""), r"t\.csv: the label needs a column"),
    ],
)
def test_wrong_choice(chosen, said):
    with pytest.raises(ValueError, match=said):
        infer_columns(("text", "label"), "t.csv", chosen=chosen)


def test_nothing_found():
    with pytest.raises(ValueError, match="no column could be the text; choose one; columns found: none"):
        infer_columns((), "t.csv")


def test_two_pairs():
    with pytest.raises(ValueError, match=r"several columns could be the pair \('sentence2', 'hypothesis'\); choose"):
        infer_columns(("text", "sentence2", "hypothesis", "label"), "t.csv")
