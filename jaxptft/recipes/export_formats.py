"""The formats of `jaxptft export`: how each is written, read back from disk, and compared with the model."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxptft import __version__, export, models, optim
from jaxptft.data.tokenized import backend_of
from jaxptft.export import runner
from jaxptft.recipes.export_rows import Batch, counted
from jaxptft.recipes.exported import OpenedParameters, OpenedProgram
from jaxptft.recipes.inference import Opened
from jaxptft.recipes.metrics.multi_label import thresholds_of

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]


class Live(NamedTuple):
    """A model as one function, the parameters that it reads, and what its inputs look like."""

    task: str
    function: export.Scores
    params: models.Params
    inputs: dict[str, export.Input]
    limits: dict[str, int]

    def runs(self) -> Run:
        """The function, compiled."""
        compiled, params = jax.jit(self.function), jax.device_put(self.params)
        return lambda inputs: compiled(params, {name: inputs[name] for name in self.inputs})


class Compared(NamedTuple):
    """The largest difference of each output, and of all as a share of the largest value where that is above 1."""

    rows: int
    differences: dict[str, float]
    scaled: float


def refuse_task(opened: Opened, format: str) -> None:
    """ValueError where a format does not hold what the model's task needs."""
    if format in ("stablehlo", "onnx") and opened.task not in export.TASKS:
        raise ValueError(
            f"{opened.source} is for {opened.task}, which runs the model once for each token it writes, and {format} "
            "holds one run; export it as hf or flax"
        )


def live(opened: Opened) -> Live:
    """The model's function with the head of its task; ValueError where it lacks one of its parameters."""
    task = opened.task
    if isinstance(opened, OpenedProgram):
        return Live(task, opened.call, opened.params, _inputs(opened.inputs), {})
    head = {"multi_label": "classification", "regression": "classification", "image_classification": "classification"}
    sized = task in (*head, "classification", "token_classification")
    model_task = "causal_lm" if task == "response" else head.get(task, task)
    network = opened.model(model_task, classes=len(opened.names) if sized else None)
    if opened.preprocessing is not None:
        seen = opened.preprocessing
        inputs, limits = export.image_inputs(seen.stored_size, seen.channels), {}
        return Live(task, export.scores(network, task, view=seen.prepare), opened.params, inputs, limits)
    inputs = export.text_inputs(task, token_types=bool(getattr(opened.config, "token_types", 0)))
    row = {name: np.zeros([1 if axis == "batch" else 2 for axis in one.axes], np.int32) for name, one in inputs.items()}
    read = set(optim.paths(jax.eval_shape(network.init, jax.random.key(0), row)))
    params = _only(opened.params, read)
    return Live(task, export.scores(network, task), params, inputs, {"length": opened.config.max_length})


