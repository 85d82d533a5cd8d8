"""The parts of one distillation: those of a fine-tuning, a teacher, and what the student is to take from it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxptft import convert, data, models, objectives, train
from jaxptft.recipes import report as reports
from jaxptft.recipes.additions import Addition, Build
from jaxptft.recipes.computing import computed_with
from jaxptft.recipes.distill import Config
from jaxptft.recipes.finetune_run import FinetuneRun
from jaxptft.recipes.inference import settings_of
from jaxptft.recipes.model_source import model_fingerprint
from jaxptft.recipes.students import in_order, layer_map, make_student
from jaxptft.recipes.tasks import head_of
from jaxptft.recipes.tasks.contract import Task
from jaxptft.recipes.tasks.unlabelled import Unlabelled
from jaxptft.recipes.teacher_logits import taught

if TYPE_CHECKING:
    from jaxptft.train import LoopState, StopFlag

TEMPERATURE = 2.0
_PROBLEMS = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
_SQUARED = ("multi_label", "regression")  # whose outputs are no distribution over classes
_READ = {"question_answering": objectives.answer_places, "response": objectives.response_tokens}


class DistillRun(FinetuneRun):
    """A fine-tuning of the student with the teacher as an addition; built whole before the first step."""

    config: Config

    def __init__(self, config: Config, *, name: str, say: Callable[[str], None], stop: "StopFlag"):
        if config.task in _SQUARED and config.temperature is not None:
            raise ValueError(f"temperature softens a choice between classes, and {config.task} has none; leave it out")
        self.teacher_metrics: dict[str, dict[str, float]] = {}
        super().__init__(config.model_copy(update={"model": config.student}), name=name, say=say, stop=stop)

    @property
    def teacher_parameters(self) -> int:
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.teacher.params))

    @property
    def student_parameters(self) -> int:
        """Those that are saved: a projection that matching has learnt is left out."""
        kept = (self.params[key] for key in ("backbone", self.task.head) if key in self.params)
        return sum(np.size(leaf) for leaf in jax.tree.leaves(list(kept)))

    def _load(self, heads: tuple[str, ...]) -> tuple[Path, convert.Checkpoint]:
        config, head = self.config, head_of(self.config.task)
        folder, self.teacher = self._open(config.teacher, () if head is None else (head,))
        if head is not None and head not in self.teacher.params:
            raise ValueError(f"{config.teacher} has no head for {config.task}; fine-tune it first (jaxptft finetune)")
        problem, expected = self.teacher.extras.fields.get("problem_type"), _PROBLEMS.get(config.task)
        if expected is not None and problem not in (None, expected):
            raise ValueError(f"{config.teacher} is for {problem}, and task is {config.task}; choose its --task")
        separator = settings_of(self.teacher.extras.fields).get("settled", {}).get("separator")
        if config.task == "response" and separator is not None and separator != config.response.separator:
            raise ValueError(
                f"{config.teacher} was taught with the separator {separator!r}, and response.separator is "
                f"{config.response.separator!r}; give the teacher's"
            )
        if config.max_length > self.teacher.config.max_length:
            longest = self.teacher.config.max_length
            raise ValueError(f"max_length is {config.max_length}, but {config.teacher} has {longest} positions")

        def load(model: str) -> convert.Checkpoint:
            own, checkpoint = self._open(model, heads)
            pair = [data.tokenizer_fingerprint(data.load_tokenizer(place)) for place in (folder, own)]
            if pair[0] != pair[1]:
                raise ValueError(
                    f"{model} and {config.teacher} have different tokenizers, and so no tokens in common; choose a "
                    "student with the teacher's"
                )
            return checkpoint

        student = make_student(config.student, self.teacher, load)
        if not student.params["backbone"]:
            self.config = config.model_copy(update={"from_scratch": True})
        return folder, student

    def _read_task(self) -> Task:
        if self.config.unlabelled:
            names, devices = self.teacher.labels or [], self.mesh.size
            task: Task = Unlabelled(self.config, tokenizer=self.tokenizer, devices=devices, names=names, say=self.say)
        else:
            task = super()._read_task()
        self.teacher = in_order(self.teacher, task.head, task.names)
        self.checkpoint = in_order(self.checkpoint, task.head, task.names)
        if task.names is not None and self.teacher.labels is not None and list(task.names) != self.teacher.labels:
            raise ValueError(
                f"the training rows tell {', '.join(task.names)} apart, and the teacher "
                f"{', '.join(self.teacher.labels)}; they must be the same"
            )
        self.teacher_config = computed_with(self.teacher.config, dtype=self.config.dtype)
        # By its own name, though what it answers is in the batches or the constants.
        self.also_same = (("teacher", model_fingerprint(self.teacher.params, self.teacher_config)),)
        self.cached = self._settle_cached(task)
        if self.cached:
            share: dict[str, Any] = {"mesh": self.mesh, "buckets": self.config.length_buckets}
            identity = f"{train.fingerprint(self.teacher.params)} {self.teacher_config} {task.model_task}"
            teacher = models.build(self.teacher_config, task.model_task, classes=task.classes)
            give = partial(taught, teacher=teacher, params=self.teacher.params, of_teacher=identity, **share)
            task.batches = {
                split: give(batches, stop=self.stop, say=self.say) for split, batches in task.batches.items()
            }
        return task

    def _settle_cached(self, task: Task) -> bool:
        config = self.config
        reasons = {
            "the inner layers are matched": bool(config.hidden or config.attention or config.relation),
            "each choice has an answer of its own": config.task == "multiple_choice",
            "an answer is a number for each word at each token, thousands of times the text": config.task == "response",
            "the training texts change": bool(config.augment.deletion or config.augment.swap)
            or not all(isinstance(part, data.Batches) for part in task.batches.values()),
        }
        against = [reason for reason, holds in reasons.items() if holds]
        if against and config.teacher_logits == "cached":
            raise ValueError(f"teacher_logits cannot be cached where {against[0]}; leave it out")
        return not against and config.teacher_logits != "live"

    def _additions(self) -> list[Addition]:
        return [*super()._additions(), Addition("distill", 1.0, self._distillation, reads="task")]

    def _distillation(self, build: Build) -> objectives.Objective:
        # The task predicts what is judged; logits a token, of another width in each batch, could not be gathered.
        return self._taught(build)._replace(predict=lambda params, batch, context: {})

    def _taught(self, build: Build) -> objectives.Objective:
        config, task, matches = self.config, self.task, self._matches()
        outputs = sorted({match.output for match in matches.values()})
        temperature = None if config.task in _SQUARED else config.temperature or TEMPERATURE
        read = _READ.get(config.task)
        student = build(task.model_task, classes=task.classes, outputs=outputs)
        if self.cached:
            return objectives.distillation(student, soft=config.soft, temperature=temperature, read=read)
        return objectives.distillation(
            student,
            models.build(self.teacher_config, task.model_task, classes=task.classes, outputs=outputs),
            teacher_params=self.teacher.params,
            soft=config.soft,
            temperature=temperature,
            read=read,
            matches=matches,
        )

    def _matches(self) -> dict[str, objectives.Match]:
        config, how = self.config, self.config.matching
        pairs = partial(layer_map, student=self.checkpoint.config.layers, teacher=self.teacher.config.layers)
        found = {}
        if config.hidden:
            layers = pairs(how.layers, embeddings=True)
            found["hidden"] = objectives.match_hidden(layers, weight=config.hidden, cosine=how.hidden == "cosine")
        if config.attention:
            layers = pairs(how.layers, embeddings=False)
            found["attention"] = objectives.match_attention(layers, weight=config.attention, kl=how.attention == "kl")
        if config.relation:
            layers = pairs(how.relation_layers, embeddings=False)
            found["relation"] = objectives.match_relations(
                layers, weight=config.relation, heads=how.relation_heads, parts=how.relation_parts
            )
        return found

    def _check_matches(self) -> None:
        """Layers and heads that do not fit are refused now, by tracing the loss once."""
        if self.cached:
            return
        objective, batch = self._objective(None), self.batches["train"].batch_at(0)
        state = objective.start(self.params, batch)
        context = objectives.Context(state, objective.constants, jax.random.key(0), train=False, axis_name=None)
        jax.eval_shape(lambda params: objective.loss(params, batch, context)[0], self.params)

    def _build_training(self) -> None:
        self._check_matches()
        super()._build_training()

    def finish(self, loop: "LoopState") -> dict[str, reports.Report]:
        """Take the best student, report on it beside its teacher, and save it as a Hugging Face folder."""
        self.teacher_metrics = self._judge_teacher()
        found = super().finish(loop)
        table = self._table(found)
        self.say(table)
        with (self.config.out / "report.txt").open("a", encoding="utf-8") as file:
            file.write(f"\n{table}\n")
        return found

    def _facts(self) -> dict[str, Any]:
        known = {"model": self.config.teacher, "parameters": self.teacher_parameters, "cached": self.cached}
        return {"student_parameters": self.student_parameters, "teacher": known | self.teacher_metrics}

    def _judge_teacher(self) -> dict[str, dict[str, float]]:
        task = self.task
        objective = task.objective(models.build(self.teacher_config, task.model_task, classes=task.classes))
        evaluator = train.make_evaluator(objective, labelled=False)
        params, constants = (train.replicate(tree, self.mesh) for tree in (self.teacher.params, objective.constants))
        found = {}
        for split, batches in task.batches.items():
            if split != "train":
                stream = (batches.batch_at(step) for step in range(batches.steps_per_epoch))
                place = partial(train.shard, mesh=self.mesh)
                evaluation = train.evaluate(evaluator, params, {}, constants, stream, place=place, stop=self.stop)
                found[split] = task.metrics(evaluation.predictions, split)
        return found

    def _table(self, found: dict[str, reports.Report]) -> str:
        """Teacher and student, one line each for a split."""
        lines = []
        for split, own in self.teacher_metrics.items():
            names = [name for name in own if name in found[split].metrics]
            lines.append("".join([split.ljust(10), "parameters".rjust(14), *(f"{name:>28}" for name in names)]))
            for who, size, metrics in (
                ("teacher", self.teacher_parameters, own),
                ("student", self.student_parameters, found[split].metrics),
            ):
                lines.append("".join([who.ljust(10), f"{size:14,}", *(f"{metrics[name]:28.4f}" for name in names)]))
        return "\n".join(lines)
