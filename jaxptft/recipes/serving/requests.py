"""What a request may hold, by task: one row, or {"rows": [...]}; everything else is refused, naming the field."""

import json
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from jaxptft.data.validate import Refused, check_text
from jaxptft.recipes.settings import nearest, one_line, shown

MOST_CHOICES = 8


class BadRequest(Exception):
    """A request that cannot be answered: an HTTP status of 4xx, and one line on what to change."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


def _sound(text: str) -> str:
    try:
        return check_text(text)
    except Refused as refused:
        raise ValueError(refused.detail) from None


Text = Annotated[str, AfterValidator(_sound)]


class Row(BaseModel):
    """One row to answer."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class TextRow(Row):
    """A text, or a pair of texts."""

    text: Text
    text_pair: Text | None = None
    """the second text, where the model reads pairs"""


class SentenceRow(Row):
    """A text, or a list of words."""

    text: Text | None = None
    tokens: Annotated[list[Text], Field(min_length=1)] | None = None
    """words; in place of a text"""

    @model_validator(mode="after")
    def _one(self) -> "SentenceRow":
        if (self.text is None) == (self.tokens is None):
            raise ValueError("give either text or tokens")
        return self


class QuestionRow(Row):
    """A question, and the text that answers it."""

    question: Text
    context: Text


class ChoicesRow(Row):
    """A context, a question, or both, and what may follow."""

    context: Text | None = None
    question: Text | None = None
    choices: Annotated[list[Text], Field(min_length=2, max_length=MOST_CHOICES)]

    @model_validator(mode="after")
    def _asked(self) -> "ChoicesRow":
        if self.context is None and self.question is None:
            raise ValueError("give a context, a question, or both")
        return self


class ImageRow(Row):
    """An image."""

    image: Annotated[str, Field(min_length=1, json_schema_extra={"contentEncoding": "base64"})]
    """an image file (PNG, JPEG, GIF, BMP, PPM, TIFF or WebP), in base64"""


ROWS: dict[str, type[Row]] = {
    **dict.fromkeys(("classification", "multi_label", "regression"), TextRow),
    "token_classification": SentenceRow,
    "question_answering": QuestionRow,
    "multiple_choice": ChoicesRow,
    "image_classification": ImageRow,
}


class Asked(NamedTuple):
    """The rows of a request, and whether it was one row alone."""

    rows: list[dict[str, Any]]
    single: bool


def parse(body: bytes, kind: type[Row], *, most: int) -> Asked:
    """The rows in a body, `most` of them at most; raises BadRequest."""
    try:
        content = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRequest(400, f"the body is not UTF-8 text (at byte {error.start + 1})") from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(400, f"the body is not JSON: {one_line(str(error))}") from None
    if not isinstance(content, dict):
        wanted = f'{{"{_first(kind)}": ...}} or {{"rows": [...]}}'
        raise BadRequest(422, f"the body is a JSON {_kind(content)}; expected an object such as {wanted}")
    if "rows" not in content:
        return Asked([_row(content, kind, "", ("rows",))], True)
    if others := [name for name in content if name != "rows"]:
        raise BadRequest(422, f"unknown field {shown(others[0])} beside rows; give rows alone, or one row's fields")
    rows = content["rows"]
    if not isinstance(rows, list):
        raise BadRequest(422, f"rows is a JSON {_kind(rows)}; expected a list of objects")
    if not 1 <= len(rows) <= most:
        raise BadRequest(422, f"rows has {len(rows)} rows; expected 1 to {most}")
    return Asked([_row(row, kind, f"rows.{number}") for number, row in enumerate(rows)], False)


def schema(kind: type[Row], *, most: int) -> dict[str, Any]:
    """The JSON schema of a body."""
    row = kind.model_json_schema()
    rows = {"type": "array", "items": row, "minItems": 1, "maxItems": most}
    several = {"type": "object", "properties": {"rows": rows}, "required": ["rows"], "additionalProperties": False}
    return {"anyOf": [row, several]}


def _row(content: Any, kind: type[Row], place: str, also: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise BadRequest(422, f"{place} is a JSON {_kind(content)}; expected an object")
    # First, since where it is a required one misspelt, both are found wrong.
    if unknown := [name for name in content if name not in kind.model_fields]:
        known = [*kind.model_fields, *also]
        at = _named(".".join(part for part in (place, unknown[0]) if part))
        raise BadRequest(422, f"unknown field {at}{nearest(unknown[0], known)}; known: {', '.join(known)}")
    try:
        return kind.model_validate(content).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors()[0]
    at = ".".join(part for part in (place, *map(str, first["loc"])) if part)
    if first["type"] == "missing":
        raise BadRequest(422, f"{at} is required")
    message = one_line(first["msg"].removeprefix("Value error, "))
    if first["loc"] and not message.startswith(("is ", "has ", "holds ")):
        message = f"is {shown(first['input'])}: {message}"
    raise BadRequest(422, f"{at} {message}" if first["loc"] else f"{at or 'the row'}: {message}")


def _named(field: str) -> str:
    return field if field.isprintable() and len(field) <= 80 else shown(field)


def _first(kind: type[Row]) -> str:
    return next(iter(kind.model_fields))


def _kind(value: Any) -> str:
    names = {str: "string", list: "array", dict: "object", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
