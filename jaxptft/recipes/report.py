"""What an evaluation came to: numbers, text and pictures, and how they are kept in a run's folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """One evaluation. `details` go into report.json beside the metrics; a picture is a function that draws to a path,
    under the stem of the file's name."""

    metrics: dict[str, float]
    text: str
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Callable[[Path], None]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics, **self.details}


def save_report(folder: Path, reports: Mapping[str, Report], facts: Mapping[str, Any]) -> None:
    """Write report.json, report.txt, and STEM_SPLIT.png for each picture."""
    body = {**facts, **{split: report.to_dict() for split, report in reports.items()}}
    (folder / "report.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    parts = (f"{split}\n\n{report.text}\n" for split, report in reports.items())
    (folder / "report.txt").write_text("\n".join(parts), encoding="utf-8")
    for split, report in reports.items():
        for stem, draw in report.pictures.items():
            draw(folder / f"{stem}_{split}.png")


def save_metrics(folder: Path, metrics: Mapping[str, float], facts: Mapping[str, Any], *, heading: str) -> str:
    """Write report.json and report.txt of a pre-training, whose report is numbers alone; returns the text."""
    (folder / "report.json").write_text(json.dumps({"metrics": metrics, **facts}, indent=2) + "\n", encoding="utf-8")
    lines = [f"{name.ljust(32)}{value:10.4f}" for name, value in sorted(metrics.items())]
    text = f"best step {facts['best_step']} of {facts['steps']}, on {heading}\n\n" + "\n".join(lines)
    (folder / "report.txt").write_text(text + "\n", encoding="utf-8")
    return text


def add_baseline(folder: Path, found: Mapping[str, Report], baseline: Mapping[str, Report], *, name: str) -> list[str]:
    """Put another run's metrics beside those in report.json and report.txt; returns them as lines of a table."""
    path = folder / "report.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    body["baseline"] = {split: report.metrics for split, report in baseline.items()}
    path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    lines = [f"{'':40}{'this run':>14}{name:>14}"]
    for split, report in found.items():
        for metric, value in report.metrics.items():
            other = baseline[split].metrics.get(metric)  # a correlation may be undefined
            lines.append(f"{split + ' ' + metric:40}{value:14.4f}{'-' if other is None else f'{other:.4f}':>14}")
    with (folder / "report.txt").open("a", encoding="utf-8") as file:
        file.write("\nwhat pre-training is worth\n\n" + "\n".join(lines) + "\n")
    return lines


def plot_history(path: Path, lines: Sequence[Mapping[str, Any]], monitor: str) -> None:
    """Training loss by step, and the monitored metric of each evaluation beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    loss, metric = figure.subplots(1, 2)
    train = [(line["step"], line["loss"]) for line in lines if line["kind"] == "train" and "loss" in line]
    evaluation = [(line["step"], line[monitor]) for line in lines if line["kind"] == "evaluation" and monitor in line]
    for axes, points, label in ((loss, train, "training loss"), (metric, evaluation, monitor)):
        if points:
            axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 20 else None, markersize=3)
        axes.set_xlabel("optimizer step")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
