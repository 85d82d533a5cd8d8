"""What a forward pass can leave behind beside its result: hidden states, and what attention reads and how it weighs.

Each kind is a Linen collection of its own. Layers put theirs there as they run; where a kind is not asked for, its
collection is not mutable, nothing is put and nothing is computed for it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

OUTPUTS = ("hidden", "attention", "scores", "qkv")
"""In the order of the layers, on a first axis:

hidden [layers + 1, batch, length, width]: the embeddings, then the states after each layer; the last are those that
heads read, behind the final norm where the model has one.
attention [layers, batch, heads, queries, keys]: probabilities, before dropout.
scores, of the same shape: what the softmax is taken of; 0 for keys that a query does not see.
qkv [layers, 3, batch, length, heads, head_width]: queries, keys and values as they are multiplied, so rotated where the
model rotates them.
"""

_ENTRY = "entry"


def wanted(module: nn.Module, kind: str) -> bool:
    return module.is_mutable_collection(kind) and not module.is_initializing()


def put(module: nn.Module, kind: str, value: Array) -> None:
    """Leaves `value` behind, where its kind is asked for."""
    if wanted(module, kind):
        module.sow(kind, _ENTRY, value)


def put_attention(
    module: nn.Module,
    q: Float[Array, "batch length heads head_width"],
    k: Float[Array, "batch length heads head_width"],
    v: Float[Array, "batch length heads head_width"],
    mask: Bool[Array, "batch queries keys"],
    *,
    bias: Float[Array, "heads queries keys"] | None = None,
) -> None:
    """Leaves behind what `layers.attend` is about to compute with these, as far as it is asked for."""
    if wanted(module, "qkv"):
        put(module, "qkv", jnp.stack([q, k, v]))
    if wanted(module, "attention") or wanted(module, "scores"):
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
        scores = scores if bias is None else scores + bias
        seen = mask[:, None]
        masked = jnp.where(seen, scores, -0.7 * jnp.finfo(jnp.float32).max)
        put(module, "attention", jax.nn.softmax(masked, axis=-1))
        put(module, "scores", jnp.where(seen, scores, 0.0))


def check_outputs(outputs: Sequence[str], start: int | None) -> tuple[str, ...]:
    """`outputs` itself. Raises ValueError for an unknown kind, a repeated one, or a model that is entered midway."""
    chosen = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    if unknown := [kind for kind in chosen if kind not in OUTPUTS]:
        raise ValueError(f"outputs has {unknown[0]!r}; expected some of {', '.join(OUTPUTS)}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"outputs are {', '.join(chosen)}; name each once")
    if chosen and start is not None:
        raise ValueError(f"outputs are those of all layers, but the model is entered at layer {start}; leave out start")
    return chosen


def gather(left: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Array]:
    """What was left behind in a pass, stacked in the order of the layers."""
    return {kind: jnp.stack(_in_order(left[kind])) for kind in outputs}


def _in_order(tree: Mapping[str, Any]) -> list[Array]:
    # A layer that works in several places has left several entries, and layers that share are next to each other.
    entries = list(tree.get(_ENTRY, ()))
    for name in sorted((name for name in tree if name != _ENTRY), key=_number):
        entries += _in_order(tree[name])
    return entries


def _number(name: str) -> int:
    digits = re.search(r"\d+$", name)
    return int(digits[0]) if digits else -1
