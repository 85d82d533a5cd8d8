"""The values that every training recipe shares: how long, how fast, on what, and what is kept."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field, field_validator, model_validator

from jaxptft.recipes.settings import Settings


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


class TrainingSettings(Settings):
    """What a training recipe's Config extends with its data, model and objective."""

    out: Path
    """the run's folder"""
    max_length: int = Field(default=128, ge=3)
    """tokens in an example at most, special ones included"""
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
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """replaces every dropout rate of the model"""
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
    allow_bin: bool = False
    """read pytorch_model.bin (never through a raw unpickle)"""
    allow_unused: tuple[str, ...] = ()
    """patterns of tensors in the checkpoint that may go unused"""
    allow_missing: tuple[str, ...] = ()
    """patterns of tensors that the checkpoint may lack; they start afresh"""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """continue the run in --out; with more steps or epochs than it had, for longer"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """delete the run in --out first"""

    @field_validator("freeze", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        listed = isinstance(value, list | tuple) and all(isinstance(pattern, str) for pattern in value)
        return ",".join(value) if listed else value

    @model_validator(mode="after")
    def _one_of_each(self) -> "TrainingSettings":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("both steps and epochs are given; give one")
        if self.resume and self.overwrite:
            raise ValueError("both resume and overwrite are given; give one")
        return self


def total_steps(config: TrainingSettings, steps_per_epoch: int) -> int:
    """How many optimizer steps the config asks for."""
    if config.steps is not None:
        return config.steps
    return max(1, math.ceil((3.0 if config.epochs is None else config.epochs) * steps_per_epoch))
