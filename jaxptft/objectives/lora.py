"""LoRA: a low-rank addition to each chosen kernel, trained in place of the kernel itself.

    W  =  W_0 + scale * a b          a [inputs, rank], b [rank, outputs],  scale = alpha / rank

Hu et al. 2021, arXiv:2106.09685, section 4.1; with `rank_stabilized` scale = alpha / sqrt(rank) (Kalajdzievski 2023,
arXiv:2312.03732, equation 4). Since b starts at zero the model starts as it was.

The adapters are parameters beside the model's, under `lora`, each at its kernel's path:

    {"backbone": ..., "lora": {"backbone": {"layer_0": {"attention": {"query": {"kernel": {"a": ..., "b": ...}}}}}}}

The sum is taken before the model runs, so any model and any kernel will do, and what is exported is what was trained.
Frozen kernels have no optimizer moments; their gradient is still formed, on its way to a and b.

There is no dropout on the adapters' inputs (`lora_dropout` of `peft`): x W_0 + scale * (m x) a b, with a mask m that
is drawn for every token, which no one kernel gives all tokens. Dropping rows of a would drop the same inputs for the
whole batch, and is another regulariser. The model's own dropout acts on both summands alike, as without adapters.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from jaxptft.objectives.contract import Objective, Params
from jaxptft.objectives.transformed import transformed

LORA = "lora"  # the adapters' key in params


def lora_scale(*, rank: int, alpha: float, rank_stabilized: bool = False) -> float:
    """What the product of an adapter's two matrices is multiplied by.

    Raises:
        ValueError: the rank is below 1, or alpha is not positive.

    >>> lora_scale(rank=4, alpha=8.0), lora_scale(rank=4, alpha=8.0, rank_stabilized=True)
    (2.0, 4.0)
    """
    if rank < 1:
        raise ValueError(f"the rank of an adapter must be at least 1, got {rank}")
    if not (math.isfinite(alpha) and alpha > 0.0):
        raise ValueError(f"alpha must be positive, got {alpha}")
    return alpha / (math.sqrt(rank) if rank_stabilized else rank)


def init_lora(rng: PRNGKeyArray, params: Params, targets: PyTree, *, rank: int) -> Params:
    """Adapters for the kernels that `targets` marks, a tree of bools like params: what is to stand under `lora`.

    a is uniform in +-1/sqrt(inputs), as `peft` draws it, and b is zero. Each kernel's draw follows from the key and its
    path alone.

    Raises:
        ValueError: nothing is marked, something other than a kernel [inputs, outputs] is, or the rank is below 1.
    """
    lora_scale(rank=rank, alpha=1.0)

    def adapters(own: Any, marked: Any, path: str) -> Any:
        if isinstance(own, Mapping):
            inner = {
                name: adapters(value, marked[name], f"{path}/{name}" if path else name) for name, value in own.items()
            }
            return {name: value for name, value in inner.items() if value}
        if not marked:
            return None
        if path.rpartition("/")[2] != "kernel" or len(own.shape) != 2:
            raise ValueError(f"'{path}' of shape {tuple(own.shape)} has no adapter: choose kernels [inputs, outputs]")
        inputs, outputs = own.shape
        bound = 1.0 / math.sqrt(inputs)
        key = jax.random.fold_in(rng, zlib.crc32(path.encode()))
        return {
            "a": jax.random.uniform(key, (inputs, rank), jnp.float32, -bound, bound),
            "b": jnp.zeros((rank, outputs), jnp.float32),
        }

    found = adapters(params, targets, "")
    if not found:
        raise ValueError("no kernel is to have an adapter: mark at least one")
    return found


def merge_lora(params: Params, *, scale: float) -> Params:
    """The model's parameters with their adapters added, and no `lora` among them: what is evaluated and exported.

    Raises:
        ValueError: there are no adapters, one has no kernel, or its shape does not fit.

    >>> kernel, adapter = jnp.ones((2, 2)), {"a": jnp.ones((2, 1)), "b": jnp.array([[0.0, 3.0]])}
    >>> merge_lora({"pooler": {"kernel": kernel}, "lora": {"pooler": {"kernel": adapter}}}, scale=0.5)["pooler"]
    {'kernel': Array([[1. , 2.5],
           [1. , 2.5]], dtype=float32)}
    """
    if LORA not in params:
        raise ValueError(f"params has {sorted(params)} and no '{LORA}': there is nothing to merge")
    return _merged({name: value for name, value in params.items() if name != LORA}, params[LORA], scale, "")


def _merged(own: Any, adapters: Mapping[str, Any], scale: float, path: str) -> Any:
    if isinstance(own, Mapping):
        if strangers := sorted(adapters.keys() - own.keys()):
            raise ValueError(f"there is an adapter for '{f'{path}/{strangers[0]}'.strip('/')}', which params lacks")
        return {
            name: _merged(value, adapters[name], scale, f"{path}/{name}") if name in adapters else value
            for name, value in own.items()
        }
    a, b = adapters["a"], adapters["b"]
    if (a.shape[0], b.shape[1]) != own.shape or a.shape[1] != b.shape[0]:
        raise ValueError(
            f"the adapter of '{path.strip('/')}' is {tuple(a.shape)} by {tuple(b.shape)} where the kernel is "
            f"{tuple(own.shape)}"
        )
    return own + scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def lora(objective: Objective, *, scale: float, targets: PyTree | None = None, rank: int | None = None) -> Objective:
    """`objective` with adapters: its parameters hold `lora`, and what it reads is their sum with the kernels.

    With `targets` (bools like its parameters) and `rank`, `init` makes the adapters too; else add `init_lora`'s to
    imported parameters. What trains is the caller's to say: mask the kernels, and leave `lora` and the heads.
    """

    def adapters(rng: PRNGKeyArray, params: Params) -> Params:
        return {} if targets is None or rank is None else {LORA: init_lora(rng, params, targets, rank=rank)}

    return transformed(
        objective, lambda params, constants, rng, train: merge_lora(params, scale=scale), extra_init=adapters
    )
