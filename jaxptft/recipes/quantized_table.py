"""A model before and after it was quantized: its size, what it answers, and how fast."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxptft import models
from jaxptft.recipes.export_formats import Live
from jaxptft.recipes.export_rows import BATCH, Batch, counted
from jaxptft.recipes.inference import Opened
from jaxptft.recipes.tasks import module_of
from jaxptft.recipes.text_table import table

_AUTO = ("weights", "dynamic")
_WORTH = 1.05  # how many times as fast the one must be that rounds more


class Side(NamedTuple):
    """A model as it is asked, as one function, and the folder it is in."""

    opened: Opened
    live: Live
    folder: Path


def ranges(live: Live, batches: Sequence[Batch], *, percentile: float = 100.0) -> dict[str, float]:
    """What the inputs of each projection reach, by the path of its kernel.

    That is the largest magnitude over all batches, or the mean over batches of a percentile of the magnitudes.
    """
    observe = jax.jit(lambda params, inputs: models.input_ranges(live.function, params, inputs, percentile=percentile))
    found: dict[str, list[float]] = {}
    for batch in batches:
        for path, reached in observe(live.params, {name: batch[name] for name in live.inputs}).items():
            found.setdefault(path, []).append(float(reached))
    over = max if percentile == 100 else np.mean
    return {path: float(over(values)) for path, values in found.items()}


def faster(live: Live, params: models.Params, batch: Batch, *, calls: int) -> tuple[str, str]:
    """ "weights" or "dynamic", the one that takes a batch of 32 in less time here, and why in words."""
    known = {mode: live._replace(function=models.with_int8(live.function, mode), params=params) for mode in _AUTO}
    took = {mode: _median(one, _resized(live, batch, BATCH), calls) for mode, one in known.items()}
    chosen = "dynamic" if took["weights"] >= _WORTH * took["dynamic"] else "weights"
    told = " and ".join(f"{1000 * seconds:.2f} ms with {mode}" for mode, seconds in took.items())
    return chosen, f"mode {chosen}: on {jax.default_backend()} a batch of {BATCH} takes {told}"


def measure(before: Side, after: Side, batches: Sequence[Batch], *, request: Any, calls: int) -> dict[str, Any]:
    """{"before": numbers, "after": numbers, "rows", "largest_difference" of logits, "equal_answers"}.

    The numbers are of the folder, and of `request`, what `evaluate` is asked; equal answers are None without classes.
    """
    found: dict[str, Any] = {}
    for name, side in (("before", before), ("after", after)):
        one, many = (_median(side.live, _resized(side.live, batches[0], size), calls) for size in (1, BATCH))
        report = module_of(side.opened.task).evaluate(side.opened, request, say=lambda line: None)
        found[name] = {
            "bytes": sum(file.stat().st_size for file in side.folder.rglob("*") if file.is_file()),
            "parameters": sum(int(np.size(leaf)) for leaf in leaves(side.opened.params)),
            "metrics": report.metrics,
            "milliseconds_at_1": 1000 * one,
            f"rows_a_second_at_{BATCH}": BATCH / many,
        }
    return found | _compare(before.live, after.live, batches, before.opened)


def shown(title: str, found: Mapping[str, Any]) -> str:
    """The numbers as a table of text."""
    sides = (found["before"], found["after"])
    lines = [
        ("folder, MB", [f"{side['bytes'] / 1e6:.2f}" for side in sides]),
        ("parameters", [f"{side['parameters']:,}" for side in sides]),
    ]
    for metric in sides[0]["metrics"]:
        lines.append((metric, [f"{side['metrics'].get(metric, float('nan')):.4f}" for side in sides]))
    lines.append(("ms at batch 1, p50", [f"{side['milliseconds_at_1']:.2f}" for side in sides]))
    name = f"rows_a_second_at_{BATCH}"
    lines.append((f"rows a second at batch {BATCH}", [f"{side[name]:.1f}" for side in sides]))
    lines.append((f"largest difference of logits, {found['rows']} rows", ["", f"{found['largest_difference']:.3g}"]))
    if found["equal_answers"] is not None:
        lines.append(("equal answers", ["", f"{100 * found['equal_answers']:.2f} %"]))
    return table(title, ("before", "after"), lines)


def _compare(before: Live, after: Live, batches: Sequence[Batch], opened: Opened) -> dict[str, Any]:
    first, second = before.runs(), after.runs()
    rows = equal = answers = 0
    largest = 0.0
    decide = _decision(before.task, opened)
    for batch in batches:
        inputs = {name: batch[name] for name in before.inputs}
        chosen = counted(before.task, batch)
        one, other = (np.asarray(run(inputs)["logits"]) for run in (first, second))
        largest = float(np.fmax(largest, np.abs(one - other)[chosen].max(initial=0.0)))
        rows += int(batch["valid"].sum())
        if decide is not None:
            known = batch["valid"] if before.task == "multiple_choice" else chosen
            there = counted(before.task, batch) if before.task == "multiple_choice" else None
            same = (decide(one, there) == decide(other, there))[known]
            equal, answers = equal + int(same.reshape(len(same), -1).all(-1).sum()), answers + len(same)
    return {
        "rows": rows,
        "largest_difference": largest,
        "equal_answers": None if decide is None else equal / max(1, answers),
    }


def _decision(task: str, opened: Opened) -> Callable[[np.ndarray, Any], np.ndarray] | None:
    """Logits -> what is answered: of rows, tokens, or for spans (whose tokens vie with each other) none."""
    if task in ("regression", "question_answering"):
        return None
    if task == "multi_label":
        from scipy.special import expit

        from jaxptft.recipes.metrics.multi_label import thresholds_of

        thresholds = np.asarray(thresholds_of(opened.settled, opened.names))
        return lambda logits, there: expit(logits) > thresholds
    if task == "multiple_choice":
        return lambda logits, there: np.where(there, logits, -np.inf).argmax(-1)
    return lambda logits, there: logits.argmax(-1)


def leaves(params: Any) -> Iterator[Any]:
    """The arrays of parameters, a tree of them or by path; of an int8 matrix, itself alone."""
    if not isinstance(params, Mapping):
        yield params
        return
    for name, value in params.items():
        prefix, _, last = name.rpartition("/")
        own = f"{prefix}/int8" if prefix else "int8"
        if last == "int8" or own not in params:
            yield from leaves(value)


def _resized(live: Live, batch: Batch, size: int) -> dict[str, np.ndarray]:
    """The batch's first rows, over and over until there are `size`."""
    rows = np.arange(size) % int(batch["valid"].sum())
    return {name: batch[name][np.flatnonzero(batch["valid"])[rows]] for name in live.inputs}


def _median(live: Live, inputs: Mapping[str, np.ndarray], calls: int) -> float:
    """Seconds of a call, the median of several after two that count for nothing."""
    run, took = live.runs(), []
    for _ in range(calls + 2):
        start = time.perf_counter()
        jax.block_until_ready(run(inputs))
        took.append(time.perf_counter() - start)
    return float(np.median(took[2:]))
