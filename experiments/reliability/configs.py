"""Configs of every recipe, of drawn values: 10,000 of them in the full lane.

A draw gives some keys of a Config values that may or may not be of use, and says them as a mapping, as a YAML file or
as flags of the command line. It is survived where it makes a Config that is equal to what its own YAML makes, or where
one line names a key; within `SECONDS`. A quarter of the draws misspell one key, by one letter more, less, exchanged or
another: the line must then name that key as the nearest, or another key that is one such edit away too.
"""

import importlib
import math
import re
import signal
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import yaml
from trials import Trials, main

TRIALS = {"fast": 500, "full": 10_000}
SECONDS = 5.0
LONGEST = 1000  # characters of a message
LETTERS = "abcdefghijklmnopqrstuvwxyz_0123456789"
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 100, 10**12, 10**400, 0.1, 0.5, 1.5, -0.5, 1e-300, 1e308, math.nan, math.inf,
    -math.inf, "", " ", "none", "5e-5", "1", "nan", "true", "balanced", "a\nb", "\x00", "\u2028", "x" * 10_000, "../..",
    "~", "--seed", date(2020, 1, 1), b"\xff", [], [1], ["a"], [None], [[1, 2]], [{}], {}, {"a": 1}, {"a": {"b": []}},
    {1: 2}, {"": ""}, {"a\nb": 1}, {"**": -1.0},
)  # fmt: skip


_REQUIRED: dict[Any, Any] = {tuple: ["a"], dict: {"steps": [1, 2]}}


class _Slow(Exception):
    pass


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise _Slow

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _pick(rng: np.random.Generator, of: Any) -> Any:
    return of[int(rng.integers(len(of)))]


