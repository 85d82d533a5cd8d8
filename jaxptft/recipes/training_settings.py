"""The values that every training recipe shares: how long, how fast, on what, what trains, and what is kept."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field, field_validator, model_validator

from jaxptft.recipes.settings import Settings, build

LAYER_RUN = ("scan_layers", "remat")
"""Settings, and fields of transformers' configs, that change no result but for its last bits."""


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


class PlanRule(Settings):
    """How what a pattern matches trains."""

    rate: float = Field(default=1.0, gt=0)
    """factor of the learning rate"""
    decay: float | None = Field(default=None, ge=0)
    """weight decay, in place of the optimizer's; none on biases and norms"""
    unfreeze: int | float = Field(default=0, ge=0)
    """the step from which it trains, or as 0.5 a fraction of the run"""


def _read_rule(pattern: str, rule: Any) -> Any:
    """What a plan holds for a pattern: "frozen" or a PlanRule, from the mapping or the text that stands for it."""
    if rule == "frozen" or isinstance(rule, PlanRule):
        return rule
    if isinstance(rule, str):  # a flag's rate=0.5,decay=0,unfreeze=100
        parts = [part.partition("=") for part in rule.split(",")]
        if all(equals and value for _, equals, value in parts):
            rule = {name.strip(): int(value) if value.isdecimal() else value for name, _, value in parts}
    if not isinstance(rule, Mapping) or not all(isinstance(key, str) for key in rule):
        raise ValueError(f"{pattern} must be frozen, or have a rate, decay or unfreeze (rate=0.5,unfreeze=100)")
    return build(PlanRule, rule, source=f"plan, {pattern}")


def _rule_as_text(rule: Any) -> str:
    if isinstance(rule, str):
        return rule
    return ",".join(f"{name}={value}" for name, value in rule if value is not None)


_RULE_FLAG = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="frozen|rate=R,decay=D,unfreeze=STEP",
    instance_from_str=lambda texts: texts[0],  # which the field's validator reads, and complains about
    is_instance=lambda value: isinstance(value, str | PlanRule),
    str_from_instance=lambda value: [_rule_as_text(value)],
)


class Unfreeze(Settings):
    """One layer more at a time, from the top; the heads train from the start, the embeddings come last (ULMFiT)."""

    every: int | float | None = Field(default=None, gt=0)
    """steps, or a fraction of the run, between a layer and the next"""
    at: tuple[int | float, ...] = ()
    """in place of every: the steps (or fractions) at which the next layer comes; the last brings all that is left"""

    @field_validator("at", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and any(isinstance(step, bool) for step in value):
            raise ValueError("Input should be numbers")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> "Unfreeze":
        if self.every is not None and self.at:
            raise ValueError("both unfreeze.every and unfreeze.at are given; give one")
        return self


class PlanSettings(Settings):
    """What of a model trains, how fast, and from when on; these hold together: frozen is frozen, rates multiply."""

    freeze: str = "none"
    """none, backbone (all that was imported of it: the heads train), all-but-top-K, or path patterns with commas"""
    plan: dict[str, Annotated[Literal["frozen"] | PlanRule, _RULE_FLAG]] = Field(default_factory=dict)
    """path pattern -> frozen, or its rate (factor), decay and step of unfreezing; the first match wins"""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """the learning rate falls by this factor from each layer to the one below it (ELECTRA; 0.8 to 0.95)"""
    unfreeze: Unfreeze = Unfreeze()
    bitfit: bool = False
    """of the backbone train the biases alone, and what the model lacks"""

    @field_validator("freeze", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        listed = isinstance(value, list | tuple) and all(isinstance(pattern, str) for pattern in value)
        return ",".join(value) if listed else value

    @field_validator("plan", mode="before")
    @classmethod
    def _rules(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {pattern: _read_rule(pattern, rule) for pattern, rule in value.items()}


class LearningSettings(PlanSettings):
    """What a training recipe's Config extends with its data, model and objective."""

    out: Path
    """the run's folder"""
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
    steps_per_dispatch: int | None = Field(default=None, ge=1)
    """steps that one program takes at most before it comes back: fewer starts where steps are short (default: up to 8,
    as many as fit into two seconds; 1 in several processes and under pmap)"""
    read_ahead: int = Field(default=2, ge=0)
    """dispatches whose batches are read beforehand, by a thread"""
    seed: int = Field(default=0, ge=0, lt=2**31)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """what is computed in; parameters stay float32 (float16 would need its loss scaled: its gradients vanish)"""
    scan_layers: bool = False
    """run a transformer's layers as one body that is compiled once: deep models start sooner, and steps take longer"""
    remat: Literal["none", "full", "dots", "dots_no_batch"] = "none"
    """what of a transformer's layers the backward pass computes anew, to need less memory: nothing, everything, all but
    matrix products, all but projections (on CPU only what scan_layers runs)"""
    parallel: Literal["jit", "pmap"] = "jit"
    devices: int | None = Field(default=None, ge=1)
    """how many devices to use (default: all)"""
    fsdp: int = Field(default=1, ge=1)
    """over how many devices each copy of parameters and optimizer is cut: for models that one cannot hold"""
    stuck_after: float | None = Field(default=None, gt=0)
    """seconds without a step or batch of evaluation after which the process ends; longer than compiling takes (default:
    1,800 in several processes, else none)"""
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

    @model_validator(mode="after")
    def _one_of_each(self) -> "LearningSettings":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("both steps and epochs are given; give one")
        if self.resume and self.overwrite:
            raise ValueError("both resume and overwrite are given; give one")
        return self


PROGRAM_STEPS = 7.0
"""What one more shape of batches must save in an epoch: a step takes about 20 steps to compile, 7 to read from a cache,
and runs are about three epochs long."""


class TrainingSettings(LearningSettings):
    """The same where rows are text."""

    max_length: int = Field(default=128, ge=3)
    """tokens in an example at most, special ones included"""
    length_buckets: int = Field(default=6, ge=1)
    """how many lengths batches are padded to at most: each is one more program to compile, and less padding (in
    fine-tuning as many as save 7 steps an epoch each)"""


def total_steps(config: LearningSettings, steps_per_epoch: int) -> int:
    """How many optimizer steps the config asks for."""
    if config.steps is not None:
        return config.steps
    return max(1, math.ceil((3.0 if config.epochs is None else config.epochs) * steps_per_epoch))
