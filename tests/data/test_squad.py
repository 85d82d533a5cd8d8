import json

import numpy as np
import pytest

from jaxptft import data

CONTEXT = "Ada Lovelace wrote notes in 1843. 😀 Ärger blieb aus."
# Characters counted by Python, as SQuAD counts them.
ANSWERS = {"who": [("Ada Lovelace", 0), ("Lovelace", 4)], "when": [("1843", 28)], "what": [("😀 Ärger", 34)], "why": []}


def nested(answers=ANSWERS, version="v2.0"):
    """A file of SQuAD's own form, with two paragraphs of one article."""
    asked = [
        {
            "id": f"q-{name}",
            "question": f"{name}?",
            "answers": [{"text": text, "answer_start": start} for text, start in given],
            "is_impossible": not given,
        }
        for name, given in answers.items()
    ]
    paragraphs = [{"context": CONTEXT, "qas": asked[:2]}, {"context": CONTEXT, "qas": asked[2:]}]
    return {"version": version, "data": [{"title": "a", "paragraphs": paragraphs}]}


def flat(answers=ANSWERS):
    return [
        {
            "id": f"q-{name}",
            "question": f"{name}?",
            "context": CONTEXT,
            "answers": {"text": [text for text, _ in given], "answer_start": [start for _, start in given]},
        }
        for name, given in answers.items()
    ]


def write_json(path, content):
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sources(tmp_path):
    import datasets
    import pyarrow
    import pyarrow.parquet

    yield write_json(tmp_path / "squad.json", nested())
    yield write_lines(tmp_path / "flat.jsonl", flat())
    yield write_lines(tmp_path / "flat.json", flat())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat()), tmp_path / "flat.parquet")
    yield tmp_path / "flat.parquet"
    whole = datasets.Dataset.from_list(flat())
    whole.save_to_disk(str(tmp_path / "folder"))
    yield tmp_path / "folder"
    yield whole


def test_every_form_gives_the_same_questions(tmp_path):
    expected = data.make_questions(
        [f"{name}?" for name in ANSWERS], [CONTEXT] * 4, list(ANSWERS.values()), ids=[f"q-{name}" for name in ANSWERS]
    )
    for source in sources(tmp_path):
        found = data.read_questions(source)
        assert found.questions == ["who?", "when?", "what?", "why?"], source
        assert found.answers == [tuple(map(tuple, given)) for given in ANSWERS.values()]
        assert found.ids == ["q-who", "q-when", "q-what", "q-why"]
        assert found.contexts == [CONTEXT] * 4
        assert found.rows.tolist() == [1, 2, 3, 4]
        assert (found.unanswerable, found.report) == (1, data.Report(rows=4))
        assert found.fingerprint == expected.fingerprint
    chosen = expected.select(np.array([2, 0]))
    assert (chosen.questions, chosen.ids, chosen.rows.tolist()) == (["what?", "who?"], ["q-what", "q-who"], [3, 1])
    assert chosen.fingerprint != expected.fingerprint


def test_the_first_version_has_no_flag_and_unlabelled_rows_need_no_answers(tmp_path):
    content = nested({"who": ANSWERS["who"]}, "1.1")
    asked = content["data"][0]["paragraphs"][0]["qas"][0]
    del asked["is_impossible"]
    assert data.read_questions(write_json(tmp_path / "a.json", content)).answers == [tuple(ANSWERS["who"])]
    del asked["answers"]
    found = data.read_questions(write_json(tmp_path / "b.json", content), labelled=False)
    assert (found.answers, found.unanswerable) == (None, 0)
    rows = write_lines(tmp_path / "c.jsonl", [{"q": "who?", "text": CONTEXT}])
    found = data.read_questions(rows, columns=data.QuestionColumns("q", "text"), labelled=False)
    assert (found.questions, found.ids) == (["who?"], None)


