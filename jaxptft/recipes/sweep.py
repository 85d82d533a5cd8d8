"""Search for the values of a recipe that work best on its evaluation rows.

Each trial is a run of the recipe in a folder of its own; its test rows stay unread. The best values are run again with
other seeds and with the test rows, so that what is reported was not chosen for its luck.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from pydantic import Field

from jaxptft.recipes.search_space import Range, Space, draw, read_space, with_values
from jaxptft.recipes.settings import Settings, build, keys, nearest, read_yaml

_JOURNAL, _RECORD = "study.log", "config.yaml"
_MAY_CHANGE = ("out", "resume", "trials", "reruns")
_LOWER_IS_BETTER = ("loss", "perplexity", "mse")
_HEAVY = ("checkpoints", "model", "generator", "adapter")  # of a trial, which nobody continues


class Config(Settings):
    """Search a recipe's values: jaxptft sweep --base run.yaml --search learning_rate log:1e-5:1e-3 --out runs/sweep"""

    base: Path
    """a YAML file with the values that stay: a run's config.yaml, or one written by hand"""
    search: dict[str, str]
    """key (dots reach into groups) -> LOW:HIGH, log:LOW:HIGH, or values separated by commas"""
    out: Path
    """the sweep's folder"""
    recipe: Literal["finetune", "pretrain", "distill"] = "finetune"
    metric: str | None = None
    """of the evaluation; less is better of a loss, perplexity or mse (default: the first in the recipe's report, such
    as classification/accuracy)"""
    trials: int = Field(default=20, ge=1)
    """in all, those before --resume included"""
    sampler: Literal["tpe", "random"] = "tpe"
    """tree-structured Parzen estimators, or values drawn at random"""
    reruns: int = Field(default=3, ge=1)
    """how often the best values are run again, each time with another seed, and with the test rows"""
    seed: int = Field(default=0, ge=0)
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """go on with the sweep in --out; a trial that was cut short is run again"""


class Result(NamedTuple):
    """What a sweep came to."""

    best: dict[str, Any]  # the values
    value: float  # of the metric in the best trial
    reruns: dict[str, list[float]]  # metric -> its value in each rerun, on the test rows where there are any
    trials: int  # that came to an end


