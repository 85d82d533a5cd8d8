"""What every recipe's Config is: frozen, strict, read from YAML, and complained about in one line."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """A frozen set of values; an unknown key is an error that names the nearest one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_from_a_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would take `steps: yes` for 1.
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
            raise ValueError("Input should be a number")
        return value

    def to_yaml(self) -> str:
        """The resolved values as YAML that `from_mapping(read_yaml(...))` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def build(kind: type[S], values: Mapping[str, Any], *, source: str = "the configuration") -> S:
    """`kind(**values)`, with one-line errors.

    Raises ValueError naming the key's dotted path, what came and what was expected; for an unknown key, the nearest.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        # An unknown key first: where it is a required one misspelt, both are found wrong.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{source}: unknown key {shown(path)}{nearest(path, keys(kind))}") from None
        if first["type"] == "missing":
            raise ValueError(f"{source}: {path!r} is required") from None
        message = one_line(first["msg"].removeprefix("Value error, "))
        where = f"{shown(path)} is {shown(first['input'])}: " if path else ""
        raise ValueError(f"{source}: {where}{message}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ValueError naming the file (and line) when it holds anything else."""
    content = Path(path).read_bytes()
    try:
        values = yaml.safe_load(content.decode("utf-8"))
    except Exception as error:  # besides YAMLError: odd dates, numbers, tags and nesting fail in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not YAML: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected a mapping of keys to values")
    if strange := [key for key in values if not isinstance(key, str)]:
        raise ValueError(f"{path}: the key {strange[0]!r} is a {type(strange[0]).__name__}; expected a name")
    return values


def keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted paths of all of a Config's keys, groups included."""
    found = []
    for name, field in kind.model_fields.items():
        found.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += keys(field.annotation, f"{prefix}{name}.")
    return found


def shown(value: object) -> str:
    """A value for a message: on one line, and not longer than a line."""
    return _cut(repr(value), 80)


def one_line(text: str) -> str:
    """A text whose lines are one, of 500 characters at most."""
    return _cut(" ".join(text.split()), 500)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def nearest(word: str, known: list[str]) -> str:
    """'; did you mean X?', or '' when nothing is near."""
    # What is one slip away comes first: by its share of common letters alone, `to_pk` would rather be top_p than top_k.
    close = [key for key in known if _is_one_slip(word, key)] or known
    close = difflib.get_close_matches(word, close, n=1, cutoff=0.6 if close is known else 0.0)
    return f"; did you mean {close[0]!r}?" if close else ""


def _is_one_slip(word: str, key: str) -> bool:
    """Whether one letter more, less or another, or two neighbours exchanged, make the one of the other."""
    start = next((place for place, (one, two) in enumerate(zip(word, key, strict=False)) if one != two), None)
    if start is None:
        return abs(len(word) - len(key)) == 1
    one, two = word[start:], key[start:]
    return one[1:] in (two, two[1:]) or one == two[1:] or (one[:2] == two[1::-1] and one[2:] == two[2:])
