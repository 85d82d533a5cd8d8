"""How models of one task are measured beside each other, and what is shown of it.

Times are of the model alone, from arrays on the host to scores on the host: no tokenizer, no decoding of images. In
each round every model takes its turn, so that what slows the machine for a while slows them all.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxptft import __version__, data
from jaxptft.recipes import export_formats as formats
from jaxptft.recipes.export_rows import BATCH, Batch
from jaxptft.recipes.inference import Opened
from jaxptft.recipes.model_source import locate
from jaxptft.recipes.quantized_table import leaves
from jaxptft.recipes.text_table import table

Inputs = dict[str, np.ndarray]


CLASSES = ("classification", "multi_label", "token_classification", "image_classification")
"""Tasks whose answers have names; of others, what a checkpoint calls its outputs tells nothing."""


class Side(NamedTuple):
    """A model, its metrics on all rows, and the rows that its times are of, as it reads them."""

    name: str
    model: str
    opened: Opened
    metrics: Mapping[str, float]
    batches: Sequence[Batch]


class Times(NamedTuple):
    """Seconds of every call with one row, and rows a second of every pass."""

    single: list[float]
    rows_a_second: list[float]


def refuse_others(opened: Sequence[Opened]) -> None:
    """ValueError where models are not of one task, or answer with other labels."""
    first = opened[0]
    for other in opened[1:]:
        if other.task != first.task:
            raise ValueError(f"{first.source} is for {first.task} and {other.source} for {other.task}; compare alike")
        if first.task in CLASSES and set(other.names) != set(first.names):
            known = ", ".join(first.names)
            raise ValueError(f"{other.source} answers {', '.join(other.names)}, and {first.source} {known}")


def metric_of(metrics: Mapping[str, float], asked: str | None) -> str:
    """The metric asked for, by default the first; ValueError where there is none of its name."""
    if asked is not None and asked not in metrics:
        raise ValueError(f"metric is {asked!r}; expected one of {', '.join(metrics)}")
    return asked or next(iter(metrics))


def times(sides: Sequence[Side], *, calls: int, rounds: int, say: Callable[[str], None]) -> list[Times]:
    """The times of each model, which take turns; everything is compiled before the first."""
    works = []
    for side in sides:
        live = formats.live(side.opened)
        many = [{name: batch[name] for name in live.inputs} for batch in side.batches]
        single = list(_single(live, side.batches, calls))
        run = live.runs()
        for inputs in (*many, *single):
            jax.block_until_ready(run(inputs))
        works.append((run, many, single, sum(int(batch["valid"].sum()) for batch in side.batches)))
    found = [Times([], []) for _ in sides]
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for (run, many, single, rows), took in zip(works, found, strict=True):
            took.single.extend(_seconds(run, [inputs]) for inputs in single)
            took.rows_a_second.append(rows / _seconds(run, many))
    return found


def record(sides: Sequence[Side], found: Sequence[Times], *, metric: str) -> dict[str, Any]:
    """The numbers of every model, and how they stand to the first's."""
    lines: list[dict[str, Any]] = []
    for side, took in zip(sides, found, strict=True):
        sizes = [(int(leaf.size), int(np.count_nonzero(leaf))) for leaf in leaves(side.opened.params)]
        lines.append(
            {
                "name": side.name,
                "model": side.model,
                "bytes": folder_bytes(side.model),
                "parameters": sum(size for size, _ in sizes),
                "nonzero": sum(nonzero for _, nonzero in sizes),
                "metrics": dict(side.metrics),
                "milliseconds_p50": 1000 * float(np.percentile(took.single, 50)),
                "milliseconds_p99": 1000 * float(np.percentile(took.single, 99)),
                "rows_a_second": float(np.median(took.rows_a_second)),
            }
        )
    first = lines[0]
    for line in lines:
        line["times_smaller"] = first["bytes"] / line["bytes"]
        line["times_faster_at_1"] = first["milliseconds_p50"] / line["milliseconds_p50"]
        line["times_the_throughput"] = line["rows_a_second"] / first["rows_a_second"]
        line["metric_gained"] = line["metrics"].get(metric, float("nan")) - first["metrics"][metric]
    return {
        "task": sides[0].opened.task,
        "metric": metric,
        "rows": sum(int(batch["valid"].sum()) for batch in sides[0].batches),
        "batch": BATCH,
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "versions": {"jaxptft": __version__, "jax": jax.__version__},
        "models": lines,
    }


