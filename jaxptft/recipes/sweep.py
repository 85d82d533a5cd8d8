"""Search for the values of a recipe that work best on its evaluation rows.

Each trial is a run of the recipe in a folder of its own; its test rows stay unread. The best values are run again with
other seeds and with the test rows, so that what is reported was not chosen for its luck.
"""

import json
import math
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from pydantic import Field, model_validator

from jaxptft.recipes.search_space import Range, Space, draw, read_space, with_values
from jaxptft.recipes.settings import Settings, build, keys, nearest, read_yaml

_JOURNAL, _RECORD = "study.log", "config.yaml"
_MAY_CHANGE = ("out", "resume", "trials", "reruns", "at_once")
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
    vectorized: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """trials are runs of one program, compiled once, where only learning_rate, dropout, l2_to_pretrained and
    optimizer.weight_decay are searched: on CPU one after another, else at_once side by side (vmap)"""
    at_once: int | None = Field(default=None, ge=1)
    """with --vectorized: trials side by side (default: 1 on CPU, else 8)"""
    halving: int = Field(default=3, ge=0)
    """with --vectorized: of the trials at their 1st, 3rd, 9th, ... evaluation the best of so many goes on (asynchronous
    successive halving, arXiv:1810.05934); 0: all end by themselves"""
    reruns: int = Field(default=3, ge=1)
    """how often the best values are run again, each time with another seed, and with the test rows"""
    seed: int = Field(default=0, ge=0)
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """go on with the sweep in --out; a trial that was cut short is run again"""

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.vectorized and self.recipe != "finetune":
            raise ValueError(f"vectorized trials are fine-tunings, and recipe is {self.recipe}; leave one of them out")
        if self.at_once is not None and not self.vectorized:
            raise ValueError("at_once is of vectorized trials; give vectorized too, or leave it out")
        if self.halving == 1:
            raise ValueError("halving is 1, by which every trial would go on; give 0 for that, or from 2 on")
        return self


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
    _check_vectorized(config, base, spaces)
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
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=max(2, config.halving))

    def ended() -> list[Any]:
        return study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))

    def pruned() -> list[Any]:
        return study.get_trials(states=(optuna.trial.TrialState.PRUNED,))

    runner = _runner(config, recipe, base)
    telling = threading.Lock()

    def objective(trial: Any, chosen: Mapping[str, Any], stop: Any) -> float:
        out = config.out / "trials" / f"{trial.number:04d}"
        values = with_values(base, {**chosen, "out": str(out), "overwrite": (out / "config.yaml").exists()})
        values = {**values, "resume": False, **({"test": None} if "test" in recipe.Config.model_fields else {})}

        def judged(work: Any, step: int, metrics: Mapping[str, float]) -> None:
            """Stops a trial that others have outrun, unless it is at its end anyway."""
            value = metrics.get(metric or work.training.schedule.monitor)
            if config.halving and value is not None and math.isfinite(value) and step < work.training.schedule.steps:
                with telling:
                    trial.report(value, len(reported.setdefault(trial.number, [])) + 1)
                    reported[trial.number].append(value)
                    if trial.should_prune():
                        raise optuna.TrialPruned(f"{value:.4f} at step {step}")

        try:
            metrics = _metrics(runner.run(build(recipe.Config, values), out.name, judged, stop), "eval")
        finally:
            for name in _HEAVY:
                shutil.rmtree(out / name, ignore_errors=True)
        if metric is not None and metric not in metrics and ended():
            raise ValueError(f"it has no {metric}, as where every prediction is one number")
        name = _named(metric, metrics)
        say(f"trial {trial.number}: {name} {metrics[name]:.4f}  {_shown(chosen)}")
        return metrics[name]

    def take(trial: Any, chosen: Mapping[str, Any], stop: Any) -> None:
        found: dict[str, Any] = {}
        try:
            found = {"values": objective(trial, chosen, stop)}
        except optuna.TrialPruned as outrun:
            found = {"state": optuna.trial.TrialState.PRUNED}
            say(f"trial {trial.number} stopped: {outrun}  {_shown(trial.params)}")
        except (ValueError, FloatingPointError) as error:  # values that do not go together
            found = {"state": optuna.trial.TrialState.FAIL}
            say(f"trial {trial.number} failed: {error}")
        with telling:
            study.tell(trial, **found)

    reported: dict[int, list[float]] = {}
    attempts = 0
    while (lacking := config.trials - len(ended()) - len(pruned())) > 0 and attempts < 2 * config.trials:
        trials = [study.ask() for _ in range(min(runner.at_once, lacking))]
        attempts += len(trials)
        runner.all_of([partial(take, trial, draw(trial, spaces)) for trial in trials])
    if not ended():
        raise RuntimeError(f"none of {attempts} trials came to an end; the last message above says why")
    best = study.best_trial
    assert best.value is not None
    say(f"best of {len(ended())} trials: {best.value:.4f}  {_shown(best.params)}")
    reruns = _rerun(config, runner, recipe.Config, base, best.params, say)
    _report(config, study, ended(), reruns, say)
    return Result(dict(best.params), float(best.value), reruns, len(ended()))


