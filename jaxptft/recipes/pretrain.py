"""Pre-train on raw text: a corpus, an objective, and a model from nothing or from any checkpoint.

The corpus is tokenized once into a memory-mapped cache, cut into examples, and learnt from; the model that is best on
held-out documents is left as a folder that `transformers` loads and `jaxptft finetune --model` continues from.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from jaxptft.recipes.settings import Settings
from jaxptft.recipes.training_settings import TrainingSettings

ObjectiveName = Literal["mlm", "nsp", "mlm+nsp", "mlm+sop", "clm", "rtd", "simclr"]


class Masking(Settings):
    """Which tokens are hidden, and what stands in their place (mlm, rtd)."""

    rate: float = Field(default=0.15, gt=0, lt=1)
    """share of the tokens to predict"""
    mask_share: float | None = Field(default=None, ge=0, le=1)
    """of those, replaced by the mask token (default: .8; all under rtd)"""
    random_share: float | None = Field(default=None, ge=0, le=1)
    """of those, replaced by a random token (default: .1; none under rtd); the rest stay as they are"""
    unit: Literal["token", "word", "span"] = "token"
    """what is chosen as one: tokens, whole words, or spans of words as SpanBERT's"""
    span_p: float = Field(default=0.2, gt=0, le=1)
    """of the geometric distribution of a span's length in words"""
    span_longest: int = Field(default=10, ge=1)


class Shape(Settings):
    """Fields of the architecture, in place of the named size's."""

    layers: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    heads: int | None = Field(default=None, ge=1)
    mlp_width: int | None = Field(default=None, ge=1)
    embedding_width: int | None = Field(default=None, ge=1)
    """of families with factorised embeddings (ALBERT, ELECTRA)"""
    positions: int | None = Field(default=None, ge=1)
    """longest input (default: the family's)"""


class Generator(Settings):
    """The small model that replaces tokens, under rtd (ELECTRA)."""

    share: float = Field(default=0.25, gt=0, le=1)
    """its width, heads and MLP width, as a share of the discriminator's"""
    weight: float = Field(default=50.0, gt=0)
    """of the discriminator's loss against the generator's"""


class Contrast(Settings):
    """Each text against the others of its batch, in two passes with other dropout, under simclr (SimCSE)."""

    temperature: float = Field(default=0.05, gt=0)
    pooling: Literal["mean", "first", "last", "pooler"] | None = None
    """what of a text is compared (default: what a classifier of the family reads)"""
    projection: tuple[int, ...] = ()
    """widths of a perceptron through which it is compared, and which is not saved"""