def folder_bytes(model: str) -> int:
    """What the files of a model take: of a run, those of its `model/`; of a quantized or exported one, its own."""
    folder = Path(model)
    try:
        folder = locate(model)
    except FileNotFoundError:  # an export is no model to go on from, and is all in its folder
        if not folder.is_dir():
            raise
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def shown(title: str, record: Mapping[str, Any]) -> str:
    """The numbers as a table of text, a line a model."""
    metric = record["metric"]
    columns = ("MB", "smaller", "parameters", "not zero", metric.rpartition("/")[2], "gained")
    columns += ("p50 ms", "p99 ms", "faster", f"rows/s at {record['batch']}", "more")
    lines = []
    for one in record["models"]:
        cells = (
            f"{one['bytes'] / 1e6:.2f}",
            f"{one['times_smaller']:.2f}x",
            f"{one['parameters'] / 1e6:.2f} M",
            f"{100 * one['nonzero'] / max(1, one['parameters']):.0f} %",
            f"{one['metrics'].get(metric, float('nan')):.4f}",
            f"{one['metric_gained']:+.4f}",
            f"{one['milliseconds_p50']:.2f}",
            f"{one['milliseconds_p99']:.2f}",
            f"{one['times_faster_at_1']:.2f}x",
            f"{one['rows_a_second']:.0f}",
            f"{one['times_the_throughput']:.2f}x",
        )
        lines.append((one["name"], cells))
    return table(title, columns, lines)


def plot(path: Path, record: Mapping[str, Any]) -> None:
    """The metric against the median time of one row; the area of a point is the size of the folder."""
    from matplotlib.figure import Figure

    lines, metric = record["models"], record["metric"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    x = [line["milliseconds_p50"] for line in lines]
    y = [line["metrics"].get(metric, float("nan")) for line in lines]
    largest = max(line["bytes"] for line in lines)
    areas = [30 + 600 * line["bytes"] / largest for line in lines]
    colours = ["#d95f0e", *["#4292c6"] * (len(lines) - 1)]
    axes.scatter(x, y, s=areas, c=colours, alpha=0.7, linewidths=0)
    labels = []
    for line, left, height in zip(lines, x, y, strict=True):
        said = f"{line['name']}, {line['bytes'] / 1e6:.1f} MB"
        labels.append(axes.annotate(said, (left, height), xytext=(6, 6), textcoords="offset points", fontsize=8))
    axes.axhline(y[0], color="gray", linestyle=":", linewidth=1)
    axes.set_xlabel("milliseconds a row, one at a time, p50")
    axes.set_ylabel(metric.rpartition("/")[2].replace("_", " "))
    axes.set_xlim(0, 1.3 * max(x))
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    _put_apart(figure, labels)
    figure.savefig(path, dpi=150)


def _put_apart(figure: Any, labels: Sequence[Any]) -> None:
    """Labels that would lie on others are moved up or down, as little as it takes."""
    figure.draw_without_rendering()
    placed: list[Any] = []
    for label in sorted(labels, key=lambda label: label.xy[1]):
        for lines in range(2 * len(labels) + 1):  # 0, 1 up, 1 down, 2 up...
            label.xyann = (6, 6 + 9 * ((lines + 1) // 2) * (1 if lines % 2 else -1))
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in placed):
                break
        placed.append(label.get_window_extent())


def _single(live: formats.Live, batches: Sequence[Batch], calls: int) -> Iterator[Inputs]:
    """Rows alone, evenly among all, as wide as a batch of such a row is padded to."""
    places = [(batch, row) for batch in batches for row in np.flatnonzero(batch["valid"])]
    for number in np.linspace(0, len(places) - 1, min(calls, len(places))).astype(int):
        batch, row = places[number]
        inputs = {name: batch[name][row : row + 1] for name in live.inputs}
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"]
            longest = int(np.flatnonzero(mask.reshape(-1, mask.shape[-1]).any(0)).max(initial=0)) + 1
            width = next(width for width in data.length_buckets(mask.shape[-1]) if width >= longest)
            inputs = {
                name: array[..., :width] if live.inputs[name].axes[-1] == "length" else array
                for name, array in inputs.items()
            }
        yield inputs


def _seconds(run: formats.Run, work: Sequence[Inputs]) -> float:
    """Until the scores of all are on the host, one after the other."""
    start = time.perf_counter()
    for inputs in work:
        jax.device_get(run(inputs))
    return time.perf_counter() - start
