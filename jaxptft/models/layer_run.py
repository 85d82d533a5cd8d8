"""How a transformer's layers run: one after the other or as one scanned body, and what of them is computed again.

With `scan_layers`, layers that are alike and stand next to each other are traced and compiled once: `jax.lax.scan` runs
them over their parameters, which are stacked as the step runs. What is held, saved, frozen and differentiated stays
each layer's own. `remat` says what the backward pass computes anew in place of keeping it (Chen et al. 2016, "Training
Deep Nets with Sublinear Memory Cost", arXiv:1604.06174), layer by layer. Both give the outputs and gradients of layers
that run one by one, but for the last bits, and dropout draws the same. XLA on CPU merges what is computed twice unless
that is within a scan, so that there `remat` saves memory with `scan_layers` alone.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.configurations import config as flax_config
from jaxtyping import Array, Float

from jaxptft.models.fields import check_choice, check_flags
from jaxptft.models.layers import Dropout
from jaxptft.models.outputs import OUTPUTS, put, wanted

REMAT: Mapping[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What is kept of a layer for its backward pass, by the names that configs carry: everything; what comes in alone; its
matrix products too; of these the projections alone, and not attention's scores and sums."""

_OF_LAYERS = tuple(kind for kind in OUTPUTS if kind != "hidden")


class Place(NamedTuple):
    """A layer where it works: `active` says whether it drops, `own` which of two kinds it is, where there are two."""

    layer: nn.Module
    active: bool
    own: bool = False


Call = Callable[[Any, Array, bool, Any], Array]
"""(layer, hidden, active, own) -> hidden; within a scan over both kinds `own` is an array, else a bool."""


def check_layer_run(config: Any) -> None:
    """ValueError for another `scan_layers` or `remat` than there is."""
    check_flags(config, "scan_layers")
    check_choice(config, "remat", REMAT)


def run_layers(
    owner: nn.Module,
    places: Sequence[Place],
    hidden: Float[Array, "batch length width"],
    call: Call,
    *,
    scan_layers: bool,
    remat: str,
    put_last: bool = False,
) -> Float[Array, "batch length width"]:
    """The hidden states after all places, whose layers are `owner`'s; `call` runs one of them.

    The states after each are left behind as `owner`'s outputs, the last of them where `put_last`.
    """
    left_behind = len(places) if put_last else len(places) - 1
    if owner.is_initializing() or not (scan_layers or remat != "none"):
        for number, place in enumerate(places):
            hidden = call(place.layer, hidden, place.active, place.own)
            if number < left_behind:
                put(owner, "hidden", hidden)
        return hidden
    number = 0
    for run in _runs(places, both_kinds=scan_layers):
        hidden, states, left = _run(owner, run, hidden, call, scan_layers and len(run) > 1, remat)
        for place, inner in zip(run, left, strict=True):
            for kind, entry in inner:
                put(place.layer, kind, entry)
        for state in states[: max(0, left_behind - number)]:
            put(owner, "hidden", state)
        number += len(run)
    return hidden


def _runs(places: Sequence[Place], *, both_kinds: bool) -> list[list[Place]]:
    """The places in runs of layers that are alike: all different ones, or all one and the same."""
    runs: list[list[Place]] = []
    for place in places:
        if runs and (both_kinds or place.own == runs[-1][-1].own) and _joins(runs[-1], place):
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _joins(run: list[Place], place: Place) -> bool:
    if place.active != run[-1].active or _kind(place.layer) != _kind(run[-1].layer):
        return False
    return len(run) == 1 or (place.layer is run[-1].layer) == _is_shared(run)


def _is_shared(run: list[Place]) -> bool:
    return len(run) > 1 and run[0].layer is run[1].layer


def _kind(layer: nn.Module) -> Any:
    """What layers have in common that one body can compute."""
    return _unbound(layer), jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), _params(layer))


def _unbound(layer: nn.Module) -> nn.Module:
    return layer.clone(parent=None, name=None)


def _params(layer: nn.Module) -> Any:
    return layer.variables["params"]


