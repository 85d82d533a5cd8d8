"""Models that read int8 matrices in the place of float ones: projections and tables of rows, dequantized as they work.

In the parameters an int8 matrix is a dict {"int8": [rows, columns], "scale": float32 that multiplies it, and of a
projection with a fixed range of inputs "input": []}, where the matrix was; `jaxptft.export.quantize` makes them. The
architectures know nothing of it: their methods are intercepted. Integer arithmetic: Jacob et al. 2018
(arXiv:1712.05877, section 2.2), symmetric; one scale a token: Yao et al. 2022, ZeroQuant (arXiv:2206.01861,
section 4.1).
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxptft.models.embeddings import Embedding
from jaxptft.models.layers import Dense
from jaxptft.models.model import Params
from jaxptft.models.modernbert_layers import Projection

INT8_MODES = ("weights", "dynamic", "static")
"""Of projections: weights are int8 and inputs float; inputs are rounded to int8 too, each token by its own largest
value; or by one range, which was measured before. Tables are int8 in each."""
Apply = Callable[..., Any]
_MOST = 127  # of both signs, so that zero is zero


def is_int8(node: Any) -> bool:
    """Whether a node of parameters is an int8 matrix."""
    return isinstance(node, Mapping) and "int8" in node and "scale" in node


def dequantize_matrix(node: Mapping[str, Any]) -> Float[Array, "rows columns"]:
    """The float32 matrix that an int8 one stands for."""
    return node["int8"].astype(jnp.float32) * node["scale"]


def with_int8(apply: Apply, mode: str) -> Apply:
    """(params, batch, ...) -> what `apply` gives, int8 matrices being read wherever the parameters have them.

    Raises ValueError for another mode than `INT8_MODES`.
    """
    if mode not in INT8_MODES:
        raise ValueError(f"mode must be one of {', '.join(INT8_MODES)}, got {mode!r}")

    def answer(proceed: Callable[..., Any], args: Any, options: Any, context: Any) -> Any:
        module, method = context.module, context.method_name
        if is_projection(module) and method == "__call__":
            kernel = module.get_variable("params", "kernel")
            if is_int8(kernel):
                return _project(module, kernel, args[0], mode)
        elif isinstance(module, Embedding):
            table = module.get_variable("params", "embedding")
            if is_int8(table) and method == "setup":
                module.embedding = dequantize_matrix(table)
                return None
            if is_int8(table) and method == "__call__" and type(module).__call__ is Embedding.__call__:
                return dequantize_matrix({name: jnp.take(part, args[0], axis=0) for name, part in table.items()})
        return proceed(*args, **options)

    def intercepted(params: Params, batch: Mapping[str, Any], **options: Any) -> Any:
        with nn.intercept_methods(answer):
            return apply(params, batch, **options)

    return intercepted


def int8_paths(apply: Apply, params: Params, batch: Mapping[str, Any]) -> tuple[str, ...]:
    """The paths of the matrices that can be int8: kernels of projections, and tables of rows that are looked up."""
    found: dict[str, None] = {}

    def answer(proceed: Callable[..., Any], args: Any, options: Any, context: Any) -> Any:
        if is_projection(context.module) and context.method_name == "__call__":
            found["/".join((*context.module.path, "kernel"))] = None
        elif isinstance(context.module, Embedding) and context.method_name == "setup":
            found["/".join((*context.module.path, "embedding"))] = None
        return proceed(*args, **options)

    with nn.intercept_methods(answer):
        jax.eval_shape(lambda *given: apply(*given), params, batch)  # a new function, which is traced anew
    return tuple(found)


def input_ranges(
    apply: Apply, params: Params, batch: Mapping[str, Any], *, percentile: float = 100.0
) -> dict[str, Float[Array, ""]]:
    """The largest magnitude among the inputs of each projection, by the path of its kernel; padding counts too.

    Below 100, the magnitude that so many in a hundred of them do not exceed: what is larger will be clipped, and the
    others are rounded more finely (Wu et al. 2020, arXiv:2004.09602, section 5.1).
    """
    found: dict[str, Array] = {}

    def answer(proceed: Callable[..., Any], args: Any, options: Any, context: Any) -> Any:
        if is_projection(context.module) and context.method_name == "__call__":
            path, magnitudes = "/".join((*context.module.path, "kernel")), jnp.abs(args[0]).astype(jnp.float32)
            largest = magnitudes.max() if percentile == 100 else jnp.percentile(magnitudes, percentile)
            found[path] = jnp.maximum(found[path], largest) if path in found else largest
        return proceed(*args, **options)

    with nn.intercept_methods(answer):
        apply(params, batch)
    return found


def is_projection(module: Any) -> bool:
    """Whether a module multiplies by a kernel of its own."""
    return isinstance(module, Dense | Projection | nn.Dense)


def _project(module: Any, kernel: Mapping[str, Any], x: Float[Array, "... inputs"], mode: str) -> Array:
    """What the projection gives, rows flattened as `Dense` has them."""
    dtype, rows = module.dtype or jnp.float32, x.reshape(-1, x.shape[-1])
    if mode == "weights":
        weights = kernel["int8"].astype(dtype)  # exact in bfloat16 too
        projected = jnp.dot(rows.astype(dtype), weights, preferred_element_type=jnp.float32) * kernel["scale"]
    else:
        rows = rows.astype(jnp.float32)
        largest = kernel["input"] if mode == "static" else jnp.abs(rows).max(-1, keepdims=True)
        step = jnp.where(largest == 0, 1.0, largest / _MOST)  # NaN stays NaN
        summed = _int8_dot(jnp.clip(jnp.round(rows / step), -_MOST, _MOST).astype(jnp.int8), kernel["int8"])
        projected = summed.astype(jnp.float32) * (step * kernel["scale"])
    if module.has_variable("params", "bias"):
        projected = projected + module.get_variable("params", "bias")
    return projected.astype(dtype).reshape(*x.shape[:-1], projected.shape[-1])


def _int8_dot(rows: Int[Array, "rows inputs"], kernel: Int[Array, "inputs outputs"]) -> Int[Array, "rows outputs"]:
    return jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
