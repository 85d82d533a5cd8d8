"""GLUE's tasks by name, from a folder or the hub: one fine-tuning each, one table.

Wang et al. 2019, arXiv:1804.07461. Scores are those of the validation rows, since the test rows' labels are withheld:
accuracy, F1 of the positive class, Matthews' correlation, Pearson's and Spearman's, as the benchmark has them for each
task, averaged within a task and then over tasks. A task's best model is chosen on the same rows, as everyone does whose
table stops at the validation split.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from jaxptft.recipes.glue_tasks import TASKS, score_of
from jaxptft.recipes.run_folder import CONFIG
from jaxptft.recipes.settings import build, nearest, read_yaml
from jaxptft.recipes.training_settings import TrainingSettings

if TYPE_CHECKING:
    from jaxptft.recipes import finetune

HUB = "nyu-mll/glue"
RESULTS = "results.json"
_MAY_CHANGE = ("tasks", "out", "resume", "overwrite", "steps", "epochs", "checkpoint_every", "keep_checkpoints")


class Config(TrainingSettings):
    """Fine-tune on GLUE's tasks: jaxptft glue --model DIR --tasks cola,sst2 --data hub --out runs/glue"""

    model: str
    """a Hugging Face folder, a run folder, a converted folder, or a name on the hub"""
    data: str = "hub"
    """hub, or a folder with one for each task: saved by `datasets`, or of train and validation (or dev) files"""
    tasks: str = "cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte"
    """names separated by commas; wnli is known too, whose validation rows contradict its training rows"""
    family: str | None = None
    """the architecture, where config.json names none"""

    @field_validator("tasks")
    @classmethod
    def _known(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        for name in names:
            if name not in TASKS:
                raise ValueError(f"there is no task {name!r}{nearest(name, list(TASKS))}; known: {', '.join(TASKS)}")
        if len(set(names)) < len(names):
            raise ValueError(f"{value!r} names a task twice; give each once")
        return ",".join(names)


def run(config: Config, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Fine-tune on each task, say the table, and leave a run for each and `results.json` in `out`.

    With `resume`, finished tasks are read and not run again, and one that was stopped goes on. Raises FileExistsError
    where `out` holds something and neither `resume` nor `overwrite` is set, and ValueError or FileNotFoundError, before
    the first task, for data that are not there.
    """
    _claim(config)
    runs = {name: _settings(config, name) for name in config.tasks.split(",")}
    config.out.mkdir(parents=True, exist_ok=True)
    values = config.model_copy(update={"resume": False, "overwrite": False})
    (config.out / CONFIG).write_text(values.to_yaml(), encoding="utf-8")
    for name, settings in runs.items():
        _extract(config, name, settings.train)
    recorded = _recorded(config.out / RESULTS)
    results: dict[str, Any] = {}
    for name, settings in runs.items():
        if _finished(settings):
            say(f"{name}: done before, in {settings.out}")
            seconds = recorded.get(name, {}).get("seconds")
        else:
            say(f"\n{name}")
            seconds = _fine_tune(settings, name, say)
        results[name] = _result(name, settings.out) | {"seconds": seconds}
        _write(config.out / RESULTS, results)
    found = _write(config.out / RESULTS, results)
    say(_table(found))
    return found


def _claim(config: Config) -> None:
    """Refuse a folder that is not this benchmark's to write in."""
    recorded = config.out / CONFIG
    if config.out.exists() and not config.out.is_dir():
        raise FileExistsError(f"{config.out} is a file; choose a folder for --out")
    if config.resume:
        if not _is_benchmark(recorded):
            raise FileNotFoundError(f"{config.out} holds no benchmark to resume; leave out --resume to start one")
        before = build(Config, read_yaml(recorded), source=str(recorded)).model_dump(mode="json")
        now = config.model_dump(mode="json")
        for key in before:
            if key not in _MAY_CHANGE and before[key] != now[key]:
                raise ValueError(
                    f"{key} is {now[key]!r}, but the benchmark in {config.out} has {before[key]!r}; resume with the "
                    "same value, or start a new one in another --out"
                )
    elif config.out.exists() and any(config.out.iterdir()):
        if not _is_benchmark(recorded):
            raise FileExistsError(f"{config.out} is not empty and holds no benchmark; choose another --out")
        if not config.overwrite:
            raise FileExistsError(
                f"{config.out} already holds a benchmark; continue it with --resume, or --overwrite it"
            )


def _is_benchmark(recorded: Path) -> bool:
    return recorded.is_file() and {"tasks", "data", "out"} <= read_yaml(recorded).keys()


def _settings(config: Config, name: str) -> "finetune.Config":
    """The fine-tuning of one task."""
    from jaxptft.data.sources import open_source, split_names
    from jaxptft.recipes import finetune

    task = TASKS[name]
    sources = _sources(config, name)
    train = sources["train"]
    columns = open_source(train, "train" if len(split_names(train)) > 1 else None).columns
    label = next((column for column in task.labels if column in columns), task.labels[0])
    out = config.out / name
    shared = {key: getattr(config, key) for key in TrainingSettings.model_fields if key not in ("out", "resume")}
    return finetune.Config(
        **shared,
        out=out,
        resume=config.resume and (out / CONFIG).is_file(),
        model=config.model,
        family=config.family,
        train=train,
        eval=sources.get(task.splits[0]),
        test=sources[task.splits[1]] if len(task.splits) > 1 else None,
        task=task.kind,
        columns=finetune.Columns(text=task.text, pair=task.pair or "", label=label),
    )


def _sources(config: Config, name: str) -> dict[str, str]:
    """A source for `train` and, where they are apart from it, the validation splits."""
    task = TASKS[name]
    if config.data == "hub":
        whole = f"{HUB}/{name}"
    else:
        folder = _folder(Path(config.data), name)
        if not (folder / "dataset_dict.json").is_file():
            return {split: str(_file(folder, split)) for split in ("train", *task.splits)}
        whole = str(folder)
    # Of a data set with several splits, fine-tuning takes train and the first of the validation splits by itself.
    return {"train": whole} | {split: str(_extracted(config, name, split)) for split in task.splits[1:]}


def _extracted(config: Config, name: str, split: str) -> Path:
    return config.out / "data" / name / f"{split}.parquet"


def _folder(data: Path, name: str) -> Path:
    """The task's folder, by its name in any spelling: stsb, STS-B."""
    if not data.is_dir():
        raise FileNotFoundError(f"{data} is no folder; give one that holds a folder for each task, or hub")
    for folder in sorted(data.iterdir()):
        if folder.is_dir() and "".join(filter(str.isalnum, folder.name)).lower() == name:
            return folder
    raise FileNotFoundError(f"{data} holds no folder for the task {name}; expected {data / name}")


def _file(folder: Path, split: str) -> Path:
    from jaxptft.data.readers import SUFFIXES

    stems = (split, split.replace("validation", "dev"))
    for stem in stems:
        for suffix in SUFFIXES:
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    raise FileNotFoundError(f"{folder} holds no file {stems[-1]} ({', '.join(SUFFIXES)}), nor was it saved by datasets")


def _extract(config: Config, name: str, whole: str) -> None:
    """Write each validation split but the first, where it is in a data set of several, as a file of its own."""
    from jaxptft.data.sources import load

    for split in TASKS[name].splits[1:]:
        path = _extracted(config, name, split)
        if Path(whole).is_file() or (config.resume and path.is_file()):
            continue
        found = load(whole)[1]
        if split not in found:
            raise ValueError(f"{whole} has no split {split}; splits found: {', '.join(found)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        found[split].to_parquet(str(unfinished))
        unfinished.replace(path)


def _finished(settings: "finetune.Config") -> bool:
    """Whether the run has its report, and was as long as is asked for now."""
    if not settings.resume or not (settings.out / "report.json").is_file():
        return False
    before = read_yaml(settings.out / CONFIG)
    return (before["steps"], before["epochs"]) == (settings.steps, settings.epochs)


def _fine_tune(settings: "finetune.Config", name: str, say: Callable[[str], None]) -> float:
    from jaxptft.recipes import finetune

    return finetune.run(settings, name=name, say=say).seconds


def _result(name: str, out: Path) -> dict[str, Any]:
    """The scores of a finished run, by split where there are several, and their mean."""
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    task = TASKS[name]
    metrics: dict[str, float] = {}
    for split, ours in zip(task.splits, ("eval", "test"), strict=False):
        suffix = f" ({split.removeprefix('validation_')})" if len(task.splits) > 1 else ""
        metrics |= {f"{score}{suffix}": score_of(score, report[ours]) for score in task.scores}
    return {"metrics": metrics, "score": sum(metrics.values()) / len(metrics), "rows": report["rows"]["eval"]}


def _recorded(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.is_file() else {}


def _write(path: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    score = sum(result["score"] for result in results.values()) / len(results)
    found = {"tasks": dict(results), "score": score}
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _table(found: Mapping[str, Any]) -> str:
    from jaxptft.recipes.text_table import table

    lines = []
    for name, result in found["tasks"].items():
        metrics = ", ".join(f"{metric} {value:.4f}" for metric, value in result["metrics"].items())
        seconds = "" if result["seconds"] is None else f"{result['seconds']:.0f}"
        lines.append((name, [metrics, f"{result['score']:.4f}", f"{result['rows']:,}", seconds]))
    lines.append(("mean", ["", f"{found['score']:.4f}", "", ""]))
    return table("GLUE, validation rows", ["metrics", "score", "rows", "seconds"], lines)
