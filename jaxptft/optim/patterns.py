"""Path patterns: the one way in which parameters are named for freezing, decay, learning rates and penalties.

A leaf's path is its keys joined by slashes, `backbone/layer_3/mlp/up/kernel`. In a pattern

    *        stands for any characters within one segment     backbone/layer_*/mlp/up/kernel
    **       for any number of whole segments, none included   backbone/**     **/bias
    {a,b}    for one of the alternatives, within a segment     **/{query,key}/kernel
    [0-3]    for one character of a class, [!0-3] of the rest  backbone/layer_[0-3]/**

and everything else for itself. A pattern has to match a whole path. One that matches nothing is most often a typing
error, so it is an error here too, unless `strict=False`.
"""

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

_TOKEN = re.compile(r"(?P<any>\*)|\{(?P<braces>[^{}]*)\}|\[(?P<negated>!?)(?P<chars>[^\[\]!]+)\]|(?P<plain>[^*{}\[\]])")


def _segment(text: str, pattern: str) -> re.Pattern[str]:
    expression, position = "", 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise ValueError(
                f"pattern '{pattern}': '{text}' has an unclosed, empty or nested bracket: use {{a,b}} or [0-3]"
            )
        if token["any"]:
            expression += ".*"
        elif token["braces"] is not None:
            expression += "(?:" + "|".join(_segment(part, pattern).pattern for part in token["braces"].split(",")) + ")"
        elif token["chars"]:
            chars = re.sub(r"([\\^])", r"\\\1", token["chars"])
            expression += f"[{'^' if token['negated'] else ''}{chars}]"
        else:
            expression += re.escape(token["plain"])
        position = token.end()
    try:
        return re.compile(expression, re.DOTALL)
    except re.error as error:
        raise ValueError(f"pattern '{pattern}': '{text}' is not a pattern ({error}): write classes as [0-3]") from error


@functools.lru_cache(maxsize=1024)
def _compile(pattern: str) -> tuple[re.Pattern[str] | None, ...]:
    """One matcher a segment; None is `**`."""
    if not isinstance(pattern, str):
        raise TypeError(f"a pattern is a string such as 'backbone/**', got {pattern!r}")
    texts = pattern.split("/")
    if "" in texts:
        raise ValueError(f"pattern '{pattern}' is empty or has an empty segment: write it like 'backbone/layer_0/**'")
    for text in texts:
        if "**" in text and text != "**":
            raise ValueError(
                f"pattern '{pattern}': '**' must be a segment of its own, got '{text}'; use '*' within one"
            )
    return tuple(None if text == "**" else _segment(text, pattern) for text in texts)


def _match(segments: Sequence[re.Pattern[str] | None], names: Sequence[str]) -> bool:
    if not segments:
        return not names
    first, rest = segments[0], segments[1:]
    if first is None:
        return any(_match(rest, names[start:]) for start in range(len(names) + 1))
    return bool(names) and first.fullmatch(names[0]) is not None and _match(rest, names[1:])


def matches(pattern: str, path: str) -> bool:
    """Whether the pattern matches the whole path.

    Raises:
        ValueError: the pattern is malformed.

    >>> matches("backbone/**", "backbone/layer_0/mlp/up/kernel"), matches("**/layer_[0-3]/*", "backbone/layer_4/bias")
    (True, False)
    """
    return _match(_compile(pattern), path.split("/"))


def paths(tree: PyTree) -> list[str]:
    """The slash paths of the tree's leaves, in the order of `jax.tree.leaves`; None (absent) has none.

    >>> paths({"pooler": {"kernel": 1, "bias": 2}, "classifier": None})
    ['pooler/bias', 'pooler/kernel']
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def _require_match(pattern: str, names: Sequence[str]) -> None:
    if not any(matches(pattern, name) for name in names):
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
        nearest = "nearest paths: " + ", ".join(f"'{name}'" for name in near) if near else "the tree has no leaves"
        raise ValueError(f"pattern '{pattern}' matches nothing; {nearest}")


def mask(tree: PyTree, patterns: str | Sequence[str], *, strict: bool = True) -> PyTree[bool]:
    """A tree like `tree` with True at the leaves that any of the patterns matches.

    Raises:
        ValueError: a pattern is malformed, or matches nothing although `strict`.

    >>> mask({"pooler": {"kernel": 1, "bias": 2}}, "**/bias")
    {'pooler': {'bias': True, 'kernel': False}}
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    names = paths(tree)
    for pattern in patterns:
        _compile(pattern)
        if strict:
            _require_match(pattern, names)
    chosen = [any(matches(pattern, name) for pattern in patterns) for name in names]
    return jax.tree.unflatten(jax.tree.structure(tree), chosen)


def by_pattern(tree: PyTree, values: Mapping[str, Any], *, default: Any, strict: bool = True) -> PyTree:
    """A tree like `tree` with, at each leaf, the value of the first pattern that matches it, or the default.

    Raises:
        ValueError: a pattern is malformed; or, when `strict`, it matches nothing, or nothing that the patterns before
            it had not taken already (then it would silently have no effect).

    >>> by_pattern({"layer_0": {"bias": 1}, "pooler": {"bias": 2}}, {"layer_0/**": 0.1, "**/bias": 0.5}, default=1.0)
    {'layer_0': {'bias': 0.1}, 'pooler': {'bias': 0.5}}
    """
    names = paths(tree)
    first: dict[str, str] = {}
    for pattern in values:
        taken = [name for name in names if matches(pattern, name)]
        fresh = [name for name in taken if name not in first]
        if strict:
            _require_match(pattern, names)
            if not fresh:
                raise ValueError(
                    f"pattern '{pattern}' comes too late: '{first[taken[0]]}' before it takes '{taken[0]}', "
                    "and the first match wins; put the narrower pattern first"
                )
        first.update(dict.fromkeys(fresh, pattern))
    leaves = [values[first[name]] if name in first else default for name in names]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
