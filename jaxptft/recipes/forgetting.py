"""What a fine-tuning forgot: how far a model and its representations are from those it started from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from pydantic import Field, model_validator

from jaxptft.recipes.settings import Settings

if TYPE_CHECKING:
    from jaxptft.convert import Checkpoint
    from jaxptft.recipes.forgetting_report import Comparison


class HeldText(Settings):
    """Text on which a model is compared with what it was."""

    corpus: tuple[str, ...]
    """text that neither learns from: files, folders, globs or hub names, as `pretrain --corpus` takes them"""
    documents: Literal["file", "line", "blank-line"] = "file"
    """what is one document in a text file"""
    text_column: str | None = None
    """the column of .jsonl and .parquet that holds the text (default: text)"""
    rows: int = Field(default=256, ge=4)
    """texts at most, each as long as the model's inputs, taken from all of the corpus"""
    threshold: float = Field(default=0.95, gt=0, le=1)
    """the debiased CKA that layers must keep to be suggested for freezing"""


class Forgetting(HeldText):
    """What a fine-tuning forgets, measured on held text; nothing is, without a corpus."""

    corpus: tuple[str, ...] = ()
    """held text, that is not learnt from: files, folders, globs or hub names, as `pretrain --corpus` takes them"""
    every: Literal["evaluation", "run"] = "evaluation"
    """measure at each evaluation, or once, for the best model"""

    @model_validator(mode="after")
    def _of_use(self) -> "Forgetting":
        usual = {name: field.get_default(call_default_factory=True) for name, field in type(self).model_fields.items()}
        if not self.corpus and any(getattr(self, name) != value for name, value in usual.items()):
            raise ValueError("forgetting is measured on held text; give forgetting.corpus")
        return self


class Config(HeldText):
    """What was forgotten between two models: jaxptft forgetting BEFORE AFTER --corpus texts/"""

    before: tyro.conf.Positional[str]
    """the model as it was: a run folder, a Hugging Face folder, a converted folder, or a name on the hub"""
    after: tyro.conf.Positional[str]
    """the same model, trained further"""
    max_length: int = Field(default=128, ge=3)
    """tokens in a text at most, special ones included"""
    out: Path | None = None
    """a folder for forgetting.json and forgetting.png"""
    allow_bin: bool = False
    family: str | None = None
    """the architecture, where config.json names none"""

    @model_validator(mode="after")
    def _text(self) -> "Config":
        if not self.corpus:
            raise ValueError("corpus is empty; give files, folders or names")
        return self


def run(config: Config, *, say: Callable[[str], None] = print) -> "Comparison":
    """Say how the second model differs from the first, layer by layer, and return it.

    Raises ValueError or FileNotFoundError in one line for models of different architectures, and text or models that
    cannot be read.
    """
    from jaxptft import data, train
    from jaxptft.recipes import forgetting_report
    from jaxptft.recipes.forgetting_probe import Probe
    from jaxptft.recipes.model_source import open_model
    from jaxptft.recipes.runtime import keep_compiled_programs

    keep_compiled_programs()
    options: dict[str, Any] = {"family": config.family, "allow_bin": config.allow_bin}
    folder, before = open_model(config.before, **options)
    _, after = open_model(config.after, heads=(), **options)
    kinds = [_kind(checkpoint) for checkpoint in (before, after)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{config.before} is {kinds[0]}, and {config.after} {kinds[1]}; only models of one architecture can be "
            "compared"
        )
    ours, theirs = before.params["backbone"], after.params["backbone"]
    shared = {name: ours[name] for name in ours if name in theirs}  # the pooler may have gone or come
    probe = Probe(
        config,
        before.params | {"backbone": shared},
        name=config.before,
        architecture=before.config,
        tokenizer=data.load_tokenizer(folder),
        max_length=config.max_length,
        mesh=train.make_mesh(),
        say=say,
    )
    found = probe.compare(after.params)
    if found.lowest_cka != found.lowest_cka:  # NaN
        raise FloatingPointError(f"{config.after} gives NaN or infinity on the held text; its weights are broken")
    say(found.text)
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        content = {"before": config.before, "after": config.after, **found.to_dict()}
        (config.out / "forgetting.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        forgetting_report.plot(config.out / "forgetting.png", found)
    return found


def _kind(checkpoint: "Checkpoint") -> str:
    config: Any = checkpoint.config
    return (
        f"{checkpoint.family} with {config.layers} layers, {config.heads} heads, width {config.width} and "
        f"{config.vocab_size} words"
    )
