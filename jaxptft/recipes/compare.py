"""Models of one task beside each other: what each weighs, how good it is, and how fast it answers.

The first is what the others are held against: a teacher and what it was distilled, pruned and quantized to.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from pydantic import Field, model_validator

from jaxptft.recipes.settings import Settings
from jaxptft.recipes.tasks.settings import Columns


class Config(Settings):
    """Compare models of one task: jaxptft compare TEACHER STUDENT ... --data FILE --out DIR"""

    models: tyro.conf.Positional[tuple[str, ...]]
    """run folders, Hugging Face folders, converted, quantized or exported ones; the first is what others are held
    against"""
    data: str
    """labelled rows that none of them was trained on"""
    out: Path
    """the folder to make"""
    names: tuple[str, ...] = ()
    """what the models are called, as many as there are (default: their folders)"""
    metric: str | None = None
    """what the picture shows beside the time (default: the first of the task's, such as classification/accuracy)"""
    columns: Columns = Columns()
    split: str | None = None
    """which split, of data that have several (default: the validation split)"""
    rows: int = Field(default=1000, ge=1)
    """how many rows times are of, at most; metrics are of all"""
    calls: int = Field(default=200, ge=1)
    """how many of the rows are also asked one at a time, each round"""
    rounds: int = Field(default=5, ge=1)
    """how often every model takes its turn"""
    overwrite: bool = False
    """replace a comparison that is there"""

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if len(self.models) < 2:
            raise ValueError(f"models has {len(self.models)}; expected two or more to compare")
        if self.names and len(self.names) != len(self.models):
            raise ValueError(f"names has {len(self.names)} for {len(self.models)} models; give one each, or none")
        called = self.names or self.models
        if twice := [name for number, name in enumerate(called) if name in called[:number]]:
            raise ValueError(f"{twice[0]!r} is there twice; give names that differ")
        return self


def run(config: Config, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure every model, print the table, and leave `comparison.json`, `comparison.txt` and `comparison.png`.

    Returns what the JSON holds. Raises FileExistsError where `out` holds something and `overwrite` is not set, and
    ValueError where the models are not of one task, their answers have other names, or the metric is unknown.
    """
    import json

    from jaxptft.convert.staging import new_folder
    from jaxptft.recipes import compared, evaluate
    from jaxptft.recipes.export_rows import rows_of
    from jaxptft.recipes.exported import open_any
    from jaxptft.recipes.model_source import refuse_place
    from jaxptft.recipes.runtime import keep_compiled_programs
    from jaxptft.recipes.tasks import module_of

    for model in config.models:
        refuse_place(config.out, model, overwrite=config.overwrite)
    keep_compiled_programs()
    names = config.names or tuple(Path(model).name for model in config.models)
    if len(set(names)) < len(names):
        names = config.models
    opened = [open_any(model) for model in config.models]
    compared.refuse_others(opened)
    asked: dict[str, Any] = {"run": None, "columns": config.columns, "split": config.split, "count": config.rows}
    sides = []
    for name, model, one in zip(names, config.models, opened, strict=True):
        request = evaluate.Config(model=model, data=config.data, columns=config.columns, split=config.split)
        report = module_of(one.task).evaluate(one, request, say=lambda line: None)
        compared.metric_of(report.metrics, config.metric)
        batches, _ = rows_of(one, config.data, **asked, say=lambda line: None)
        sides.append(compared.Side(name, model, one, report.metrics, batches))
        say(f"{name}: evaluated on {config.data}")
    metric = compared.metric_of(sides[0].metrics, config.metric)
    for side in sides:
        compared.metric_of(side.metrics, metric)
    times = compared.times(sides, calls=config.calls, rounds=config.rounds, say=say)
    record = compared.record(sides, times, metric=metric)
    record = {"data": config.data, "calls": config.calls, "rounds": config.rounds, **record}
    text = compared.shown(f"{len(sides)} models on {config.data}", record)
    with new_folder(config.out, overwrite=config.overwrite) as staging:
        (staging / "comparison.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (staging / "comparison.txt").write_text(text + "\n", encoding="utf-8")
        compared.plot(staging / "comparison.png", record)
    say(text)
    say(f"written to {config.out}")
    return record
