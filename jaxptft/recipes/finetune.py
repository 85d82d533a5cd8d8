"""Fine-tune a model for a task.

Import the checkpoint, freeze what shall stay, train the rest (near its pre-trained values, if asked), keep the model
that is best on the evaluation rows, report on test rows, and leave a folder that `transformers` loads.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from jaxptft.recipes import report as reports
from jaxptft.recipes.pretrain import Masking
from jaxptft.recipes.settings import Settings
from jaxptft.recipes.tasks import TaskName
from jaxptft.recipes.tasks.settings import Answers, Augment, Columns, MultiLabel, Tags
from jaxptft.recipes.training_settings import TrainingSettings


class L2(Settings):
    """Where l2_to_pretrained pulls, and how much."""

    factors: dict[str, float] = Field(default_factory=dict)
    """path pattern -> factor of the weight; the first match wins, 0 leaves alone"""
    new: float = Field(default=0.0, ge=0)
    """weight of plain L2 on parameters that were not imported: the new head"""


class Auxiliary(Settings):
    """The pre-training objective beside the task: masked tokens, or the next token under a causal model."""

    weight: float = Field(default=0.0, ge=0)
    """of its loss against the task's; 0 leaves it out"""
    corpus: tuple[str, ...] = ()
    """unlabelled text: files, folders, globs or hub names, as `pretrain --corpus` takes them"""
    documents: Literal["file", "line", "blank-line"] = "file"
    """what is one document in a text file"""
    text_column: str | None = None
    """the column of .jsonl and .parquet that holds the text (default: text)"""
    batch_size: int | None = Field(default=None, ge=1)
    """rows of it in an optimizer step (default: as many as of the task)"""
    masking: Masking = Masking()

    @model_validator(mode="after")
    def _both(self) -> "Auxiliary":
        if bool(self.weight) != bool(self.corpus):
            raise ValueError("auxiliary needs a weight and a corpus: give both, or neither")
        return self


class Config(TrainingSettings):
    """Fine-tune a model: jaxptft finetune --model DIR --train train.csv --eval dev.csv --out runs/x"""

    model: str
    """a Hugging Face folder, a run folder, a converted folder, or a name on the hub"""
    train: str
    """rows to learn from: .csv, .tsv, .jsonl, .parquet, a folder saved by `datasets`, or a hub name (glue/sst2)"""
    eval: str | None = None
    """rows that choose the best model; without it, the source's validation split, or a tenth of the training rows"""
    test: str | None = None
    """rows that only the best model sees, once"""
    task: TaskName = "classification"
    """what the model shall do with a row"""
    columns: Columns = Columns()
    labels: MultiLabel = MultiLabel()
    tags: Tags = Tags()
    answers: Answers = Answers()
    auxiliary: Auxiliary = Auxiliary()
    answers: Answers = Answers()
    on_bad_row: Literal["error", "skip"] = "error"
    l2_to_pretrained: float = Field(default=0.0, ge=0)
    """weight of ||theta - theta_pretrained||^2 over the trainable parameters of the imported backbone"""
    l2: L2 = L2()
    from_scratch: bool = False
    """the same architecture with fresh parameters, for comparison"""
    label_smoothing: float = Field(default=0.0, ge=0, le=1)
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class weighs as if all were equally frequent in training"""
    weights_by_class: dict[str, float] = Field(default_factory=dict)
    """class -> its weight in the loss, 1 where it is not named; in place of class_weights"""
    sampling: Literal["plain", "balanced"] = "plain"
    """balanced: rows are drawn so that every class, or set of labels, is seen equally often"""
    labels: MultiLabel = MultiLabel()
    augment: Augment = Augment()
    monitor: str | None = None
    """what decides which model is best: accuracy, macro_f1, loss, ... as the task has them (default: its first)"""
    family: str | None = None
    """the architecture, where config.json names none"""


class Result(NamedTuple):
    """What a run came to."""

    out: Path
    reports: dict[str, reports.Report]  # by split: eval and, where there is one, test
    trainable: int  # parameters
    parameters: int
    seconds: float  # of training, evaluations included; of this process
    best_step: int


def run(config: Config, *, name: str = "finetune", say: Callable[[str], None] = print) -> Result:
    """Run (or with `resume` continue) a fine-tuning; see `Config` for every value.

    Raises ValueError, FileNotFoundError or FileExistsError in one line for whatever does not fit, before the first
    step; `train.Stopped` after saving when SIGTERM or Ctrl-C asks for it.
    """
    from jaxptft.recipes.finetune_run import FinetuneRun
    from jaxptft.recipes.training import carry_out

    done = carry_out(config, lambda stop: FinetuneRun(config, name=name, say=say, stop=stop))
    training = done.work.training
    return Result(
        config.out, done.found, training.trainable_count, training.parameter_count, done.seconds, done.loop.best_step
    )
