"""Gates on what projections read: numbers near one, whose gradients tell what heads and neurons matter."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from jaxptft.models.int8 import is_projection

Apply = Callable[..., Any]


def with_gates(apply: Apply, gates: Mapping[str, Float[Array, " blocks"]]) -> Apply:
    """(params, batch, ...) -> what `apply` gives where the inputs of some projections are multiplied by gates.

    `gates` are by the paths of the projections' kernels; the inputs are cut into as many equal blocks as a path has
    gates: with one for each head, what enters an attention's output is gated by head, as Michel et al. 2019
    (arXiv:1905.10650, section 2.3) have it.

    Raises ValueError where the blocks do not come out even, or no projection has a gate's path.
    """
    met: set[str] = set()

    def answer(proceed: Callable[..., Any], args: Any, options: Any, context: Any) -> Any:
        module = context.module
        if context.method_name == "__call__" and is_projection(module):
            path = "/".join((*module.path, "kernel"))
            if path in gates:
                met.add(path)
                return proceed(_gated(args[0], gates[path], path), *args[1:], **options)
        return proceed(*args, **options)

    def intercepted(params: Any, batch: Mapping[str, Any], **options: Any) -> Any:
        met.clear()
        with nn.intercept_methods(answer):
            found = apply(params, batch, **options)
        if unmet := [path for path in gates if path not in met]:
            raise ValueError(f"no projection of the model has the path {unmet[0]}, for which there are gates")
        return found

    return intercepted


def _gated(x: Float[Array, "... inputs"], gate: Float[Array, " blocks"], path: str) -> Float[Array, "... inputs"]:
    if x.shape[-1] % gate.size:
        raise ValueError(f"{gate.size} gates do not divide the {x.shape[-1]} inputs of {path}")
    return (x.reshape(*x.shape[:-1], gate.size, -1) * gate[:, None]).reshape(x.shape)