def run(config: Config, *, say: Callable[[str], None] = print) -> Result:
    """Run (or with `resume` continue) a sweep.

    Raises ValueError for a key or a space that does not fit, before the first trial; FileExistsError where --out holds
    something; RuntimeError where the first trial has no such metric, or none came to an end.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise RuntimeError("sweep needs Optuna; install it with pip install 'jaxptft[sweep]'") from None

    recipe = _recipe(config.recipe)
    base = read_yaml(config.base)
    spaces = _spaces(config, recipe.Config, base)
    _claim(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(config.out / _JOURNAL)))
    metric = config.metric or _usual_metric(config.recipe, base)
    study = optuna.create_study(
        storage=storage,
        study_name="sweep",
        direction="minimize" if _lower_is_better(metric or "") else "maximize",
        load_if_exists=True,
    )
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):  # cut short
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    seed = config.seed + len(study.trials)  # after a resume other values are drawn than before
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    study.sampler = samplers[config.sampler](seed=seed)

    def ended() -> list[Any]:
        return study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))

    def objective(trial: Any) -> float:
        chosen = draw(trial, spaces)
        out = config.out / "trials" / f"{trial.number:04d}"
        values = with_values(base, {**chosen, "out": str(out), "overwrite": (out / "config.yaml").exists()})
        values = {**values, "resume": False, **({"test": None} if "test" in recipe.Config.model_fields else {})}
        metrics = _metrics(recipe.run(build(recipe.Config, values), name=out.name, say=_quiet), "eval")
        for name in _HEAVY:
            shutil.rmtree(out / name, ignore_errors=True)
        if metric is not None and metric not in metrics and ended():
            raise ValueError(f"it has no {metric}, as where every prediction is one number")
        name = _named(metric, metrics)
        say(f"trial {trial.number}: {name} {metrics[name]:.4f}  {_shown(chosen)}")
        return metrics[name]

    attempts = 0
    while len(ended()) < config.trials and attempts < 2 * config.trials:
        attempts += 1
        trial = study.ask()
        try:
            study.tell(trial, objective(trial))
        except (ValueError, FloatingPointError) as error:  # values that do not go together
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            say(f"trial {trial.number} failed: {error}")
    if not ended():
        raise RuntimeError(f"none of {attempts} trials came to an end; the last message above says why")
    best = study.best_trial
    assert best.value is not None
    say(f"best of {len(ended())} trials: {best.value:.4f}  {_shown(best.params)}")
    reruns = _rerun(config, recipe, base, best.params, say)
    _report(config, study, ended(), reruns, say)
    return Result(dict(best.params), float(best.value), reruns, len(ended()))


def _rerun(
    config: Config, recipe: Any, base: Mapping[str, Any], best: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, list[float]]:
    import numpy as np

    found: dict[str, list[float]] = {}
    first = int(base.get("seed", 0)) + 1
    for number in range(config.reruns):
        out = config.out / "best" / str(number)
        values = with_values(base, {**best, "seed": first + number, "out": str(out), "resume": False})
        values["overwrite"] = (out / "config.yaml").exists()
        result = recipe.run(build(recipe.Config, values), name=f"best, seed {first + number}", say=_quiet)
        for name, value in _metrics(result, "test").items():
            found.setdefault(name, []).append(value)
    for name, values in found.items():
        spread = f" +- {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        say(f"the best values, {len(values)} other seeds: {name} {np.mean(values):.4f}{spread}")
    return found


def _report(
    config: Config, study: Any, ended: list[Any], reruns: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """report.json, and pictures of what mattered and of how the search went."""
    import optuna
    from matplotlib.figure import Figure

    importances: dict[str, float] = {}
    if len(ended) > 1 and len({trial.value for trial in ended}) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=config.seed)
        importances = {
            name: float(value)
            for name, value in optuna.importance.get_param_importances(study, evaluator=evaluator).items()
        }
    body = {
        "best": study.best_trial.params,
        "value": study.best_trial.value,
        "reruns": reruns,
        "importances": importances,
        "trials": [{"number": trial.number, "value": trial.value, **trial.params} for trial in ended],
    }
    (config.out / "report.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    matters, went = figure.subplots(1, 2)
    matters.barh(list(importances)[::-1], list(importances.values())[::-1])
    matters.set(title="importance (fANOVA)", xlim=(0, 1))
    went.plot([trial.number for trial in ended], [trial.value for trial in ended], "o")
    went.set(title="value by trial", xlabel="trial")
    went.grid(alpha=0.3)
    figure.savefig(config.out / "sweep.png", dpi=150)
    for name, value in importances.items():
        say(f"importance of {name}: {value:.2f}")


def _recipe(name: str) -> Any:
    import importlib

    return importlib.import_module(f"jaxptft.recipes.{name}")


def _spaces(config: Config, kind: type[Settings], base: Mapping[str, Any]) -> dict[str, Space]:
    """The spaces, after a check that their keys exist and that the recipe's Config takes a value of each."""
    if not config.search:
        raise ValueError("search is empty; give a key and its values, such as learning_rate log:1e-5:1e-3")
    known = keys(kind)
    spaces = {}
    for key, text in config.search.items():
        if key in ("out", "resume", "overwrite", "seed", "test"):
            raise ValueError(f"search cannot choose {key}, which the sweep sets itself; leave it out")
        if key not in known and key.partition(".")[0] not in known:
            raise ValueError(f"search: {config.recipe} has no key {key!r}{nearest(key, known)}")
        spaces[key] = read_space(key, text)
    for key, space in spaces.items():
        for value in (space.low, space.high) if isinstance(space, Range) else space:
            build(kind, with_values(base, {key: value, "out": str(config.out)}), source=f"search, {key}")
    return spaces


def _claim(config: Config) -> None:
    """Take the folder, or check that the sweep in it is this one."""
    record = config.out / _RECORD
    if config.resume:
        if not record.is_file():
            raise FileNotFoundError(f"{config.out} holds no sweep to resume; leave out --resume to start one")
        before = build(Config, read_yaml(record), source=str(record)).model_dump(mode="json")
        for name, now in config.model_dump(mode="json").items():
            if name not in _MAY_CHANGE and now != before[name]:
                raise ValueError(
                    f"{name} is {now!r}, but the sweep in {config.out} has {before[name]!r}; start a new one"
                )
    elif config.out.exists() and any(config.out.iterdir()):
        raise FileExistsError(f"{config.out} is not empty; continue a sweep with --resume, or choose another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    record.write_text(config.model_copy(update={"resume": False}).to_yaml(), encoding="utf-8")


def _metrics(result: Any, split: str) -> Mapping[str, float]:
    """What a run found on a split, or on its evaluation rows where it has no such split."""
    if hasattr(result, "reports"):
        return result.reports[split if split in result.reports else "eval"].metrics
    return result.metrics


def _named(metric: str | None, metrics: Mapping[str, float]) -> str:
    if metric is None:
        return next(iter(metrics))
    if metric not in metrics:
        raise RuntimeError(
            f"there is no metric {metric!r}{nearest(metric, list(metrics))}; known: {', '.join(metrics)}"
        )
    return metric


def _usual_metric(recipe: str, base: Mapping[str, Any]) -> str | None:
    """What decides where nothing is said; None for the first that a run reports, of which more is better."""
    if recipe == "pretrain":
        return "pretraining/loss"
    return {"response": "response/loss", "regression": "regression/pearson"}.get(base.get("task", ""))


def _lower_is_better(metric: str) -> bool:
    return metric.rpartition("/")[2] in _LOWER_IS_BETTER


def _shown(values: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )


def _quiet(line: str) -> None:
    """Trials have their own logs."""
