"""ONNX through jax2onnx, checked with onnxruntime: the weights are constants of the graph, as readers of ONNX expect.

Batch and length are free where jax2onnx can convert the model so, and what it converts agrees with the model at two
sizes; else the length is fixed, then the batch too.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from jaxptft.export.program import shapes
from jaxptft.export.scoring import Input, Scores
from jaxptft.models import Params

GRAPH = "model.onnx"
OPSET = 21
_TWO_GIGABYTES = 2_000_000_000  # which a protobuf must stay below
_NEAR = 1e-3  # of what is converted wrongly, the difference is of the order of the values


def require_onnx() -> None:
    """ValueError where a package is absent that exports to ONNX, or checks it."""
    for name in ("jax2onnx", "onnx", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            raise ValueError(f"the format onnx needs the package {name}; pip install 'jaxptft[onnx]'") from None


def write_onnx(
    folder: Path,
    function: Scores,
    params: Params,
    inputs: Mapping[str, Input],
    *,
    limits: Mapping[str, int],
    sizes: Mapping[str, int],
    probe: Callable[[Mapping[str, int]], Mapping[str, np.ndarray]],
) -> dict[str, Input]:
    """Write model.onnx; returns the inputs it has, of which axes may have become sizes.

    `sizes` are those that free axes get where they cannot be free. `probe` makes inputs of given sizes of the free
    axes, by which what was converted is compared with the function.

    Raises ValueError where jax2onnx cannot convert the model at any sizes.
    """
    device = jax.tree.map(jnp.asarray, params)  # numpy's arrays cannot be sliced by a symbol
    expected = jax.jit(function)
    problem = ""
    for fixed in _ways(inputs):
        known = {axis: sizes[axis] for axis in fixed}
        given = {
            name: Input(tuple(known.get(axis, axis) for axis in one.axes), one.dtype)  # type: ignore[arg-type]
            for name, one in inputs.items()
        }
        try:
            _convert(folder, function, device, given, limits)
            graph = Graph(folder, given)
            for batch, length in ((2, 12), (3, 7)):
                length = min(length, limits.get("length", length))
                wanted = {"batch": batch, "length": length, "choices": batch} | known
                rows = probe(wanted)
                found = graph(rows)
                for name, value in expected(device, rows).items():
                    difference = float(np.abs(found[name] - np.asarray(value)).max())
                    if not difference <= _NEAR * max(1.0, float(np.abs(value).max())):
                        raise ValueError(f"its {name} differ by {difference:.2g} at {wanted}")
            return given
        except Exception as error:  # jax2onnx and onnxruntime raise all kinds where they cannot do something
            problem = problem or " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise ValueError(f"jax2onnx cannot convert this model ({problem}); choose another format")


class Graph:
    """A written graph in onnxruntime on the CPU; call it with inputs of any size, which it gets at sizes of its own."""

    def __init__(self, folder: Path, inputs: Mapping[str, Input]):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        path = str(folder / GRAPH)
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [one.name for one in self._session.get_outputs()]
        self._read = {one.name: inputs[one.name] for one in self._session.get_inputs()}

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name; rows, texts and choices are padded to sizes that are fixed, and cut again."""
        given = {name: np.asarray(inputs[name]) for name in self._read}
        first, spec = next(iter(given.values())), next(iter(self._read.values()))
        rows = spec.axes[0] if isinstance(spec.axes[0], int) else len(first)
        parts = []
        for start in range(0, len(first), rows):
            fed = {name: _padded(array[start : start + rows], self._read[name].axes) for name, array in given.items()}
            parts.append(self._session.run(self._names, fed))
        found = {
            name: np.concatenate(arrays) for name, arrays in zip(self._names, zip(*parts, strict=True), strict=True)
        }
        for name, array in found.items():
            # [batch, length, outputs] of [batch, length], and [batch, choices] of [batch, choices, length].
            follows = first.ndim == 3 or (first.ndim == 2 and array.ndim == 3)
            found[name] = array[: len(first), : first.shape[1]] if follows else array[: len(first)]
        return found


def _padded(array: np.ndarray, axes: Sequence[str | int]) -> np.ndarray:
    """The array with zeros behind it up to the axes that are sizes."""
    return np.pad(
        array, [(0, axis - size if isinstance(axis, int) else 0) for axis, size in zip(axes, array.shape, strict=True)]
    )


def _ways(inputs: Mapping[str, Input]) -> Iterator[tuple[str, ...]]:
    """Which free axes are fixed: none, the length, all."""
    free = list(dict.fromkeys(axis for given in inputs.values() for axis in given.axes if isinstance(axis, str)))
    yield ()
    if "length" in free:
        yield tuple(axis for axis in free if axis != "batch")
    yield tuple(free)


def _convert(
    folder: Path, function: Scores, params: Params, inputs: Mapping[str, Input], limits: Mapping[str, int]
) -> None:
    """Write the graph."""
    import onnx
    from jax2onnx import to_onnx

    specs = list(shapes(inputs, limits).values())
    names: list[str] = list(jax.eval_shape(function, params, dict(zip(inputs, specs, strict=True))))

    def ordered(params, *arrays):
        found = function(params, dict(zip(inputs, arrays, strict=True)))
        return tuple(found[name] for name in names)

    # Traced here, since jax2onnx traces with functions of jax replaced by its own, which know fewer sizes.
    primitives = jaxpr_as_fun(jax.make_jaxpr(ordered)(params, *specs))
    leaves = jax.tree.leaves(params)

    def positional(*arrays):
        return tuple(primitives(*leaves, *arrays))

    with _quiet(), contextlib.redirect_stdout(io.StringIO()):
        graph: Any = to_onnx(positional, specs, opset=OPSET, input_names=list(inputs), output_names=names)
    size = sum(leaf.nbytes for leaf in leaves)
    beside: dict[str, Any] = {"save_as_external_data": True, "location": f"{GRAPH}.data"}
    for old in folder.glob(f"{GRAPH}*"):
        old.unlink()
    onnx.save(graph, str(folder / GRAPH), **(beside if size > _TWO_GIGABYTES else {}))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Both tell at length of what they go on without: types of intermediate values, plugins for other libraries."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "jax2onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
