"""Fine-tune a classifier of texts or text pairs.

Import the checkpoint, freeze what shall stay, train the rest (near its pre-trained values, if asked), keep the model
that is best on the evaluation rows, report on test rows, and leave a folder that `transformers` loads.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from pydantic import Field, field_validator, model_validator

from jaxptft.recipes import report as reports
from jaxptft.recipes import run_folder, runtime
from jaxptft.recipes.settings import Settings


class Columns(Settings):
    """Which columns hold what; what is not given is told from the names found."""

    text: str | None = None
    """the text, or the first of a pair"""
    pair: str | None = None
    """the second text of a pair; "" for none"""
    label: str | None = None
    """the class"""


class Optimizer(Settings):
    """AdamW, and how its rate moves."""

    weight_decay: float = Field(default=0.01, ge=0)
    """decoupled decay; none on biases and norms"""
    clip_norm: float = Field(default=1.0, gt=0)
    """largest gradient norm, over trainable parameters"""
    b1: float = Field(default=0.9, ge=0, lt=1)
    b2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, ge=0)
    schedule: Literal["linear", "cosine", "constant", "cyclical", "inverse_sqrt"] = "linear"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """share of the steps in which the rate rises"""
    cycles: int = Field(default=1, ge=1)
    """of the cyclical schedule"""
    multipliers: dict[str, float] = Field(default_factory=dict)
    """path pattern -> factor of the learning rate; the first match wins"""


class L2(Settings):
    """Where l2_to_pretrained pulls, and how much."""

    factors: dict[str, float] = Field(default_factory=dict)
    """path pattern -> factor of the weight; the first match wins, 0 leaves alone"""
    new: float = Field(default=0.0, ge=0)
    """weight of plain L2 on parameters that were not imported: the new head"""


class Config(Settings):
    """Fine-tune a classifier: jaxptft finetune --model DIR --train train.csv --eval dev.csv --out runs/x"""

    model: str
    """a Hugging Face folder, a run folder, a converted folder, or a name on the hub"""
    train: str
    """rows to learn from: .csv, .tsv, .jsonl, .parquet, a folder saved by `datasets`, or a hub name (glue/sst2)"""
    out: Path
    """the run's folder"""
    eval: str | None = None
    """rows that choose the best model; without it, the source's validation split, or a tenth of the training rows"""
    test: str | None = None
    """rows that only the best model sees, once"""
    columns: Columns = Columns()
    on_bad_row: Literal["error", "skip"] = "error"
    max_length: int = Field(default=128, ge=3)
    """longer texts are cut to this many tokens, and counted"""
    length_buckets: int = Field(default=6, ge=1)
    """how many lengths batches are padded to: each is one more program to compile, and less padding"""
    steps: int | None = Field(default=None, ge=1)
    """optimizer steps; in place of epochs"""
    epochs: float | None = Field(default=None, gt=0)
    """passes over the training rows (default 3)"""
    batch_size: int = Field(default=32, ge=1)
    """rows in an optimizer step"""
    accumulate: int = Field(default=1, ge=1)
    """micro-steps in an optimizer step; the gradient is the same"""
    learning_rate: float = Field(default=5e-5, gt=0)
    optimizer: Optimizer = Optimizer()
    freeze: str = "none"
    """none, backbone (train the head alone), all-but-top-K, or path patterns separated by commas"""
    l2_to_pretrained: float = Field(default=0.0, ge=0)
    """weight of ||theta - theta_pretrained||^2 over the trainable parameters of the imported backbone"""
    l2: L2 = L2()
    from_scratch: bool = False
    """the same architecture with fresh parameters, for comparison"""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """replaces every dropout rate of the model"""
    label_smoothing: float = Field(default=0.0, ge=0, le=1)
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class weighs as if all were equally frequent in training"""
    monitor: Literal["accuracy", "macro_f1", "loss"] = "accuracy"
    """what decides which model is best"""
    patience: int | None = Field(default=None, ge=1)
    """stop after so many evaluations without a gain"""
    evaluate_every: int | None = Field(default=None, ge=1)
    """steps between evaluations (default: an epoch)"""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """steps between checkpoints (default: as evaluations)"""
    keep_checkpoints: int = Field(default=2, ge=1)
    """how many of the newest stay: where one is damaged, the one before is used"""
    log_every: int = Field(default=10, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """what is computed in; parameters stay float32 (float16 would need its loss scaled: its gradients vanish)"""
    parallel: Literal["jit", "pmap"] = "jit"
    devices: int | None = Field(default=None, ge=1)
    """how many devices to use (default: all)"""
    family: str | None = None
    """the architecture, where config.json names none"""
    allow_bin: bool = False
    """read pytorch_model.bin (never through a raw unpickle)"""
    allow_unused: tuple[str, ...] = ()
    """patterns of tensors in the checkpoint that may go unused"""
    allow_missing: tuple[str, ...] = ()
    """patterns of tensors that the checkpoint may lack; they start afresh"""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """continue the run in --out"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """delete the run in --out first"""

    @field_validator("freeze", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        listed = isinstance(value, list | tuple) and all(isinstance(pattern, str) for pattern in value)
        return ",".join(value) if listed else value

    @model_validator(mode="after")
    def _one_length(self) -> "Config":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("both steps and epochs are given; give one")
        if self.resume and self.overwrite:
            raise ValueError("both resume and overwrite are given; give one")
        return self


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
    from jaxptft.recipes.classifier_run import ClassifierRun
    from jaxptft.train import StopFlag, Stopped

    runtime.keep_compiled_programs()
    claim = {"resume": config.resume, "overwrite": config.overwrite}
    run_folder.check(config.out, config, **claim)
    with StopFlag() as stop:
        try:
            work = ClassifierRun(config, name=name, say=say, stop=stop)
        except Stopped:
            run_folder.claim(config.out, config, **claim)  # so that --resume finds what to do
            raise
        # Only now: a mistake in the data or the model must neither take the folder nor cost the run that is in it.
        run_folder.claim(config.out, config, **claim)
        with run_folder.lock(config.out):
            began = time.perf_counter()
            loop = work.train()
            seconds = time.perf_counter() - began
            found = work.finish(loop)
    return Result(config.out, found, work.trainable_count, work.parameter_count, seconds, loop.best_step)


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """How many optimizer steps the config asks for."""
    if config.steps is not None:
        return config.steps
    return max(1, math.ceil((3.0 if config.epochs is None else config.epochs) * steps_per_epoch))