GIVEN = {"text": "1843", "answer_start": 28}
# What is wrong with the second question, and what the message says.
BROKEN = {
    "misplaced": ({"answers": [GIVEN | {"answer_start": 27}]}, "where the context has ' 184'; it stands at 28"),
    "absent": ({"answers": [GIVEN | {"text": "1842"}]}, "where the context has '1843'; it stands nowhere in it"),
    "beyond": ({"answers": [GIVEN | {"answer_start": 99}]}, "where the context has no character"),
    "negative": ({"answers": [GIVEN | {"answer_start": -1}]}, "where the context has no character"),
    "empty-answer": ({"answers": [GIVEN | {"text": " "}]}, "hold a text that is empty"),
    "no-text": ({"answers": [{"answer_start": 28}]}, "hold a text that has no value"),
    "text-start": ({"answers": [GIVEN | {"answer_start": "28"}]}, "begin at '28' .str., expected a whole number"),
    "true-start": ({"answers": [GIVEN | {"answer_start": True}]}, "begin at True .bool."),
    "no-answers": ({"answers": None}, "have no value; expected an empty list"),
    "word-answers": ({"answers": "1843"}, "are '1843' .str., expected"),
    "contradiction": ({"answers": [GIVEN], "is_impossible": True}, "are 1, and is_impossible is true"),
    "none": ({"answers": [], "is_impossible": False}, "are none, and is_impossible is false"),
    "flag": ({"answers": [GIVEN], "is_impossible": "no"}, "come with is_impossible 'no'"),
    "empty-question": ({"question": ""}, "is empty"),
    "number-question": ({"question": 7}, "is 7 .int., expected text"),
    "no-id": ({"id": None}, "has no value"),
    "list-id": ({"id": [1]}, r"is \[1\] .list., expected text or a whole number"),
    "duplicate-id": ({"id": "q-who"}, "is 'q-who', as in row 1; every question needs its own"),
    "nul": ({"question": "a\0"}, "holds a NUL byte"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_question_is_named_or_skipped(tmp_path, name):
    change, message = BROKEN[name]
    role = "answers" if "answers" in change else next(iter(change))
    content = nested()
    content["data"][0]["paragraphs"][0]["qas"][1].update(change)
    path = write_json(tmp_path / "squad.json", content)
    place = rf"squad.json, row 2, column 'data\[0\].paragraphs\[0\].qas\[1\].{role}'.*{message}"
    with pytest.raises(ValueError, match=place):
        data.read_questions(path)
    found = data.read_questions(path, on_bad_row="skip")
    assert (found.rows.tolist(), found.report.skipped) == ([1, 3, 4], 1)

    rows = [row | {"is_impossible": not row["answers"]["text"]} for row in flat()]
    rows[1].update(change)
    with pytest.raises(ValueError, match=rf"flat.jsonl, row 2, column '{role}'.*{message}"):
        data.read_questions(write_lines(tmp_path / "flat.jsonl", rows))


def test_answers_of_unequal_numbers_are_refused(tmp_path):
    rows = flat()
    rows[0]["answers"]["answer_start"] = [0]
    with pytest.raises(ValueError, match="row 1, column 'answers': have 2 of text and 1 of answer_start"):
        data.read_questions(write_lines(tmp_path / "flat.jsonl", rows))


def test_files_of_another_form_are_refused(tmp_path):
    content = nested()
    content["data"][0]["paragraphs"][1]["qas"] = {"id": 1}
    with pytest.raises(ValueError, match=r"data\[0\].paragraphs\[1\].qas is .*expected a list of objects"):
        data.read_questions(write_json(tmp_path / "a.json", content))
    with pytest.raises(ValueError, match="has no questions"):
        data.read_questions(write_json(tmp_path / "b.json", {"data": []}))
    with pytest.raises(ValueError, match="has no splits, and split 'train' was asked"):
        data.read_questions(write_json(tmp_path / "c.json", nested()), split="train")
    with pytest.raises(ValueError, match="no column 'context' for the context; columns found: 'question'"):
        data.read_questions(write_lines(tmp_path / "d.jsonl", [{"question": "who?"}]))
    with pytest.raises(ValueError, match="every row was refused; 1 rows, 1 skipped"):
        data.read_questions(
            write_lines(tmp_path / "e.jsonl", [{"question": "", "context": "a", "answers": []}]), on_bad_row="skip"
        )
    with pytest.raises(ValueError, match="1 values of 'context' for 2 questions"):
        data.make_questions(["a", "b"], ["c"])


def test_questions_of_one_context_are_held_out_together(tmp_path):
    contexts = [f"context number {number // 5}" for number in range(100)]
    rows = [
        {"id": number, "question": f"{number}?", "context": context, "answers": {"text": [], "answer_start": []}}
        for number, context in enumerate(contexts)
    ]
    path = write_lines(tmp_path / "rows.jsonl", rows)

    def read(source, split):
        return data.read_questions(source, split=split)

    train, held, origin = data.read_with_held_out(read, path, texts=lambda rows: rows.contexts, seed=3)
    assert (len(train), len(held)) == (90, 10)
    assert not set(train.contexts) & set(held.contexts)
    assert sorted([*train.ids, *held.ids]) == list(range(100))
    assert origin == f"10 rows cut from {path}, seed 3"
    _, other, origin = data.read_with_held_out(read, path, path, texts=lambda rows: rows.contexts)
    assert (len(other), origin) == (100, str(path))

    import datasets

    splits = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows[:8]), "validation": datasets.Dataset.from_list(rows[8:])}
    )
    train, held, origin = data.read_with_held_out(read, splits, texts=lambda rows: rows.contexts)
    assert (len(train), len(held), origin) == (8, 92, "the data set given[validation]")
