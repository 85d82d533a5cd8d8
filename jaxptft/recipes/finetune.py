"""Fine-tune a model for a task.

Import the checkpoint, freeze what shall stay, train the rest (near its pre-trained values, if asked), keep the model
that is best on the evaluation rows, report on test rows, and leave a folder that `transformers` loads.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from jaxptft.recipes.forgetting import Forgetting
from jaxptft.recipes.pretrain import Masking
from jaxptft.recipes.report import Report, add_baseline
from jaxptft.recipes.settings import Settings
from jaxptft.recipes.tasks import TaskName
from jaxptft.recipes.tasks.settings import Answers, Augment, Columns, ImageViews, MultiLabel, Response, Tags
from jaxptft.recipes.training_settings import TrainingSettings

# What keeps imported parameters as they are, or near it.
_OF_IMPORTED = (
    *("freeze", "plan", "layer_decay", "unfreeze", "bitfit", "lora"),
    *("l2_to_pretrained", "l2", "mixout", "ewc", "forgetting", "adaptation"),
)


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


class Lora(Settings):
    """Low-rank adapters, trained in place of the imported backbone; heads, and what is fresh, train whole."""

    rank: int = Field(default=0, ge=0)
    """of each adapter; 0: none"""
    alpha: float | None = Field(default=None, gt=0)
    """the product is multiplied by alpha / rank (default: twice the rank)"""
    targets: tuple[str, ...] = ()
    """path patterns of kernels (default: attention's query and value, or what holds them jointly)"""
    rank_stabilized: bool = False
    """multiply by alpha / sqrt(rank) instead (rsLoRA)"""

    @model_validator(mode="after")
    def _of_use(self) -> "Lora":
        if not self.rank and (self.alpha is not None or self.targets or self.rank_stabilized):
            raise ValueError("lora has no rank, so there are no adapters; give lora.rank")
        return self


class Ewc(Settings):
    """Elastic weight consolidation: imported parameters are held by what they matter to what was learnt before."""

    weight: float = Field(default=0.0, ge=0)
    """of the sum of importance * (theta - theta_imported)^2: lambda / 2; 0 leaves it out"""
    corpus: tuple[str, ...] = ()
    """text on which importance is taken: of masked words, or the next ones under a causal model"""
    data: str | None = None
    """or rows on which it is taken: those the model was fine-tuned on for the same task"""
    rows: int = Field(default=256, ge=1)
    """examples at most that importance is taken on"""
    labels: Literal["given", "drawn"] = "given"
    """those of the rows of ewc.data, or drawn from what the model predicts"""
    documents: Literal["file", "line", "blank-line"] = "file"
    """what is one document in a text file"""
    text_column: str | None = None
    """the column of .jsonl and .parquet that holds the text (default: text)"""

    @model_validator(mode="after")
    def _one_source(self) -> "Ewc":
        if bool(self.weight) != (bool(self.corpus) or self.data is not None):
            raise ValueError("ewc needs a weight, and a corpus or data: give both, or neither")
        if self.corpus and self.data is not None:
            raise ValueError("both ewc.corpus and ewc.data are given; give one")
        if self.labels == "drawn" and self.data is None:
            raise ValueError("ewc.labels are of the rows of ewc.data, which are not given")
        return self


class Adaptation(Settings):
    """Another domain, whose rows have no labels, and what shall make the model work there as well."""

    target: str | None = None
    """rows of the other domain, as --train takes them; labels are not read"""
    mmd: float = Field(default=0.0, ge=0)
    """weight of the maximum mean discrepancy between the domains' features"""
    coral: float = Field(default=0.0, ge=0)
    """weight of the distance between the covariances of the domains' features"""
    dann: float = Field(default=0.0, ge=0)
    """weight of the domain discriminator's loss, whose gradient is reversed in the features"""
    importance: bool = False
    """training rows count more, the more they look like the target's"""
    clip: float = Field(default=10.0, ge=1)
    """how often a row may count at most, under importance"""
    pooling: Literal["mean", "first", "last", "pooler"] | None = None
    """what of a text the features are (default: what a classifier of the family reads)"""
    batch_size: int | None = Field(default=None, ge=1)
    """rows of the target in an optimizer step (default: as many as of the task)"""

    @model_validator(mode="after")
    def _both(self) -> "Adaptation":
        if bool(self.target) != bool(self.mmd or self.coral or self.dann or self.importance):
            raise ValueError("adaptation needs a target and one of mmd, coral, dann and importance: give both or none")
        return self


class Pruning(Settings):
    """Weights set to zero while the others learn, and held there; best is the best model from the end on."""

    method: Literal["none", "magnitude", "movement", "keep"] = "none"
    """which go: the smallest, or those that training moves towards zero; keep: what is zero in the model stays so"""
    sparsity: float = Field(default=0.5, gt=0, lt=1)
    """the share that is zero in the end"""
    scope: Literal["global", "layer"] = "global"
    """the share of all together, or of each matrix"""
    patterns: tuple[str, ...] = ()
    """path patterns of matrices (default: those of the layers that train)"""
    begin: float = Field(default=0.1, ge=0, le=1)
    """the share of the steps from which on weights go"""
    end: float = Field(default=0.7, ge=0, le=1)
    """and by which they have gone"""
    updates: int = Field(default=20, ge=1)
    """how often masks are made anew in between"""

    @model_validator(mode="after")
    def _of_use(self) -> "Pruning":
        usual = Pruning.model_construct()
        given = [name for name in type(self).model_fields if getattr(self, name) != getattr(usual, name)]
        if self.method == "none" and given:
            raise ValueError(f"pruning.{given[0]} is given and pruning.method is not; give one of them")
        if self.method == "keep" and (others := [name for name in given if name not in ("method", "patterns")]):
            raise ValueError(f"pruning.method keep makes no weight zero, and so has no {others[0]}; leave it out")
        if self.begin > self.end:
            raise ValueError(f"pruning.begin is {self.begin} and pruning.end {self.end}; give an end that comes later")
        return self


class Config(TrainingSettings):
    """Fine-tune a model: jaxptft finetune --model DIR --train train.csv --eval dev.csv --out runs/x"""

    model: str = Field(min_length=1)
    """a Hugging Face folder, a run folder, a converted folder, or a name on the hub"""
    train: str = Field(min_length=1)
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
    response: Response = Response()
    images: ImageViews = ImageViews()
    auxiliary: Auxiliary = Auxiliary()
    adaptation: Adaptation = Adaptation()
    forgetting: Forgetting = Forgetting()
    on_bad_row: Literal["error", "skip"] = "error"
    packing: Literal["auto", "on", "off"] = "auto"
    """on: short training texts share rows, each seeing only itself, in batches of mixed lengths; auto: where model and
    task can, less is padded, and no layer is frozen; length_buckets is then how many numbers of rows batches have"""
    cache_features: Literal["auto", "on", "off"] = "auto"
    """what wholly frozen lower layers make of each text is computed once and kept; auto: where a run has two epochs"""
    cache_features_gb: float = Field(default=4.0, ge=0)
    """how much of it is kept in memory; the rest is in a file of the user's cache folder while the run lasts"""
    l2_to_pretrained: float = Field(default=0.0, ge=0)
    """weight of ||theta - theta_pretrained||^2 over the trainable parameters of the imported backbone"""
    l2: L2 = L2()
    lora: Lora = Lora()
    pruning: Pruning = Pruning()
    mixout: float = Field(default=0.0, ge=0, lt=1)
    """probability that in training an element of an imported kernel is put back to its imported value"""
    r_drop: float = Field(default=0.0, ge=0)
    """weight of how far the predictions of two passes with different dropout lie apart"""
    ewc: Ewc = Ewc()
    from_scratch: bool = False
    """the same architecture with fresh parameters, for comparison"""
    baseline: Literal["none", "scratch"] = "none"
    """scratch: afterwards train the same from scratch, into baseline/, and report the two side by side"""
    label_smoothing: float = Field(default=0.0, ge=0, le=1)
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class weighs as if all were equally frequent in training"""
    weights_by_class: dict[str, float] = Field(default_factory=dict)
    """class -> its weight in the loss, 1 where it is not named; in place of class_weights"""
    sampling: Literal["plain", "balanced"] = "plain"
    """balanced: rows are drawn so that every class, or set of labels, is seen equally often"""
    augment: Augment = Augment()
    monitor: str | None = None
    """what decides which model is best: accuracy, macro_f1, loss, ... as the task has them (default: its first)"""
    family: str | None = None
    """the architecture, where config.json names none"""

    @model_validator(mode="after")
    def _prunes(self) -> "Config":
        if self.pruning.method == "none":
            return self
        if self.lora.rank:
            raise ValueError("lora leaves the imported kernels as they are, and pruning changes them; choose one")
        staged = any(rule != "frozen" and rule.unfreeze for rule in self.plan.values())
        if staged or self.unfreeze.every is not None or self.unfreeze.at:
            raise ValueError("pruning is for matrices that train from the start; leave out unfreeze, or pruning")
        if self.pruning.method == "keep" and (self.from_scratch or self.baseline == "scratch"):
            raise ValueError("pruning.method keep is of an imported model's zeros, and from scratch there are none")
        return self


class Result(NamedTuple):
    """What a run came to."""

    out: Path
    reports: dict[str, Report]  # by split: eval and, where there is one, test
    trainable: int  # parameters
    parameters: int
    seconds: float  # of training, evaluations included; of this process
    best_step: int
    baseline: dict[str, Report] | None = None  # the same from scratch, where it was asked for


def run(config: Config, *, name: str = "finetune", say: Callable[[str], None] = print) -> Result:
    """Run (or with `resume` continue) a fine-tuning; see `Config` for every value.

    Raises ValueError, FileNotFoundError or FileExistsError in one line for whatever does not fit, before the first
    step; `train.Stopped` after saving when SIGTERM or Ctrl-C asks for it.
    """
    from jaxptft.recipes.carry_out import carry_out
    from jaxptft.recipes.finetune_run import FinetuneRun

    done = carry_out(config, say, lambda own, say, stop: FinetuneRun(own, name=name, say=say, stop=stop))
    training = done.work.training
    result = Result(
        config.out, done.found, training.trainable_count, training.parameter_count, done.seconds, done.loop.best_step
    )
    if config.baseline == "none":
        return result
    from_scratch = run(without_pretraining(config), name="from scratch", say=say)
    lines = add_baseline(config.out, result.reports, from_scratch.reports, name="from scratch")
    say("\n".join(lines))
    return result._replace(baseline=from_scratch.reports)


def without_pretraining(config: Config) -> Config:
    """The same fine-tuning with every parameter fresh, and so without what only imported ones can be given."""
    usual = {name: field.get_default(call_default_factory=True) for name, field in type(config).model_fields.items()}
    out = config.out / "baseline"
    resume = config.resume and (out / "config.yaml").exists()
    changes = {name: usual[name] for name in _OF_IMPORTED if name in usual}
    changes |= {"baseline": "none", "from_scratch": True, "out": out, "resume": resume}
    return config.model_copy(update=changes | {"overwrite": (out / "config.yaml").exists() and not resume})
