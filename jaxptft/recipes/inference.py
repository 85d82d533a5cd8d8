"""A fine-tuned model from any folder, ready to be asked."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxptft import data, models, objectives, optim, train
from jaxptft.recipes.model_source import open_model
from jaxptft.recipes.preprocessing import Preprocessing, read_preprocessing

SETTINGS = "jaxptft"  # under task_specific_params of a config.json: what we keep with a fine-tuned model
_PROBLEMS = {  # problem_type -> task, of a head that reads one vector a text
    "single_label_classification": "classification",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
_HEADS = ("token_classifier", "question_answering", "multiple_choice")
_TASK_OF = {"token_classifier": "token_classification"}


class Opened:
    """A model with the head of a task, its tokenizer, the names of its outputs, and what was settled with it.

    Raises ValueError where the folder holds no head that a task has.
    """

    def __init__(self, model: str | Path, *, family: str | None = None, allow_bin: bool = False):
        folder, checkpoint = open_model(model, family=family, allow_bin=allow_bin)
        self.checkpoint = checkpoint
        self.source, self.config, self.params = str(model), checkpoint.config, checkpoint.params
        self.fields: Mapping[str, Any] = checkpoint.extras.fields
        self.settings = settings_of(self.fields)
        self.names = tuple(checkpoint.labels or ())
        self.task = self._task()
        self._mesh = train.make_mesh()
        self._placed: Any = None
        self.tokenizer: Any = None
        self.preprocessing: Preprocessing | None = None
        self.max_length = 0
        if models.reads_images(self.config):
            self.preprocessing = read_preprocessing(folder, self.config)
            return
        self.tokenizer = data.load_tokenizer(folder)
        data.check_vocabulary(self.tokenizer, self.config.vocab_size)
        longest = min(self.config.max_length, self.tokenizer.model_max_length)
        self.max_length = min(self.settings.get("max_length", longest), longest)

    def _task(self) -> str:
        if "classifier" in self.params:
            problem = self.fields.get("problem_type")
            if problem is None:  # as transformers takes it
                problem = "regression" if len(self.names) == 1 else "single_label_classification"
            if problem not in _PROBLEMS:
                raise ValueError(f"{self.source}: problem_type is {problem!r}; expected one of {', '.join(_PROBLEMS)}")
            task = _PROBLEMS[problem]
            if task == "classification" and len(self.names) < 2:
                raise ValueError(
                    f"{self.source} does not tell classes apart: its head has {len(self.names)} outputs and "
                    f"problem_type {problem!r}; expected two or more"
                )
            if task == "regression" and len(self.names) != 1:
                raise ValueError(f"{self.source} gives {len(self.names)} numbers a text; regression is of one")
            return "image_classification" if models.reads_images(self.config) else task
        for head in _HEADS:
            if head in self.params:
                return _TASK_OF.get(head, head)
        if self.settings.get("task"):
            return self.settings["task"]
        raise ValueError(f"{self.source} has no head of a task; fine-tune it first (jaxptft finetune)")

    @property
    def devices(self) -> int:
        """What a batch must be a multiple of."""
        return self._mesh.size

    @property
    def settled(self) -> Mapping[str, Any]:
        """What was chosen on the evaluation rows of the model's fine-tuning: a threshold."""
        return self.settings.get("settled", {})

    def model(self, model_task: str, *, classes: int | None = None) -> models.Model:
        """The network; ValueError where the folder lacks one of its parameters."""
        network = models.build(self.config, model_task, classes=classes)
        shape = (1, 2, 3) if model_task == "multiple_choice" else (1, 3)
        row: dict[str, np.ndarray]
        row = {name: np.zeros(shape, np.int32) for name in ("input_ids", "attention_mask", "token_type_ids")}
        if self.preprocessing is not None:
            row = {"image": np.zeros((1, *self.preprocessing.size, self.preprocessing.channels), np.float32)}
        known = self._known()
        wanted = optim.paths(jax.eval_shape(network.init, jax.random.key(0), row))
        if lacking := [path for path in wanted if path not in known]:
            raise ValueError(f"{self.source} lacks {lacking[0]}; fine-tune it first (jaxptft finetune)")
        return network

    def _known(self) -> set[str]:
        """The paths of the parameters."""
        return set(optim.paths(self.params))

    def longest(self, asked: int | None) -> int:
        """How many tokens an example may have: as asked, or as in the model's fine-tuning."""
        return min(asked or self.max_length, self.config.max_length)

    def batches(
        self, table: data.Table, *, batch_size: int, max_length: int | None, say: Callable[[str], None]
    ) -> data.Batches:
        """The rows of a table, for `predictions`; says how many texts were cut."""
        longest = self.longest(max_length)
        tokenized = data.tokenize(table, self.tokenizer, longest)
        if tokenized.truncated:
            say(f"{tokenized.truncated} of {len(table)} texts are longer than {longest} tokens and were cut")
        return data.Batches(tokenized, batch_size=batch_size, shuffle=False, multiple_of=self.devices)

    def predictor(self, objective: objectives.Objective) -> "Predictor":
        """What asks the model for batch after batch, compiled once for each shape."""
        if self._placed is None:
            self._placed = train.replicate(self.params, self._mesh)
        vocabulary = None if self.preprocessing is not None else self.config.vocab_size
        return Predictor(objective, self._placed, self._mesh, vocabulary)

    def predictions(
        self,
        objective: objectives.Objective,
        batches: Any,
        *,
        name_row: Callable[[int], str] = "example {}".format,
    ) -> dict[str, np.ndarray]:
        """What the objective predicts for each example, in the order of the ids; see `Predictor`."""
        step = 0
        with train.Progress("rows", batches.steps_per_epoch) as progress:

            def done(rows: int) -> None:
                nonlocal step
                step += 1
                progress.update(step, None, rows)

            return self.predictor(objective)(batches, name_row=name_row, done=done)


