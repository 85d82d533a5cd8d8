"""Freezing: which parameters stay as they are, and an optax transformation that keeps them so.

Parameters are `{"backbone": {"embeddings", "layer_0", ..., "pooler"}, "<head>": ...}`; a convolutional backbone has
"stem", "stage_0", ... in their places, and what is said of layers holds for its stages. What to freeze is said by path
patterns, or in words (`trainable_mask`):

    none                          everything is trained
    backbone                      the heads are trained, on fixed features
    all-but-top-2                 the last two layers, what follows them (pooler), and the heads are trained
    backbone/embeddings/**,**/bias    these paths are frozen: patterns, comma-separated
"""

import re
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxptft.optim import patterns as path_patterns

_TOP = re.compile(r"all-but-top-(\d+)")
_LAYER = re.compile(r"(layer|stage)_(\d+)")
_COMMA = re.compile(r",(?![^{]*\})")  # a comma that is not inside braces


def entry_of(backbone: PyTree) -> list[str]:
    """The name of what reads the input, the embeddings or the stem; none where there is no such piece."""
    return [name for name in ("embeddings", "stem") if name in backbone]


def layers_of(backbone: PyTree) -> list[str]:
    """The names of the backbone's layers, or of its stages, from 0 without gaps."""
    found = sorted((kind[1], int(kind[2])) for kind in map(_LAYER.fullmatch, backbone) if kind)
    kind = found[0][0] if found else "layer"
    if found != [(kind, number) for number in range(len(found))]:
        got = [f"{name}_{number}" for name, number in found]
        raise ValueError(f"layers must be numbered {kind}_0, {kind}_1, ... without gaps, got {', '.join(got)}")
    return [f"{kind}_{number}" for _, number in found]


def backbone_of(params: PyTree) -> PyTree:
    """The backbone's own tree; ValueError where params has none."""
    if not isinstance(params, Mapping) or not isinstance(params.get("backbone"), Mapping):
        found = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(f"params must be a dict with a 'backbone' tree, got {found}: name what to freeze by patterns")
    return params["backbone"]


def head_only(params: PyTree) -> tuple[str, ...]:
    """The patterns that freeze the whole backbone, so that only the heads are trained.

    Raises:
        ValueError: params has no backbone.

    >>> head_only({"backbone": {"pooler": {"bias": 0}}, "classifier": {"bias": 0}})
    ('backbone/**',)
    """
    backbone_of(params)
    return ("backbone/**",)


def top_layers(params: PyTree, k: int) -> tuple[str, ...]:
    """The patterns that freeze the embeddings and all layers but the last k.

    What follows the layers (the pooler) and the heads are trained. With k = 0 only those are, with k = all layers only
    the embeddings are frozen.

    Raises:
        ValueError: params has no backbone, or k is not between 0 and its number of layers.

    >>> top_layers({"backbone": {"embeddings": {"norm": 0}, "layer_0": {"bias": 0}, "layer_1": {"bias": 0}}}, 1)
    ('backbone/embeddings/**', 'backbone/layer_0/**')
    """
    backbone = backbone_of(params)
    layers = layers_of(backbone)
    if not 0 <= k <= len(layers):
        raise ValueError(f"cannot train the top {k} layers of a backbone with {len(layers)}: choose 0 to {len(layers)}")
    return tuple(f"backbone/{piece}/**" for piece in [*entry_of(backbone), *layers[: len(layers) - k]])


def _frozen_patterns(params: PyTree, freeze: str | Sequence[str]) -> Sequence[str]:
    if not isinstance(freeze, str):
        return list(freeze)
    if freeze == "none":
        return ()
    if freeze == "backbone":
        return head_only(params)
    if top := _TOP.fullmatch(freeze):
        return top_layers(params, int(top[1]))
    given = [pattern.strip() for pattern in _COMMA.split(freeze)]
    for word in given:
        if word not in path_patterns.paths(params) and not re.search(r"[/*{\[]", word):
            raise ValueError(
                f"freeze '{word}' is neither 'none', 'backbone', 'all-but-top-K' (K a number) nor a path pattern "
                "such as 'backbone/embeddings/**'"
            )
    return given