class Config(TrainingSettings):
    """Pre-train: jaxptft pretrain --corpus texts/ --tokenizer DIR --out runs/x (or --model DIR to continue one)"""

    learning_rate: float = Field(default=1e-4, gt=0)
    corpus: tuple[str, ...]
    """files, folders, globs (text, plain or gzip; .jsonl, .parquet) or hub names"""
    objective: ObjectiveName = "mlm"
    """masked tokens; next sentence; the two, or masked tokens and sentence order; the next token; replaced tokens; or a
    text's own second pass among those of others (simclr)"""
    model: str | None = None
    """continue from this checkpoint: a Hugging Face folder, a run folder, a name on the hub (default: from scratch)"""
    tokenizer: str | None = None
    """a folder with a tokenizer (default: the model's)"""
    family: Literal["bert", "roberta", "distilbert", "albert", "electra", "modernbert", "gpt2"] | None = None
    """architecture from scratch (default: gpt2 for clm, electra for rtd, albert for mlm+sop, else bert)"""
    size: Literal["tiny", "mini", "small", "medium", "base", "large"] | None = None
    """from scratch, layers x width: tiny 2x128, mini 4x256, small 4x512, medium 8x512, base 12x768 (default),
    large 24x1024"""
    shape: Shape = Shape()
    eval_corpus: tuple[str, ...] = ()
    """held-out text (default: a share of the corpus's documents)"""
    eval_share: float = Field(default=0.05, gt=0, lt=1)
    """of the documents, held out where there is no --eval-corpus"""
    eval_rows: int | None = Field(default=1000, ge=1)
    """held-out examples at most"""
    text_column: str | None = None
    """the column of .jsonl and .parquet that holds the text (default: text)"""
    documents: Literal["file", "line", "blank-line"] = "file"
    """what is one document in a text file"""
    on_bad_document: Literal["error", "skip"] = "error"
    workers: int = Field(default=1, ge=1)
    """processes that tokenize"""
    rows: Literal["segments", "documents"] = "segments"
    """segments: text cut at max_length; documents: each (short) document a row of its own, cut if longer"""
    pack: bool = False
    """several examples in one row, each seeing only itself: the same loss with less padding (mlm, clm, rtd)"""
    masking: Masking = Masking()
    generator: Generator = Generator()
    contrast: Contrast = Contrast()
    monitor: Literal["loss", "accuracy", "last"] | None = None
    """what decides which model is best, held-out loss or accuracy, or its being the last (default: loss; under simclr,
    which says little without dropout, last)"""

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if not self.corpus:
            raise ValueError("corpus is empty; give files, folders or names")
        if self.model is None and self.tokenizer is None:
            raise ValueError("from scratch there must be a tokenizer: give --tokenizer (see jaxptft tokenizer train)")
        pairs, masked = "nsp" in self.objective or "sop" in self.objective, "mlm" in self.objective
        unused = {  # what would otherwise be ignored without a word
            "family": (self.model is not None and self.family is not None, "is the checkpoint's own"),
            "size": (self.model is not None and self.size is not None, "is the checkpoint's own"),
            "shape": (self.model is not None and self.shape != Shape(), "is the checkpoint's own"),
            "freeze": (self.model is None and self.freeze != "none", "keeps what was imported, and nothing was"),
            "bitfit": (self.model is None and self.bitfit, "keeps what was imported, and nothing was"),
            "pack": (
                self.pack and (pairs or self.objective == "simclr"),
                f"does not go with {self.objective}, whose {'pairs fill their' if pairs else 'texts are'} rows",
            ),
            "contrast": (self.contrast != Contrast() and self.objective != "simclr", "is for simclr"),
            "monitor": (self.monitor == "accuracy" and self.objective == "simclr", "is loss or last for simclr"),
            "rows": (
                self.rows == "documents" and self.objective not in ("mlm", "rtd", "simclr"),
                "is for mlm, rtd and simclr",
            ),
            "masking": (self.masking != Masking() and not masked and self.objective != "rtd", "is for mlm and rtd"),
            "generator": (self.generator != Generator() and self.objective != "rtd", "is for rtd"),
        }
        for name, (ignored, why) in unused.items():
            if ignored:
                raise ValueError(f"{name} {why}; leave it out")
        mask_share, random_share = (
            usual if share is None else share
            for share, usual in ((self.masking.mask_share, 0.8), (self.masking.random_share, 0.1))
        )
        if self.objective != "rtd" and mask_share + random_share > 1:
            raise ValueError(
                f"masking.mask_share {mask_share} and masking.random_share {random_share} (by default .8 and .1) "
                "add up to more than 1; lower one"
            )
        return self


class Result(NamedTuple):
    """What a run came to."""

    out: Path
    metrics: dict[str, float]  # of the best model on the held-out examples
    seconds: float  # of training, evaluations included; of this process
    best_step: int
    steps: int


def run(config: Config, *, name: str = "pretrain", say: Callable[[str], None] = print) -> Result:
    """Run (or with `resume` continue) a pre-training; see `Config` for every value.

    Raises ValueError, FileNotFoundError or FileExistsError in one line for whatever does not fit, before the first
    step; `train.Stopped` after saving when SIGTERM or Ctrl-C asks for it.
    """
    from jaxptft.recipes.carry_out import carry_out
    from jaxptft.recipes.pretrain_run import PretrainRun

    done = carry_out(config, say, lambda own, say, stop: PretrainRun(own, name=name, say=say, stop=stop))
    return Result(config.out, done.found, done.seconds, done.loop.best_step, int(done.work.training.state.step))
