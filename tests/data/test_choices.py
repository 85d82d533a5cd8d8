import json

import numpy as np
import pytest

from jaxptft import data

# Three rows, the second with a choice less.
CONTEXTS = ["the cat sat.", "a dog ran.", "it was good."]
QUESTIONS = ["the cat is", "what ran?", "the film _ good"]
CHOICES = [("in the house", "on the mat", "not in"), ("the dog", "the cat"), ("was", "is not", "ran")]
RIGHT = [1, 0, 0]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def swag(path):
    columns = ["sent1", "sent2", "ending0", "ending1", "ending2", "label"]
    rows = zip(CONTEXTS, QUESTIONS, CHOICES, RIGHT, strict=True)
    texts = [
        ",".join([one, two, *choices, *[""] * (3 - len(choices)), str(right)]) for one, two, choices, right in rows
    ]
    path.write_text("\n".join([",".join(columns), *texts]) + "\n")
    return path


def race(path):
    rows = zip(CONTEXTS, QUESTIONS, CHOICES, RIGHT, strict=True)
    return lines(path, [{"article": a, "question": q, "options": o, "answer": "ABC"[right]} for a, q, o, right in rows])


def arc(path):
    rows = zip(CONTEXTS, QUESTIONS, CHOICES, RIGHT, strict=True)
    labels = ["P", "Q", "R"]
    return lines(
        path,
        [
            {
                "passage": a,
                "question": q,
                "choices": {"text": o, "label": labels[: len(o)]},
                "answerKey": labels[right],
            }
            for a, q, o, right in rows
        ],
    )


def parquet(path):
    import pyarrow
    import pyarrow.parquet

    columns = {"context": CONTEXTS, "question": QUESTIONS, "choices": CHOICES, "label": RIGHT}
    pyarrow.parquet.write_table(
        pyarrow.table({name: list(map(_listed, column)) for name, column in columns.items()}), path
    )
    return path


def _listed(value):
    return list(value) if isinstance(value, tuple) else value


def copied(path):
    """The right choice by its text, in columns that are named."""
    rows = zip(CONTEXTS, QUESTIONS, CHOICES, RIGHT, strict=True)
    return lines(
        path,
        [
            {"c": a, "q": q, **{f"o_{'abc'[n]}": o for n, o in enumerate(os)}, "gold": os[right]}
            for a, q, os, right in rows
        ],
    )