def _run(
    owner: nn.Module, run: list[Place], hidden: Array, call: Call, scanned: bool, remat: str
) -> tuple[Array, Any, list[list[tuple[str, Array]]]]:
    """The states after the run, those after each of its layers where they are asked for, and what each left behind."""
    kinds, keep = [kind for kind in _OF_LAYERS if wanted(owner, kind)], wanted(owner, "hidden")
    layer, active, shared, keys = _unbound(run[0].layer), run[0].active, _is_shared(run), _Keys(run)
    mixed = len({place.own for place in run}) > 1

    def one(params: Any, hidden: Array, number: Array, own: Any) -> tuple[Array, Any]:
        own = own if mixed else run[0].own
        work = nn.apply(lambda layer, hidden: call(layer, hidden, active, own), layer, mutable=kinds)
        with nn.intercept_methods(keys.given(number)):
            return work({"params": params}, hidden)

    numbers, owns = jnp.arange(len(run)), jnp.array([place.own for place in run])
    params = [_params(place.layer) for place in run]
    if active and shared:
        keys.count(one, params[0], hidden, numbers[0], owns[0])
    if remat != "none":
        # A scan's body needs no guard against merging what is computed twice.
        one = jax.checkpoint(one, policy=REMAT[remat], prevent_cse=not scanned)
    states, left = [], []
    if scanned:
        stacked = None if shared else jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

        def body(hidden: Array, of_place: Any) -> tuple[Array, Any]:
            own_params, number, own = of_place
            hidden, left = one(params[0] if shared else own_params, hidden, number, own)
            return hidden, (hidden if keep else None, left)

        hidden, (states, whole) = jax.lax.scan(body, hidden, (stacked, numbers, owns))
        left = [jax.tree.map(lambda leaf, number=number: leaf[number], whole) for number in range(len(run))]
    else:
        for place, number, own in zip(params, numbers, owns, strict=True):
            hidden, found = one(place, hidden, number, own)
            states.append(hidden)
            left.append(found)
    inner = [[(kind, leaf) for kind in kinds for leaf in jax.tree.leaves(found.get(kind, {}))] for found in left]
    return hidden, states if keep else [], inner


class _Keys:
    """The keys that dropout would draw by, were the layers of a run called one by one.

    Linen folds a hash of the module's path and of how often it has asked into the key that the model was given.
    """

    def __init__(self, run: list[Place]):
        streams: list[Any] = [place.layer.scope and place.layer.scope.rngs.get("dropout") for place in run]
        self._streams = streams  # flax.core.scope.LazyRng
        self._asked_a_call: Counter[tuple[str, ...]] = Counter()  # by path, of a layer that works in several places

    def given(self, number: Array) -> Callable[..., Any]:
        """What answers in the place of Dropout.key in the `number`-th layer of the run, which may be traced."""
        asked: Counter[tuple[str, ...]] = Counter()

        def answer(proceed: Callable[..., Any], args: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
            module = context.module
            if not isinstance(module, Dropout) or context.method_name != "key" or None in self._streams:
                return proceed(*args, **options)
            asked[module.path] += 1
            words = [
                _word((*stream.suffix, *module.path, asked[module.path] + place * self._asked_a_call[module.path]))
                for place, stream in enumerate(self._streams)
            ]
            return jax.random.fold_in(self._streams[0].rng, jnp.asarray(np.array(words, np.uint32))[number])

        self._asked = asked
        return answer

    def count(self, one: Callable[..., Any], *inputs: Any) -> None:
        """Learns how often each module of a layer asks in a call, for one that is called again."""
        jax.eval_shape(one, *inputs)
        self._asked_a_call = Counter(self._asked)


def _word(names: tuple[str | int, ...]) -> int:
    """Linen's hash of names and numbers (flax.core.scope)."""
    found = hashlib.sha1(usedforsecurity=False)
    for name in names:
        if flax_config.flax_fix_rng_separator:
            found.update(b"\00")
        raw = name.encode() if isinstance(name, str) else name.to_bytes((name.bit_length() + 7) // 8, "big")
        found.update(raw)
    return int.from_bytes(found.digest()[:4], "big")