def _fields(kind: Any, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every key of a Config with its annotation, the groups' own included."""
    from pydantic import BaseModel

    found: dict[tuple[str, ...], Any] = {}
    for name, field in kind.model_fields.items():
        path = (*prefix, name)
        found[path] = field.annotation
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _fields(field.annotation, path)
    return found


def _plausible(rng: np.random.Generator, annotation: Any) -> Any:
    """A value of the kind that a key takes, in its range or out of it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _pick(rng, inner)
    if origin in (Union, types.UnionType):
        return _plausible(rng, _pick(rng, inner))
    if origin is tuple:
        return [_plausible(rng, inner[0]) for _ in range(int(rng.integers(4)))]
    if origin is dict:
        return {_pick(rng, ("**", "backbone/**", "a")): _plausible(rng, inner[1]) for _ in range(int(rng.integers(3)))}
    if annotation is bool:
        return bool(rng.integers(2))
    if annotation is int:
        return int(_pick(rng, (0, 1, 2, 3, 16, 512, -1)))
    if annotation is float:
        return float(_pick(rng, (0.0, 0.1, 0.5, 0.9, 1.0, 2.0, 1e-5, -0.1)))
    return _pick(rng, ("a", "a.csv", "classification", "mlm", "adamw", "0-3", "linear"))


def _set(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    values[path[-1]] = value


def one_edit(rng: np.random.Generator, word: str) -> str:
    """The word with one letter more, less, exchanged with the next, or another."""
    place = int(rng.integers(len(word)))
    letter = _pick(rng, LETTERS)
    ways = (
        word[:place] + letter + word[place:],
        word[:place] + word[place + 1 :],
        word[:place] + letter + word[place + 1 :],
        word[:place] + word[place + 1 : place + 2] + word[place] + word[place + 2 :],
    )
    return _pick(rng, ways)


def is_one_edit(one: str, other: str) -> bool:
    """Whether `one_edit` may lead from one to the other."""
    if len(one) == len(other):
        differs = [place for place in range(len(one)) if one[place] != other[place]]
        if len(differs) == 2 and differs[1] == differs[0] + 1:
            return one[differs[0]] == other[differs[1]] and one[differs[1]] == other[differs[0]]
        return len(differs) == 1
    short, long = sorted((one, other), key=len)
    return len(long) == len(short) + 1 and any(long[:at] + long[at + 1 :] == short for at in range(len(long)))


class _Draw:
    """Values for one Config: what is said, how, and which key was misspelt."""

    def __init__(self, rng: np.random.Generator, kind: Any, name: str) -> None:
        self.kind, self.name = kind, name
        self.way = str(rng.choice(["mapping", "file", "flags"], p=[0.5, 0.45, 0.05]))
        if name == "sweep" and self.way == "flags":  # whose search, a mapping, is not told by flags
            self.way = "file"
        fields = _fields(kind)
        self.known = {".".join(path) for path in fields}
        self.values: dict[str, Any] = {}
        for key, field in kind.model_fields.items():
            if field.is_required() and rng.random() < 0.97:
                self.values[key] = _REQUIRED.get(get_origin(field.annotation) or field.annotation, "a")
        self.misspelt: str | None = None
        if rng.random() < 0.25:
            self._misspell(rng, list(fields))
            return
        for _ in range(int(rng.integers(1, 5))):
            path = _pick(rng, list(fields))
            _set(self.values, path, _plausible(rng, fields[path]) if rng.random() < 0.5 else _pick(rng, ODD))
        if rng.random() < 0.05:
            _set(self.values, (_pick(rng, ("", "a\nb", "a.b", "Seed", "x" * 5000, "é")),), 1)

    def _misspell(self, rng: np.random.Generator, paths: list[tuple[str, ...]]) -> None:
        for _ in range(1000):
            path = _pick(rng, paths)
            at = int(rng.integers(len(path)))
            word = one_edit(rng, path[at])
            wrong = ".".join((*path[:at], word))
            if word and not word.startswith(("_", "no_")) and wrong not in self.known:
                break
        else:
            raise AssertionError(f"no misspelling of a key of {self.name} was found")
        self.misspelt = wrong
        value = 1 if at + 1 == len(path) else {}
        _set(self.values, (*path[:at], word), value)

    def flags(self, values: dict[str, Any] | None = None, prefix: str = "") -> list[str]:
        """The values as the command line has them."""
        said: list[str] = []
        for key, value in (self.values if values is None else values).items():
            flag = f"--{prefix}{key}".replace("_", "-")
            if isinstance(value, dict) and value:
                said += self.flags(value, f"{prefix}{key}.") if all(isinstance(k, str) for k in value) else [flag]
            elif isinstance(value, list | tuple):
                said += [flag, *map(str, value)]
            else:
                said += [flag] if value is True or value == {} else [flag, str(value)]
        return said

    def make(self, folder: Path) -> Any:
        """The Config, by the way drawn."""
        from jaxptft.cli import _parse
        from jaxptft.recipes.settings import build, read_yaml

        if self.way == "flags":
            return _parse(self.kind, self.name, self.flags())
        if self.way == "mapping":
            return build(self.kind, self.values, source="there")
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.values, allow_unicode=True), encoding="utf-8")
        return build(self.kind, read_yaml(path), source=str(path))


def _outcome(draw: _Draw, folder: Path) -> tuple[str, str]:
    """How it ended, "made" or "refused", and what was not survived, if anything."""
    from jaxptft.recipes.settings import build, read_yaml

    try:
        with _alarm():
            config = draw.make(folder)
    except ValueError as error:
        return "refused", _fault(draw, error)
    except FileNotFoundError as error:  # of --resume and --config
        return "refused", "" if "\n" not in str(error) else f"several lines: {error}"
    except _Slow:
        return "refused", f"took more than {SECONDS} s"
    except (Exception, SystemExit) as error:
        return "refused", f"{type(error).__name__}: {error}"
    if draw.misspelt is not None:
        return "made", f"a Config was made of the unknown key {draw.misspelt!r}"
    (folder / "again.yaml").write_text(config.to_yaml(), encoding="utf-8")
    again = build(draw.kind, read_yaml(folder / "again.yaml"))
    return "made", "" if again == config else "its own YAML makes another Config"


def _fault(draw: _Draw, error: ValueError) -> str:
    message = str(error)
    if type(error) is not ValueError:
        return f"{type(error).__name__}: {message}"
    if len(message.splitlines()) != 1 or len(message) > LONGEST:
        return f"{len(message.splitlines())} lines, {len(message)} characters: {message}"
    if draw.misspelt is None:
        if draw.way == "flags" and any(flag[:70] in message for flag in draw.flags() if flag.startswith("-")):
            return ""
        words = set(re.findall(r"\w+", message.lower().replace("--", "").replace("-", "_")))
        names = {part for key in draw.known for part in key.split(".")} | set(map(str, draw.values))
        return "" if words & names or any(repr(name)[1:20] in message for name in draw.values) else f"no key: {message}"
    told = re.search(r"unknown (?:key|flag) '?(\S+?)'?(?:; did you mean '(\S+)'\?|$|;)", message)
    if told is None:
        return f"{draw.misspelt!r} is not called unknown: {message}"
    meant = (told[2] or "nothing").replace("-", "_")
    near = sorted(key for key in draw.known if is_one_edit(key, draw.misspelt))
    return "" if meant in near else f"{draw.misspelt!r} is said to mean {meant}, expected {' or '.join(near)}"


def config_fuzz(trials: Trials, lane: str) -> None:
    """Every recipe's Config in turn."""
    from jaxptft.recipes import COMMANDS
    from jaxptft.recipes.settings import Settings

    kinds = {name: getattr(importlib.import_module(one.module), one.config) for name, one in COMMANDS.items()}
    assert all(issubclass(kind, Settings) for kind in kinds.values())
    trials.facts["configs"] = len(kinds)
    counts = {"made": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(TRIALS[lane]):
            name = list(kinds)[number % len(kinds)]
            draw = _Draw(np.random.default_rng((19, number)), kinds[name], name)
            ended, fault = _outcome(draw, Path(temporary))
            counts[ended] += 1
            said = f"trial {number} ({name}, by {draw.way}): {fault}"
            trials.check(not fault, said, of="misspelt" if draw.misspelt else draw.way)
    trials.facts |= counts


if __name__ == "__main__":
    sys.exit(main({"config_fuzz": config_fuzz}, script=__file__))