NAMED = data.ChoiceColumns(context="c", question="q", choices="o", label="gold")
FORMS = {
    "swag.csv": (swag, None),
    "race.jsonl": (race, None),
    "arc.jsonl": (arc, None),
    "rows.parquet": (parquet, None),
    "text.jsonl": (copied, NAMED),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_rows(tmp_path, name):
    write, columns = FORMS[name]
    path = write(tmp_path / name)
    found = data.read_choices(path, columns=columns)
    assert (found.contexts, found.questions, found.choices) == (CONTEXTS, QUESTIONS, CHOICES)
    assert found.labels.tolist() == RIGHT
    assert found.labels.dtype == np.int32
    assert (found.most, found.report) == (3, data.Report(rows=3))
    assert found.fingerprint == data.make_choices(CHOICES, RIGHT, contexts=CONTEXTS, questions=QUESTIONS).fingerprint
    unlabelled = data.read_choices(path, columns=columns, labelled=False)
    assert unlabelled.labels is None
    assert unlabelled.choices == CHOICES


@pytest.mark.parametrize("label, right", [(2, 1), ("2", 1), (3, 2), (0, 0)])
def test_labels_that_come_with_the_choices_go_before_their_numbers(tmp_path, label, right):
    listed = {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}  # as some of ARC's
    path = lines(tmp_path / "arc.jsonl", [{"question": "who?", "choices": listed, "answerKey": label}])
    assert data.read_choices(path).labels.tolist() == [right]


def test_what_is_read_for_a_choice_is_as_in_swag_and_race():
    both = data.make_choices(CHOICES, RIGHT, contexts=CONTEXTS, questions=QUESTIONS)
    # transformers' run_swag.py: sent1, and sent2 with the ending; RACE's blank holds the choice.
    assert both.pairs(0)[1] == ("the cat sat.", "the cat is on the mat")
    assert both.pairs(2) == [("it was good.", f"the film {choice} good") for choice in CHOICES[2]]
    assert data.make_choices(CHOICES, contexts=CONTEXTS).pairs(1) == [("a dog ran.", choice) for choice in CHOICES[1]]
    assert data.make_choices(CHOICES, questions=QUESTIONS).pairs(1)[0] == ("what ran?", "the dog")
    chosen = both.select(np.array([2, 0]))
    assert (chosen.questions, chosen.labels.tolist(), chosen.rows.tolist()) == (
        [QUESTIONS[2], QUESTIONS[0]],
        [0, 1],
        [3, 1],
    )


GOOD = {"question": "who?", "choices": ["a", "b", "c"], "label": 0}
BROKEN = {
    "empty-question": ({"question": " "}, "question", "is empty"),
    "no-choices": ({"choices": None}, "choices", "is None .NoneType., expected a list of choices"),
    "one-choice": ({"choices": ["a"]}, "choices", "has 1 of the choices, expected two at least"),
    "empty-choice": ({"choices": ["a", ""]}, "choices", "has a choice, number 1, that is empty"),
    "number-choice": ({"choices": [1, "a"]}, "choices", "has a choice, number 0, that is 1 .int."),
    "few-labels": ({"choices": {"text": ["a", "b"], "label": ["A"]}}, "choices", "has 1 labels for 2 choices"),
    "high-label": ({"label": 3}, "label", "is 3, expected a number from 0 to 2, a letter from A to C"),
    "no-label": ({"label": None}, "label", "has no label"),
    "unlabelled": ({"label": -1}, "label", "is -1, which marks an unlabelled row"),
    "real-label": ({"label": 0.5}, "label", "is 0.5 .float., expected the right choice"),
    "true-label": ({"label": True}, "label", "is True .bool., expected the right choice"),
    "other-text": ({"label": "z"}, "label", "is 'z', expected a number from 0 to 2"),
    "ambiguous": (
        {"label": "1", "choices": ["1", "2"]},
        "label",
        "is '1', which may be choice 0 or 1; give its number",
    ),
    "twice": ({"label": "xx", "choices": ["xx", "xx"]}, "label", "is 'xx', which may be choice 0 or 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_row_is_named_or_skipped(tmp_path, name):
    change, column, message = BROKEN[name]
    path = lines(tmp_path / "rows.jsonl", [GOOD, GOOD | change, GOOD])
    with pytest.raises(ValueError, match=rf"rows.jsonl, row 2, column '{column}': {message}"):
        data.read_choices(path)
    found = data.read_choices(path, on_bad_row="skip")
    assert (found.rows.tolist(), found.report.skipped) == ([1, 3], 1)


@pytest.mark.parametrize("label,expected", [(2, 2), ("2", 2), ("C", 2), ("c", 2), ("third", 2), (" A ", 0)])
def test_a_label_is_a_number_a_letter_or_a_text(label, expected):
    found = data.make_choices([["first", "second", "third"]], [label], questions=["which?"])
    assert found.labels.tolist() == [expected]


def test_columns_that_cannot_be_told_are_refused(tmp_path):
    def refused(row, message, columns=None):
        with pytest.raises(ValueError, match=message):
            data.read_choices(lines(tmp_path / "rows.jsonl", [row]), columns=columns)

    refused({"choices": ["a", "b"], "label": 0}, "no column could be the context or the question")
    refused({"question": "a", "label": 0}, "no column could be the choices; choose one; columns found: 'question'")
    refused(GOOD | {"options": ["a", "b"]}, r"several columns could be the choices \('choices', 'options'\)")
    refused(GOOD | {"query": "a"}, r"several columns could be the question \('question', 'query'\)")
    refused({"question": "a", "choices": ["a", "b"]}, "no column could be the label")
    refused(GOOD, "there is no column 'x' for the label", data.ChoiceColumns(label="x"))
    refused(GOOD, "there is no column 'x' for the choices, nor columns numbered so", data.ChoiceColumns(choices="x"))
    with pytest.raises(ValueError, match="1 values of 'label' for 3 rows of choices"):
        data.make_choices(CHOICES, [1], questions=QUESTIONS)
    with pytest.raises(ValueError, match="every row was refused; 1 rows, 1 skipped"):
        data.make_choices([["a"]], [0], questions=["a"], on_bad_row="skip")
    assert data.read_choices(
        lines(tmp_path / "keys.jsonl", [GOOD | {"key": "k-1"}]), columns=data.ChoiceColumns(id="key")
    ).keys == ["k-1"]


def test_batches_hold_the_tokens_of_every_choice(tokenizer):
    rows = data.make_choices(CHOICES * 4, RIGHT * 4, contexts=CONTEXTS * 4, questions=QUESTIONS * 4)
    tokens = data.tokenize_choices(rows, tokenizer, 20)
    batches = data.ChoiceBatches(tokens, rows.labels, batch_size=5, multiple_of=4, seed=1)
    seen = []
    for step in range(batches.steps_per_epoch):
        batch = batches.batch_at(step)
        assert batch["input_ids"].shape[:2] == batch["valid_choices"].shape == (8, 3)
        assert batch["input_ids"].shape[2] in batches.widths
        for row, number in enumerate(batch["ids"]):
            if number < 0:
                assert not batch["valid"][row]
                assert not batch["attention_mask"][row].any()
                continue
            seen.append(int(number))
            assert batch["label"][row] == RIGHT[number % 3]
            pairs = rows.pairs(int(number))
            assert batch["valid_choices"][row].sum() == len(pairs)
            for choice in range(3):
                mask = batch["attention_mask"][row, choice].astype(bool)
                if choice >= len(pairs):
                    assert not mask.any()
                    assert (batch["input_ids"][row, choice] == tokenizer.pad_token_id).all()
                    continue
                # transformers' own tokenization of the pair
                expected = tokenizer(*pairs[choice], truncation=True, max_length=20)
                assert batch["input_ids"][row, choice][mask].tolist() == expected["input_ids"]
                assert batch["token_type_ids"][row, choice][mask].tolist() == expected["token_type_ids"]
    assert sorted(seen) == list(range(12))
    again = data.ChoiceBatches(tokens, rows.labels, batch_size=5, multiple_of=4, seed=1)
    np.testing.assert_array_equal(again.batch_at(1)["input_ids"], batches.batch_at(1)["input_ids"])
    assert again.fingerprint == batches.fingerprint
    other = data.make_choices(CHOICES, [0, 0, 0], contexts=CONTEXTS, questions=QUESTIONS)
    assert data.tokenize_choices(other, tokenizer, 20).tokenized.fingerprint != tokens.tokenized.fingerprint


def test_a_label_beyond_the_choices_of_its_row_is_refused(tokenizer):
    tokens = data.tokenize_choices(data.make_choices(CHOICES, questions=QUESTIONS), tokenizer, 20)
    with pytest.raises(ValueError, match="example 1 has label 2 and 2 choices, expected 0 to 1"):
        data.ChoiceBatches(tokens, [0, 2, 0], batch_size=2)