def write(
    folder: Path,
    opened: Opened,
    model: Live,
    format: str,
    *,
    choices: int = 2,
    say: Callable[[str], None] = print,
    **about: Any,
) -> None:
    """Write a program, a graph or parameters, and beside them model.json, config.json and the tokenizer's files.

    Where a graph cannot have any number of choices, it has `choices`; says what a graph has a fixed number of. `about`
    goes into the description as well.
    """
    inputs = model.inputs
    if format == "stablehlo":
        about["program"] = export.write_program(folder, model.function, model.params, inputs, limits=model.limits)
    elif format == "onnx":
        inputs = export.write_onnx(
            folder,
            model.function,
            model.params,
            inputs,
            limits=model.limits,
            sizes={"batch": 1, "length": opened.max_length, "choices": choices},
            probe=_probe(opened, model),
        )
        was, now = (next(iter(axes.values())).axes for axes in (model.inputs, inputs))
        if fixed := [f"{axis} {size}" for axis, size in zip(was, now, strict=True) if axis != size]:
            say(f"jax2onnx cannot keep every size of this model free: the graph takes {', '.join(fixed)}, and no other")
    else:
        export.write_flax(folder, opened.params)
        about["architecture"] = {"config": type(opened.config).__name__, "values": asdict(opened.config)}
    _write_tokenizer(folder, opened)
    fields = {"model_type": opened.checkpoint.family, **opened.fields}
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    description = {"format": format, "version": runner.FORMAT, **_description(opened, model, inputs), **about}
    (folder / runner.DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_back(folder: Path, format: str) -> Run:
    """What was written, read from disk as its users will."""
    if format == "stablehlo":
        return export.Artifact(folder)
    if format == "hf":
        return live(Opened(folder)).runs()
    description = runner.describe(folder)
    if format == "onnx":
        return export.Graph(folder, _inputs(description["inputs"]))
    return live(OpenedParameters(folder)).runs()


def _inputs(told: Mapping[str, Any]) -> dict[str, export.Input]:
    """The inputs of a description."""
    return {name: export.Input(tuple(one["axes"]), one["dtype"]) for name, one in told.items()}


def compare(model: Live, other: Run, batches: Sequence[Batch]) -> Compared:
    """How far the outputs of the other are from the model's, wherever a row, token or choice is not padding."""
    run, rows, largest = model.runs(), 0, 1.0
    differences: dict[str, float] = {}
    for batch in batches:
        given = {name: batch[name] for name in model.inputs}
        expected, found = run(given), other(given)
        rows += int(batch["valid"].sum())
        chosen = counted(model.task, batch)
        for name, values in expected.items():
            wanted, got = np.asarray(values)[chosen], np.asarray(found[name])[chosen]
            difference = float(np.abs(wanted - got).max(initial=0.0))
            differences[name] = float(np.fmax(differences.get(name, 0.0), difference))
            if not np.isfinite(difference):
                differences[name] = float("inf")
            largest = max(largest, float(np.abs(wanted).max(initial=0.0)))
    return Compared(rows, differences, max(differences.values()) / largest)


def _description(opened: Opened, model: Live, inputs: Mapping[str, export.Input]) -> dict[str, Any]:
    """What whoever runs the model must know of it."""
    told: dict[str, Any] = {
        "task": opened.task,
        "labels": list(opened.names) or None,
        "inputs": {name: one._asdict() for name, one in inputs.items()},
        "limits": model.limits,
        "settings": dict(opened.settings),
        "source": opened.source,
        "jaxptft": __version__,
    }
    if opened.task == "multi_label":
        told["thresholds"] = [float(value) for value in thresholds_of(opened.settled, opened.names)]
    if opened.preprocessing is not None:
        return told | {"image": opened.preprocessing._asdict()}
    tokenizer = opened.tokenizer
    pad_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    text = {"max_length": opened.max_length, "pad_id": pad_id, "truncation_side": tokenizer.truncation_side}
    return told | {"vocab_size": opened.config.vocab_size, "text": text}


def _write_tokenizer(folder: Path, opened: Opened) -> None:
    for file in opened.checkpoint.tokenizer_files:
        shutil.copyfile(file, folder / file.name)
    if opened.tokenizer is not None and not (folder / "tokenizer.json").is_file():
        backend_of(opened.tokenizer).save(str(folder / "tokenizer.json"))


def _probe(opened: Opened, model: Live) -> Callable[[Mapping[str, int]], dict[str, np.ndarray]]:
    """Inputs of any size, drawn at random, some of them padded."""
    random = np.random.default_rng(0)

    def draw(sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        drawn = {}
        for name, one in model.inputs.items():
            shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in one.axes)
            most = {"image": 256, "input_ids": getattr(opened.config, "vocab_size", 0)}.get(name, 1)
            drawn[name] = random.integers(0, most, shape).astype(one.dtype)
            if name == "attention_mask":
                drawn[name][...] = 1
                drawn[name][0, ..., -shape[-1] // 3 :] = 0
            if name == "token_type_ids":
                drawn[name][..., shape[-1] // 2 :] = 1
        return drawn

    return draw


def _only(params: models.Params, paths: set[str]) -> models.Params:
    """The parameters at these paths."""
    flat = dict(zip(optim.paths(params), jax.tree.leaves(params), strict=True))
    kept: dict[str, Any] = {}
    for path in sorted(flat):
        *parents, leaf = path.split("/")
        if path not in paths and "/".join(parents) not in paths:  # a matrix of int8 and its scale
            continue
        place = kept
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = flat[path]
    return kept
