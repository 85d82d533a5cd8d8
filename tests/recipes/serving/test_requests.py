"""What bodies are taken, and what is said of the others."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxptft.recipes.serving.requests import ROWS, BadRequest, parse, schema

TEXT, SENTENCE, QUESTION, CHOICES = (
    ROWS[task] for task in ("classification", "token_classification", "question_answering", "multiple_choice")
)


def test_one_row_or_several():
    assert parse(b'{"text": "a b"}', TEXT, most=2) == ([{"text": "a b"}], True)
    several = {"rows": [{"text": "a", "text_pair": "b"}, {"text": "c", "text_pair": None}]}
    assert parse(json.dumps(several).encode(), TEXT, most=2) == (
        [{"text": "a", "text_pair": "b"}, {"text": "c"}],
        False,
    )
    assert parse('{"tokens": ["ü", "b"]}'.encode(), SENTENCE, most=1).rows == [{"tokens": ["ü", "b"]}]
    row = {"question": "q", "choices": ["a", "b"]}
    assert parse(json.dumps(row).encode(), CHOICES, most=1).rows == [row]


@pytest.mark.parametrize(
    "kind, body, status, message",
    [
        (TEXT, b"", 400, "the body is not JSON: Expecting value"),
        (TEXT, b'{"text": "a"', 400, "the body is not JSON"),
        (TEXT, b'{"text": "\xff"}', 400, "the body is not UTF-8 text (at byte 11)"),
        (TEXT, b"[" * 100_000, 400, "the body is not JSON"),
        (TEXT, b"9" * 5_000, 400, "the body is not JSON"),
        (TEXT, b"[]", 422, 'the body is a JSON array; expected an object such as {"text": ...} or {"rows": [...]}'),
        (TEXT, b'"text"', 422, "the body is a JSON string"),
        (TEXT, b"null", 422, "the body is a JSON null"),
        (TEXT, b"{}", 422, "text is required"),
        (TEXT, b'{"txt": "a"}', 422, "unknown field txt; did you mean 'text'?; known: text, text_pair, rows"),
        (TEXT, b'{"row": []}', 422, "unknown field row; did you mean 'rows'?"),
        (TEXT, b'{"text": "a", "x\\ud800": 1}', 422, "unknown field 'x\\ud800'"),
        (TEXT, b'{"text": 5}', 422, "text is 5: Input should be a valid string"),
        (TEXT, b'{"text": null}', 422, "text is None: Input should be a valid string"),
        (TEXT, b'{"text": ""}', 422, "text is empty"),
        (TEXT, b'{"text": " \\n"}', 422, "text is empty"),
        (TEXT, b'{"text": "a\\u0000b"}', 422, "text holds a NUL byte (character 2)"),
        (TEXT, b'{"text": "\\ud800"}', 422, "text is "),
        (TEXT, b'{"text": "a", "text_pair": 1.5}', 422, "text_pair is 1.5: Input should be a valid string"),
        (TEXT, b'{"rows": {"text": "a"}}', 422, "rows is a JSON object; expected a list of objects"),
        (TEXT, b'{"rows": []}', 422, "rows has 0 rows; expected 1 to 2"),
        (TEXT, b'{"rows": [{"text": "a"}, {"text": "a"}, {"text": "a"}]}', 422, "rows has 3 rows; expected 1 to 2"),
        (TEXT, b'{"rows": [{"text": "a"}], "text": "a"}', 422, "unknown field 'text' beside rows"),
        (TEXT, b'{"rows": [{"text": "a"}, "b"]}', 422, "rows.1 is a JSON string; expected an object"),
        (
            TEXT,
            b'{"rows": [{"text": "a"}, {"text": true}]}',
            422,
            "rows.1.text is True: Input should be a valid string",
        ),
        (SENTENCE, b'{"text": "a", "tokens": ["a"]}', 422, "give either text or tokens"),
        (SENTENCE, b'{"rows": [{}]}', 422, "rows.0: give either text or tokens"),
        (SENTENCE, b'{"tokens": []}', 422, "tokens is []: List should have at least 1 item"),
        (SENTENCE, b'{"tokens": ["a", 1]}', 422, "tokens.1 is 1: Input should be a valid string"),
        (QUESTION, b'{"question": "a"}', 422, "context is required"),
        (CHOICES, b'{"choices": ["a", "b"]}', 422, "give a context, a question, or both"),
        (CHOICES, b'{"question": "q", "choices": ["a"]}', 422, "choices is ['a']: List should have at least 2 items"),
    ],
)
def test_what_is_wrong_is_named(kind, body, status, message):
    with pytest.raises(BadRequest) as refused:
        parse(body, kind, most=2)
    assert refused.value.status == status
    assert message in refused.value.message
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 700


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["text", "rows", "choices"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.sampled_from(["text", "text_pair", "rows", "tokens", "choices"]), inner)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", [TEXT, SENTENCE, QUESTION, CHOICES])
@given(content=JSON)
def test_any_json_is_rows_or_one_line_that_can_be_sent(kind, content):
    try:
        rows, refusal = parse(json.dumps(content).encode(), kind, most=3).rows, None
    except BadRequest as error:
        rows, refusal = [], error
    if refusal is None:
        assert 1 <= len(rows) <= 3
        assert all(set(row) <= set(kind.model_fields) for row in rows)
    else:
        assert refusal.status in (400, 422)
        assert refusal.message.isprintable()


def test_the_schema_says_what_is_taken():
    told = schema(TEXT, most=5)
    row, several = told["anyOf"]
    assert (row["required"], row["additionalProperties"]) == (["text"], False)
    assert several["properties"]["rows"]["maxItems"] == 5
