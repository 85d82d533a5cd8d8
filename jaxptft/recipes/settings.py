"""What every recipe's Config is: frozen, strict, read from YAML, and complained about in one line."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """A frozen set of values; an unknown key is an error that names the nearest one."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)

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
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{source}: unknown key {path!r}{nearest(path, keys(kind))}") from None
        if first["type"] == "missing":
            raise ValueError(f"{source}: {path!r} is required") from None
        message = first["msg"].removeprefix("Value error, ")
        where = f"{path!r} is {first['input']!r}: " if path else ""
        raise ValueError(f"{source}: {where}{message}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ValueError naming the file (and line) when it holds anything else."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected a mapping of keys to values")
    return values


def keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted paths of all of a Config's keys, groups included."""
    found = []
    for name, field in kind.model_fields.items():
        found.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += keys(field.annotation, f"{prefix}{name}.")
    return found


def nearest(word: str, known: list[str]) -> str:
    """'; did you mean X?', or '' when nothing is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
