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
    """A network as pure functions, which can be traced by `jit`, `grad` and `vmap`.

    init: (rng, batch) -> params. Fresh parameters; only the shapes of `batch` matter.
    apply: (params, batch, *, rng=None, train=False) -> array. `rng` feeds dropout and may be None where nothing drops.

    A network with batch normalization has a third, `statistics`, and two more arguments of `apply`:

    statistics: params -> the sub-tree of their leaves `running_mean` and `running_var`, which no gradient reaches.
    apply: (params, batch, *, rng=None, train=False, statistics=None, axis_name=None). In training it normalizes by the
        statistics of the batch's valid rows, on all devices of `axis_name`; else by `statistics`, or where these are
        None by the leaves in params. Given `statistics` it returns (array, statistics), renewed in training.
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]
    statistics: Callable[[Params], Params] | None = None
