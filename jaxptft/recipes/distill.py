"""Distil a fine-tuned model into a smaller one.

The student starts from some of the teacher's layers, from nothing in a named size, or from any folder. It learns the
teacher's answers, softened, and if asked its hidden states, attention and relations; beside the labels of its rows, or
on rows and texts without any. All that a fine-tuning can do goes with it: what trains and how fast, penalties,
masked tokens beside the task.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro
from pydantic import Field, model_validator

from jaxptft.recipes import finetune
from jaxptft.recipes import report as reports
from jaxptft.recipes.settings import Settings
from jaxptft.recipes.students import read_layers, read_pairs

_LABELS = ("class_weights", "weights_by_class", "sampling", "label_smoothing")


class Matching(Settings):
    """Which inner layers are compared, and how."""

    layers: str = "uniform"
    """for hidden and attention: uniform, last, or STUDENT:TEACHER pairs such as 1:2,2:4 (from 1; 0: the embeddings)"""
    relation_layers: str = "last"
    """for relation, likewise"""
    hidden: Literal["mse", "cosine"] = "mse"
    """where widths differ, a projection is learnt beside the student"""
    attention: Literal["mse", "kl"] = "mse"
    """squared difference of the scores (TinyBERT), or divergence of the probabilities (MobileBERT)"""
    relation_heads: int | None = Field(default=None, ge=1)
    """heads that queries, keys and values are cut into anew (default: as the two models have them)"""
    relation_parts: Literal["qkv", "v"] = "qkv"
    """MiniLMv2's three relations, or the values' alone, which with --attention and kl is MiniLM"""


class Config(finetune.Config):
    """Distil a model: jaxptft distill --teacher DIR --student layers:0,2,4 --train train.csv --out runs/x"""

    teacher: str
    """a fine-tuned model: a Hugging Face folder, a run folder, a converted folder, or a name on the hub"""
    student: str
    """layers:0,2,4 (the teacher's, counted from 0), a size as `pretrain --size` has them, or a model of its own"""
    model: Annotated[str, tyro.conf.Suppress] = ""
    """the student stands for it"""
    unlabelled: bool = False
    """do not read labels of the training rows; text files then count as well, each line an example"""
    soft: float = Field(default=1.0, ge=0)
    """weight of the teacher's answers, against 1 of the labels"""
    temperature: float | None = Field(default=None, gt=0)
    """of both models' answers (default: 2); where classes do not exclude each other, squared differences count"""
    hidden: float = Field(default=0.0, ge=0)
    """weight of the hidden states"""
    attention: float = Field(default=0.0, ge=0)
    """weight of what tokens attend to"""
    relation: float = Field(default=0.0, ge=0)
    """weight of the relations between tokens"""
    matching: Matching = Matching()
    teacher_logits: Literal["auto", "cached", "live"] = "auto"
    """cached: the teacher answers once, and its answers are kept; auto: wherever they alone are needed, but not those
    to choices and in responses"""

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.model:
            raise ValueError("a distillation has no model, but a student; give that")
        if self.baseline != "none":
            raise ValueError("baseline is of a fine-tuning, and the teacher stands beside a student; leave it out")
        if not (self.soft or self.hidden or self.attention or self.relation):
            raise ValueError("soft, hidden, attention and relation are all 0, so nothing is distilled; give one")
        if self.student.startswith("layers:"):
            numbers = ",".join(map(str, read_layers(self.student)))
            if self.lora.rank:
                raise ValueError(
                    f"adapters are for a model in a folder, and student {self.student} is in none; make one (jaxptft "
                    f"convert change {self.teacher} --keep-layers {numbers} --out DIR) and give it as the student"
                )
        for name in ("layers", "relation_layers"):
            try:
                read_pairs(getattr(self.matching, name))
            except ValueError as error:
                raise ValueError(f"matching.{name}: {error}") from None
        if not self.unlabelled:
            return self
        if self.task != "classification":
            raise ValueError(f"unlabelled rows are for classification, and task is {self.task}; leave unlabelled out")
        if self.eval is None:
            raise ValueError("training rows without labels cannot choose the best model; give eval, with labels")
        for name in (*_LABELS, "augment"):
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if getattr(self, name) != default:
                raise ValueError(f"{name} does not go with unlabelled; leave it out")
        if self.adaptation.importance:
            raise ValueError("adaptation.importance weighs labelled rows, and they are unlabelled; leave it out")
        return self


class Result(NamedTuple):
    """What a run came to."""

    out: Path
    reports: dict[str, reports.Report]  # of the student, by split: eval and, where there is one, test
    teacher: dict[str, dict[str, float]]  # its metrics, by split
    parameters: int
    teacher_parameters: int
    seconds: float  # of training, evaluations included; of this process
    best_step: int


def run(config: Config, *, name: str = "distill", say: Callable[[str], None] = print) -> Result:
    """Run (or with `resume` continue) a distillation; see `Config` for every value.

    Raises ValueError, FileNotFoundError or FileExistsError in one line for whatever does not fit, before the first
    step; `train.Stopped` after saving when SIGTERM or Ctrl-C asks for it.
    """
    from jaxptft.recipes.carry_out import carry_out
    from jaxptft.recipes.distill_run import DistillRun

    done = carry_out(config, say, lambda own, say, stop: DistillRun(own, name=name, say=say, stop=stop))
    work = done.work
    return Result(
        config.out,
        done.found,
        work.teacher_metrics,
        work.student_parameters,
        work.teacher_parameters,
        done.seconds,
        done.loop.best_step,
    )
