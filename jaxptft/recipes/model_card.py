"""The README.md of an exported Hugging Face folder: what the run that made the model has recorded, and no more.

Its front matter is `huggingface_hub`'s: https://huggingface.co/docs/hub/model-cards
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from jaxptft import __version__
from jaxptft.recipes.inference import Opened
from jaxptft.recipes.settings import read_yaml

_PIPELINES = {
    "classification": "text-classification",
    "multi_label": "text-classification",
    "regression": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
    "response": "text-generation",
    "image_classification": "image-classification",
}
_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "text-generation": "AutoModelForCausalLM",
    "image-classification": "AutoModelForImageClassification",
}
_METRICS = {"macro_f1": "f1", "micro_f1": "f1", "pearson": "pearsonr", "spearman": "spearmanr"}  # as the hub calls them
_SPLITS = {"train": "training", "eval": "evaluation", "test": "test"}
_HYPERPARAMETERS = (
    *("learning_rate", "batch_size", "accumulate", "epochs", "steps", "max_length", "seed", "dtype", "dropout"),
    *("optimizer", "freeze", "layer_decay", "lora", "temperature", "soft"),  # a group of rank 0 does nothing
)


def write_card(
    folder: Path, opened: Opened, *, run: Path | None, name: str, license: str, language: Sequence[str]
) -> None:
    """Write the card of a model, from its run if it has one."""
    from huggingface_hub import EvalResult, ModelCardData

    pipeline = _PIPELINES[opened.task]
    values = {} if run is None else read_yaml(run / "config.yaml")
    report = _report(run)
    found = [(split, *line) for split in ("test", "eval") for line in _metrics(report, split)]
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=str(source) if _on_hub(source := values.get(split)) else "local",
            dataset_name=_source(values, split),
            dataset_split="test" if split == "test" else "validation",
            metric_type=_METRICS.get(metric, metric),
            metric_name=metric,
            metric_value=value,
        )
        for split, metric, value in found
    ]
    matter = ModelCardData(
        license=license,
        language=list(language) or None,
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["jaxptft", "jax", opened.task.replace("_", "-")],
        datasets=sorted({str(values[key]) for key in _SPLITS if _on_hub(values.get(key))}) or None,
        base_model=str(values["model"]) if _on_hub(values.get("model")) else None,
        metrics=sorted({_METRICS.get(metric, metric) for _, metric, _ in found}) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    parts = [f"---\n{matter.to_yaml()}\n---", f"# {name}", _about(opened, values)]
    if values:
        parts += [_data(values, report), _results(found), _training(values, report)]
    parts += [
        _use(opened, pipeline),
        f"Written by jaxptft {__version__}, which has recorded nothing else about this model.",
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def command_of(values: Mapping[str, Any]) -> str:
    """The command line of a run's config.yaml: what differs from the defaults, on a line each."""
    from jaxptft.recipes import distill, finetune

    name, kind = ("distill", distill.Config) if "teacher" in values else ("finetune", finetune.Config)
    return " \\\n    ".join([f"jaxptft {name}", *_flags(kind, values)])


def _flags(kind: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in values.items():
        field = kind.model_fields.get(key)
        if field is None:
            continue
        default = field.get_default(call_default_factory=True)
        flag = f"--{prefix}{key.replace('_', '-')}"
        if isinstance(value, dict) and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _flags(field.annotation, value, f"{prefix}{key.replace('_', '-')}.")
        elif value in (default, None) or (isinstance(value, list) and tuple(value) == default):
            continue
        elif isinstance(value, bool):
            found.append(flag if value else f"--{prefix}no-{key.replace('_', '-')}")
        elif isinstance(value, dict):
            found.append(" ".join([flag, *(shlex.quote(str(part)) for pair in value.items() for part in pair)]))
        else:
            listed = value if isinstance(value, list) else [value]
            found.append(" ".join([flag, *(shlex.quote(str(part)) for part in listed)]))
    return found


def _report(run: Path | None) -> dict[str, Any]:
    path = None if run is None else run / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}


def _metrics(report: Mapping[str, Any], split: str) -> list[tuple[str, float]]:
    metrics = report.get(split, {}).get("metrics", {})
    return [(name.rpartition("/")[2], round(float(value), 6)) for name, value in metrics.items()]


def _on_hub(name: Any) -> bool:
    """Whether it is written as the hub's names are, and is nothing on this disk."""
    return (
        isinstance(name, str)
        and bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name))
        and not (Path(name).exists() or Path(name).suffix)
    )


def _source(values: Mapping[str, Any], split: str) -> str:
    """The name of a split's data, without the folders of the machine it was on."""
    given = values.get(split)
    if given is None:
        return f"rows held out of {_source(values, 'train')}" if values.get("train") else "not recorded"
    return given if _on_hub(given) else Path(str(given)).name


def _about(opened: Opened, values: Mapping[str, Any]) -> str:
    told = [f"A {opened.checkpoint.family} model for {opened.task.replace('_', ' ')}"]
    start = values.get("student") if "teacher" in values else values.get("model")
    if "teacher" in values:
        told.append(f", distilled from {_shown(values['teacher'])} into {_shown(start)}")
    elif start:
        told.append(f", fine-tuned from {_shown(start)}")
    lines = ["".join(told) + "."]
    if opened.names:
        lines.append(f"Outputs: {', '.join(opened.names)}.")
    if opened.max_length:
        lines.append(f"Texts longer than {opened.max_length} tokens are cut.")
    return "\n".join(lines)


def _shown(name: Any) -> str:
    return str(name) if _on_hub(name) else Path(str(name)).name


def _data(values: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    rows = report.get("rows", {})
    if not rows:
        return ""
    lines = ["## Data", "", "| | source | rows |", "|---|---|---|"]
    return "\n".join(
        [
            *lines,
            *(
                f"| {_SPLITS.get(split, split)} | {_source(values, split)} | {count:,} |"
                for split, count in rows.items()
            ),
        ]
    )


def _results(found: Sequence[tuple[str, str, float]]) -> str:
    if not found:
        return ""
    lines = ["## Results", "", "| rows | metric | value |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {_SPLITS[split]} | {metric} | {value:.4f} |" for split, metric, value in found)])


def _training(values: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    lines = ["## Training", "", "| | |", "|---|---|"]
    for key in _HYPERPARAMETERS:
        value = values.get(key)
        if isinstance(value, dict) and value.get("rank") != 0:
            lines += [f"| {key}.{name} | {entry} |" for name, entry in value.items() if entry not in (None, [], {})]
        elif value is not None and not isinstance(value, dict):
            lines.append(f"| {key} | {value} |")
    for key in ("best_step", "parameters", "trainable_parameters"):
        if key in report:
            lines.append(f"| {key.replace('_', ' ')} | {report[key]:,} |")
    return "\n".join([*lines, "", "```bash", command_of(values), "```"])


def _use(opened: Opened, pipeline: str) -> str:
    part, reader = "tokenizer", "AutoTokenizer"
    if opened.preprocessing is not None:
        part, reader = "processor", "AutoImageProcessor"
    return "\n".join(
        [
            "## Use",
            "",
            "```python",
            f"from transformers import {_CLASSES[pipeline]}, {reader}",
            "",
            f'model = {_CLASSES[pipeline]}.from_pretrained("path/to/this/folder")',
            f'{part} = {reader}.from_pretrained("path/to/this/folder")',
            "```",
        ]
    )
