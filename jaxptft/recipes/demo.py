"""The main job on real data: a pre-trained BERT, four ways to use it, one table.

MiniLM's weights and 10,568 sentences of film reviews are fetched once, verified and cached; unless asked otherwise,
4,000 train, 1,000 validate and 2,000 test. The same architecture is trained from scratch; as a frozen feature
extractor under a new head; with its top layers kept near their pre-trained values; and whole. Every row sees the same
sentences.
"""

import csv
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from pydantic import Field

from jaxptft.recipes import finetune
from jaxptft.recipes.settings import Settings

if TYPE_CHECKING:
    from jaxptft.data import Table

ROWS: dict[str, dict[str, Any]] = {
    "from scratch": {"from_scratch": True, "learning_rate": 2e-4},
    "head only": {"freeze": "backbone", "learning_rate": 5e-3},
    "top 2 layers + L2": {"freeze": "all-but-top-2", "learning_rate": 3e-4, "l2_to_pretrained": 0.01},
    "all layers": {"learning_rate": 2e-4},
}
"""What sets each row apart: values of `finetune.Config`."""


class Config(Settings):
    """Four ways to train on real film reviews, one table: jaxptft demo --out runs/demo"""

    out: Path = Path("runs/demo")
    """a folder for the four runs, the table and the picture"""
    epochs: float = Field(default=1.0, gt=0)
    """passes over the training sentences, each row"""
    seed: int = Field(default=0, ge=0)
    test_rows: int = Field(default=2000, ge=1)
    validation_rows: int = Field(default=1000, ge=1)
    train_rows: int = Field(default=4000, ge=1)
    """training sentences at most; 7,566 are at hand beside the default validation and test rows"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace the demo in --out"""


class Row(Settings):
    """One line of the table."""

    name: str
    accuracy: float
    macro_f1: float
    validation_accuracy: float
    seconds: float
    trainable: int
    run: str


def run(
    config: Config, *, rows: Mapping[str, Mapping[str, Any]] = ROWS, say: Callable[[str], None] = print
) -> list[Row]:
    """Train every row, print the table, and leave a run for each, `table.json` and `comparison.png` in `out`.

    Raises FileExistsError when `out` holds something and `overwrite` is not set, and `AssetUnavailable` when the
    weights or sentences are neither cached nor to be fetched.
    """
    import numpy as np

    from jaxptft.data import minilm_folder

    mark = config.out / "demo.yaml"
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        if not mark.is_file():
            raise FileExistsError(f"{config.out} is not empty and holds no demo; choose another --out")
        if not config.overwrite:
            raise FileExistsError(f"{config.out} holds a demo already; pass --overwrite, or choose another --out")
    began = time.perf_counter()
    model, parts = minilm_folder(), read_splits(config)
    files = {name: config.out / "data" / f"{name}.csv" for name in parts}
    steps = config.epochs * -(-len(parts["train"]) // 32)
    settings = {
        name: finetune.Config(
            model=str(model),
            train=str(files["train"]),
            eval=str(files["validation"]),
            test=str(files["test"]),
            out=config.out / name.replace(" ", "-").replace("+", "and"),
            epochs=config.epochs,
            evaluate_every=math.ceil(steps / 2),
            length_buckets=3,
            seed=config.seed,
            overwrite=config.overwrite,
            **values,
        )
        for name, values in rows.items()
    }
    # Everything that could go wrong before the first step has not: now the folder may be written.
    config.out.mkdir(parents=True, exist_ok=True)
    mark.write_text(config.to_yaml(), encoding="utf-8")
    for name, part in parts.items():
        write_csv(files[name], part)

    table, reports = [], {}
    for name, values in settings.items():
        say(f"\n{name}")
        result = finetune.run(values, name=name, say=say)
        metrics = {split: report.metrics for split, report in result.reports.items()}
        reports[name] = result.reports["test"]
        table.append(
            Row(
                name=name,
                accuracy=metrics["test"]["classification/accuracy"],
                macro_f1=metrics["test"]["classification/macro_f1"],
                validation_accuracy=metrics["eval"]["classification/accuracy"],
                seconds=result.seconds,
                trainable=result.trainable,
                run=str(values.out),
            )
        )
    best = table[int(np.argmax([row.validation_accuracy for row in table]))]
    (config.out / "table.json").write_text(json.dumps([row.model_dump() for row in table], indent=2) + "\n")
    _plot(config.out / "comparison.png", table)
    _print_table(table, len(parts["test"]))
    say(f"\nbest on validation: {best.name}; on the test sentences:\n\n{reports[best.name].text}")
    say(f"\nthe table as a picture: {config.out / 'comparison.png'}")
    say(f"the best model, ready for transformers: {best.run}/model")
    say(f"{time.perf_counter() - began:.0f} seconds in all")
    return table


def read_splits(config: Config) -> dict[str, "Table"]:
    """Fetch the sentences, drop neutral and repeated ones, and cut them into train, validation and test."""
    from jaxptft import data

    seen: dict[str, str] = {}
    for text, score in data.hutto_sentences("movies"):
        seen.setdefault(" ".join(text.split()), "positive" if score > 0 else "negative")
    table = data.make_table(list(seen), list(seen.values()), source="film reviews")
    rest, test = data.split(table, config.test_rows, seed=0)
    rest, validation = data.split(rest, config.validation_rows, seed=0)
    if config.train_rows < len(rest):
        _, rest = data.split(rest, config.train_rows, seed=0)
    return {"train": rest, "validation": validation, "test": test}


def write_csv(path: Path, table: "Table") -> Path:
    """Write a labelled table as CSV with the columns text and label; returns the path."""
    assert table.labels is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(zip(table.texts, (table.names[label] for label in table.labels), strict=True))
    return path


def _print_table(table: list[Row], rows: int) -> None:
    from rich import table as rich_table
    from rich.console import Console

    shown = rich_table.Table(title=f"film reviews, {rows:,} test sentences")
    shown.add_column("trained")
    for column in ("accuracy", "macro F1", "seconds", "trainable parameters"):
        shown.add_column(column, justify="right")
    for row in table:
        shown.add_row(
            row.name, f"{row.accuracy:.3f}", f"{row.macro_f1:.3f}", f"{row.seconds:.0f}", f"{row.trainable:,}"
        )
    Console().print(shown)


def _plot(path: Path, table: list[Row]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.8), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([row.name for row in table], [row.accuracy for row in table], color="#4292c6")
    labels = [f"{row.accuracy:.3f}  in {row.seconds:.0f} s, training {_short(row.trainable)}" for row in table]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.set_xlim(0, 1.6)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.axvline(0.5, color="black", linewidth=0.8, linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on test sentences (dashed: chance)", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _short(parameters: int) -> str:
    """22,713,986 -> '22.7 M parameters'."""
    if parameters < 1e4:
        return f"{parameters:,} parameters"
    return f"{parameters / 1e6:.1f} M parameters"