def trainable_mask(params: PyTree, freeze: str | Sequence[str]) -> PyTree[bool]:
    """A tree like params, True where a leaf is trained; `freeze` is a word or patterns, as at the top of this file.

    Raises:
        ValueError: `freeze` is not understood, a pattern matches nothing, or nothing is left to train.

    >>> trainable_mask({"backbone": {"pooler": {"bias": 0}}, "classifier": {"bias": 0}}, "backbone")
    {'backbone': {'pooler': {'bias': False}}, 'classifier': {'bias': True}}
    """
    frozen = path_patterns.mask(params, _frozen_patterns(params, freeze))
    trainable = jax.tree.map(lambda is_frozen: not is_frozen, frozen)
    if not any(jax.tree.leaves(trainable)):
        raise ValueError(f"freeze {freeze!r} leaves nothing to train: freeze less, or add a head")
    return trainable


def frozen_prefix(trainable: PyTree[bool]) -> int | None:
    """How much of the backbone is wholly frozen from its input on, for a mask made by `trainable_mask`.

    None: not even the embeddings. k: the embeddings and layers 0 to k - 1. layers + 1: the whole backbone, the pooler
    included. This is the part that can run without dropout and on running statistics, and whose outputs never change.

    Raises:
        ValueError: layers are not numbered without gaps.

    >>> backbone = {"embeddings": {"norm": False}, "layer_0": {"bias": False}, "layer_1": {"bias": True}}
    >>> frozen_prefix({"backbone": backbone, "classifier": {"bias": True}})
    1
    """
    backbone = trainable.get("backbone") if isinstance(trainable, Mapping) else None
    if not isinstance(backbone, Mapping) or not entry_of(backbone):
        return None
    layers = layers_of(backbone)
    if not any(jax.tree.leaves(backbone)):
        return len(layers) + 1
    frozen = [not any(jax.tree.leaves(backbone[piece])) for piece in (*entry_of(backbone), *layers)]
    leading = [*frozen, False].index(False)
    return leading - 1 if leading else None


def _stay() -> optax.GradientTransformation:
    """Updates that change no bit: x + -0.0 is x for every x, whereas -0.0 + 0.0 is 0.0."""

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        del params
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, -0.0), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


Frozen = str | Sequence[str] | PyTree[bool] | Callable[[PyTree], PyTree[bool]]


def freeze(inner: optax.GradientTransformation, frozen: Frozen) -> optax.GradientTransformationExtraArgs:
    """`inner` for the other leaves, and updates of zero for the frozen ones, which stay bitwise as they are.

    `frozen` is a pattern, several, a tree of bools (True = frozen) or a function of params that returns one. `inner`
    never sees a frozen leaf: it holds no moments for it, and clipping counts trainable gradients only. (This is
    `optax.partition` with path patterns; `optax.masked(inner, mask)` alone would hand the raw gradients of the masked
    leaves on as their updates.)

    Raises:
        ValueError: at `init`, a pattern matches nothing.

    >>> optimizer = freeze(optax.sgd(1.0), "backbone/**")
    >>> params = {"backbone": {"bias": jnp.array(1.0)}, "classifier": {"bias": jnp.array(1.0)}}
    >>> updates, _ = optimizer.update(params, optimizer.init(params))
    >>> float(updates["backbone"]["bias"]), float(updates["classifier"]["bias"])
    (-0.0, -1.0)
    """

    def labels(tree: PyTree) -> PyTree[str]:
        if isinstance(frozen, str) or (
            isinstance(frozen, list | tuple) and all(isinstance(pattern, str) for pattern in frozen)
        ):
            is_frozen = path_patterns.mask(tree, frozen)
        else:
            is_frozen = frozen(tree) if callable(frozen) else frozen
        return jax.tree.map(lambda held: "frozen" if held else "trained", is_frozen)

    return optax.partition({"trained": inner, "frozen": _stay()}, labels)