class _Runner(NamedTuple):
    """How runs are made: `run` makes one, of a config, a name, what is told of evaluations, and a flag to stop by;
    `all_of` does some jobs that each make one, `at_once` at most, and gives them the flag."""

    run: Callable[[Any, str, Any, Any], Any]
    all_of: Callable[[Sequence[Callable[[Any], None]]], None]
    at_once: int


def _runner(config: Config, recipe: Any, base: Mapping[str, Any]) -> _Runner:
    if not config.vectorized:

        def one_by_one(jobs: Sequence[Callable[[Any], None]]) -> None:
            for job in jobs:
                job(None)

        return _Runner(lambda own, name, judged, stop: recipe.run(own, name=name, say=_quiet), one_by_one, 1)

    import jax

    from jaxptft.recipes.one_program import Runs

    at_once = config.at_once or (1 if jax.default_backend() == "cpu" else 8)
    if at_once > 1 and base.get("fsdp", 1) > 1:
        raise ValueError("runs side by side hold their states whole; leave out fsdp, or take --at-once 1")
    runs = Runs(side_by_side=at_once > 1)
    run = lambda own, name, judged, stop: runs.run(own, name=name, say=_quiet, judged=judged, stop=stop)  # noqa: E731
    return _Runner(run, runs.at_once, at_once)


def _check_vectorized(config: Config, base: Mapping[str, Any], spaces: Mapping[str, Space]) -> None:
    """ValueError where the trials cannot be runs of one program."""
    if not config.vectorized:
        return
    for key, only in (("parallel", "jit"), ("baseline", "none")):
        if base.get(key, only) != only:
            raise ValueError(f"vectorized trials do not go with {key}={base[key]}; leave one of them out")
    from jaxptft.recipes.dials import check_dials

    check_dials(spaces)
    penalty = spaces.get("l2_to_pretrained", (1,))
    if 0 in ((penalty.low,) if isinstance(penalty, Range) else penalty):
        raise ValueError("l2_to_pretrained of 0 is a program without it; search above 0, or leave out --vectorized")


def _rerun(
    config: Config,
    runner: _Runner,
    kind: Any,
    base: Mapping[str, Any],
    best: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, list[float]]:
    import numpy as np

    found: dict[str, list[float]] = {}
    first = int(base.get("seed", 0)) + 1
    results: dict[int, Any] = {}

    def again(number: int, stop: Any) -> None:
        out = config.out / "best" / str(number)
        values = with_values(base, {**best, "seed": first + number, "out": str(out), "resume": False})
        values["overwrite"] = (out / "config.yaml").exists()
        results[number] = runner.run(build(kind, values), f"best, seed {first + number}", None, stop)

    for start in range(0, config.reruns, runner.at_once):
        numbers = range(start, min(start + runner.at_once, config.reruns))
        runner.all_of([partial(again, number) for number in numbers])
    for number in range(config.reruns):
        for name, value in _metrics(results[number], "test").items():
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
