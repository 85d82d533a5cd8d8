"""The pair of pure functions that every architecture is handed out as.

Nothing outside this room knows Linen: whoever trains, converts or exports a model holds a `Model` and a tree of
parameters, and any other pair with the same two signatures can take its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Params = dict[str, Any]
"""Nested plain dicts of arrays: {"backbone": {...}, "<head>": {...}}."""


class Model(NamedTuple):
    """A network as two pure functions; both can be traced by `jit`, `grad` and `vmap`.

    init: (rng, batch) -> params. Fresh parameters; only the shapes of `batch` matter.
    apply: (params, batch, *, rng=None, train=False) -> array. `rng` feeds dropout and may be None where nothing drops.
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]