class Predictor:
    """An objective's predictions with the parameters of a model; `shapes` are those of the batches so far."""

    def __init__(self, objective: objectives.Objective, placed: Any, mesh: Any, vocabulary: int | None):
        self._evaluator, self._placed, self._vocabulary = (
            train.make_evaluator(objective, labelled=False),
            placed,
            vocabulary,
        )
        self._place = partial(train.shard, mesh=mesh)
        self._constants = train.replicate(objective.constants, mesh)
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(
        self,
        batches: Any,
        *,
        name_row: Callable[[int], str] = "example {}".format,
        done: Callable[[int], None] = lambda rows: None,
    ) -> dict[str, np.ndarray]:
        """What is predicted for each example, in the order of the ids; `done` hears how many were, batch by batch.

        Raises FloatingPointError where a number is not finite; `name_row` says which example that is.
        """
        if self._vocabulary is not None:
            data.check_tokens(batches.tokenized, self._vocabulary)

        def stream():
            for step in range(batches.steps_per_epoch):
                batch = batches.batch_at(step)
                self.shapes.add(batch["image" if self._vocabulary is None else "input_ids"].shape)
                yield batch
                done(int(batch["valid"].sum()))

        evaluation = train.evaluate(self._evaluator, self._placed, {}, self._constants, stream(), place=self._place)
        found = jax.device_get(evaluation.predictions)
        for values in found.values():
            if not np.issubdtype(values.dtype, np.floating):
                continue
            broken = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(-1))
            if len(broken):
                raise FloatingPointError(
                    f"{name_row(int(broken[0]))}: the model gives NaN or infinity; its weights are broken"
                )
        return found


def settings_of(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config.json keeps of our own; {} where another program wrote it."""
    params = fields.get("task_specific_params")
    found = params.get(SETTINGS) if isinstance(params, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def with_settings(
    fields: Mapping[str, Any], settings: Mapping[str, Any], *, source: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of a config.json that keep `settings`, beside the parameters of tasks that the source's names."""
    others = source.get("task_specific_params")
    kept = dict(others) if isinstance(others, Mapping) else {}
    return {**fields, "task_specific_params": kept | {SETTINGS: dict(settings)}}
