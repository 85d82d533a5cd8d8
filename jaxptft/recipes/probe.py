"""How good a backbone's frozen features are: a linear probe and neighbours, beside those of one that learnt nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from pydantic import Field, model_validator

from jaxptft.recipes.settings import Settings
from jaxptft.recipes.tasks.settings import Columns

Baseline = Literal["random", "pixels"]


class Config(Settings):
    """Probe frozen features: jaxptft probe MODEL --train ROWS --test ROWS"""

    model: tyro.conf.Positional[str]
    """a run folder, a Hugging Face folder, a converted folder, or a name on the hub"""
    train: str
    """labelled rows, text or images, on whose features a linear classifier is fitted"""
    test: str | None = None
    """labelled rows that judge it (default: the source's own test or validation split)"""
    out: Path | None = None
    """a folder for report.json, and the plot where there is a curve"""
    pooling: Literal["mean", "first", "last", "pooler"] | None = None
    """what of a row's hidden states the features are (default: what a classifier of the family reads)"""
    baselines: tuple[Baseline, ...] = ("random",)
    """beside it: the same backbone with parameters that have learnt nothing, and of images their pixels"""
    labels_a_class: tuple[int, ...] = ()
    """a curve: the probe from so many labelled rows of every class, each drawn anew under every seed"""
    seeds: int = Field(default=3, ge=1)
    """draws at each point of the curve, and random backbones"""
    rows: int | None = Field(default=None, ge=2)
    """training rows at most, evenly from all"""
    neighbours: int = Field(default=20, ge=1)
    """that vote"""
    columns: Columns = Columns()
    on_bad_row: Literal["error", "skip"] = "error"
    max_length: int | None = Field(default=None, ge=3)
    """longer texts are cut, and counted (default: what the model takes)"""
    batch_size: int = Field(default=64, ge=1)
    allow_bin: bool = False
    family: str | None = None

    @model_validator(mode="after")
    def _rising(self) -> "Config":
        points = self.labels_a_class
        if any(point < 1 for point in points) or list(points) != sorted(set(points)):
            raise ValueError(f"labels_a_class is {points}; expected rising numbers of at least 1")
        return self


class Result(NamedTuple):
    """Accuracy on the test rows by what the features are of: "model", "random" (one for each seed), "pixels"."""

    linear: dict[str, list[float]]
    neighbours: dict[str, list[float]]
    curve: dict[str, dict[int, list[float]]]


def run(config: Config, *, say: Callable[[str], None] = print) -> Result:
    """Fit and judge; all classifiers see the same rows.

    Raises FileExistsError when `out` holds a report, ValueError for rows without classes, pixels of texts, and what the
    model cannot read.
    """
    from jaxptft.data import check_enough
    from jaxptft.recipes import probing
    from jaxptft.recipes.features import Backbone
    from jaxptft.recipes.runtime import keep_compiled_programs

    if config.out is not None and (config.out / "report.json").exists():
        raise FileExistsError(f"{config.out} holds a report; choose another --out")
    keep_compiled_programs()
    backbone = Backbone(config.model, pooling=config.pooling, family=config.family, allow_bin=config.allow_bin)
    if "pixels" in config.baselines and not backbone.reads_images:
        raise ValueError(f"baselines asks for pixels, and {config.model} reads text; leave them out")
    train, test = _read(config, backbone, say)
    if config.labels_a_class:
        check_enough(train.labels, max(config.labels_a_class))
    sets: dict[str, list[Any]] = {"model": [_features(backbone, train, test)]}
    if "random" in config.baselines:
        sets["random"] = [_features(backbone.fresh(seed), train, test) for seed in range(config.seeds)]
    if "pixels" in config.baselines:
        sets["pixels"] = [tuple(probing.Features(_pixels(rows), rows.labels) for rows in (train, test))]
    linear, voted, curve = {}, {}, {}
    for name, found in sets.items():
        linear[name] = [probing.linear_probe(*pair).accuracy for pair in found]
        voted[name] = [probing.nearest_neighbours(*pair, k=config.neighbours) for pair in found]
        say(f"{name:8} linear probe {_told(linear[name])}   {config.neighbours} neighbours {_told(voted[name])}")
    for a_class in config.labels_a_class:
        for name, found in sets.items():
            scores = []
            for seed in range(config.seeds):
                known, asked = found[seed % len(found)]
                drawn = probing.draw(known, a_class, seed)
                scores.append(probing.linear_probe(drawn, asked, seed=seed).accuracy)
            curve.setdefault(name, {})[a_class] = scores
            say(f"{name:8} {a_class:5} labels a class: linear probe {_told(scores)}")
    result = Result(linear, voted, curve)
    if config.out is not None:
        _keep(config, result, train, test)
    return result


def _read(config: Config, backbone: Any, say: Callable[[str], None]) -> tuple[Any, Any]:
    options: dict[str, Any] = {
        "labelled": True,
        "columns": config.columns,
        "on_bad_row": config.on_bad_row,
        "max_length": config.max_length,
        "batch_size": config.batch_size,
        "say": say,
    }
    splits = backbone.splits(config.train)
    train = backbone.read(config.train, split="train" if splits else None, most=config.rows, **options)
    if config.test is not None:
        held = backbone.splits(config.test)
        chosen = next((name for name in ("test", "validation") if name in held), None)
        return train, backbone.read(config.test, split=chosen, names=train.names, **options)
    chosen = next((name for name in ("test", "validation") if name in splits), None)
    if chosen is None:
        raise ValueError(f"{config.train} has no split to test on; give --test")
    return train, backbone.read(config.train, split=chosen, names=train.names, **options)


def _features(backbone: Any, train: Any, test: Any) -> tuple[Any, Any]:
    from jaxptft.recipes.probing import Features

    first, second = (Features(backbone.vectors(rows), rows.labels) for rows in (train, test))
    return first, second


def _pixels(rows: Any) -> np.ndarray:
    images = rows.batches.images.pixels
    return images.reshape(len(images), -1).astype(np.float32) / 255.0


def _told(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _keep(config: Config, result: Result, train: Any, test: Any) -> None:
    assert config.out is not None
    config.out.mkdir(parents=True, exist_ok=True)
    body = {
        "model": config.model,
        "rows": {"train": len(train.labels), "test": len(test.labels)},
        "linear": result.linear,
        "neighbours": result.neighbours,
        "curve": {name: {str(n): values for n, values in points.items()} for name, points in result.curve.items()},
    }
    (config.out / "report.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    if result.curve:
        plot_curve(config.out / "curve.png", result.curve)


def plot_curve(path: Path, curve: dict[str, dict[int, list[float]]]) -> None:
    """Accuracy by labels a class, one line each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, points in curve.items():
        means = [float(np.mean(values)) for values in points.values()]
        spread = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in points.values()]
        axes.errorbar(list(points), means, spread, marker="o", capsize=3, label=name)
    axes.set(xscale="log", xlabel="labelled rows a class", ylabel="test accuracy of a linear probe")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
