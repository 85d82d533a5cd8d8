"""Pre-train on images without labels: a folder, an objective, and a backbone from nothing or from any checkpoint.

The backbone that is best on held-out images is left as a folder for `jaxptft probe`, `embed` and `finetune`, with
pictures of what was learnt beside it; where Hugging Face has the architecture, `transformers` loads it too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from jaxptft.recipes.settings import Settings
from jaxptft.recipes.tasks.settings import Columns
from jaxptft.recipes.training_settings import LearningSettings

ObjectiveName = Literal[
    "simclr",
    "moco",
    "moco_v3",
    "byol",
    "mae",
    "beit",
    "rotation",
    "patch_position",
    "autoencoder",
    "denoising",
    "sparse",
    "vae",
    "gan",
]
BackboneName = Literal["vit", "resnet18", "resnet34", "resnet50", "conv", "mlp"]

TWO_VIEWS = ("simclr", "moco", "moco_v3", "byol")
PATCHES = ("mae", "beit")
CODES = ("autoencoder", "denoising", "sparse", "vae", "gan")  # pixels from a code


class Shape(Settings):
    """Fields of the backbone, in place of its usual ones."""

    patch_size: int | None = Field(default=None, ge=1)
    """pixels on a side, of vit (default: an eighth of the image or so: 16 of 224, 4 of 28)"""
    layers: int | None = Field(default=None, ge=1)
    """of vit (default 12, 4 for images below 64 pixels)"""
    width: int | None = Field(default=None, ge=1)
    """of vit (default 384, 128 for images below 64 pixels)"""
    heads: int | None = Field(default=None, ge=1)
    mlp_width: int | None = Field(default=None, ge=1)
    widths: tuple[int, ...] = ()
    """of the layers of conv or mlp, or the stages of a resnet"""
    features: int | None = Field(default=None, ge=1)
    """of conv and mlp: the length of their vectors (default 128)"""
    stem: Literal["imagenet", "cifar"] | None = None
    """of a resnet (default: cifar for images below 64 pixels)"""


class Views(Settings):
    """How images are changed before they are learnt from; what an objective does not draw is refused."""

    kind: Literal["usual", "simclr", "moco_v2", "byol", "crop_flip", "none"] = "usual"
    """usual: the paper's of the objective; none: the images as they are"""
    smallest: float | None = Field(default=None, gt=0, le=1)
    """the least share of an image's area that a crop has (default: the paper's; .2 for images below 64 pixels)"""
    strength: float | None = Field(default=None, ge=0)
    """of the change of colours under simclr (default 1; .5 for images below 64 pixels)"""
    mirrored: bool = True
    """whether left and right may be exchanged; not where that changes what is shown, as in digits"""


class Projection(Settings):
    """The heads between a backbone and a loss that compares, which are dropped afterwards."""

    hidden: int = Field(default=512, ge=1)
    outputs: int = Field(default=128, ge=1)


class Contrast(Settings):
    """simclr, moco, moco_v3, byol."""

    temperature: float | None = Field(default=None, gt=0)
    """(default: simclr .1 to .5 as its paper, here .2; moco .2; moco_v3 .2)"""
    queue: int = Field(default=4096, ge=1)
    """keys that moco remembers"""
    decay: float | None = Field(default=None, ge=0, le=1)
    """of the moving average (default: moco .999, moco_v3 .99, byol .996, both rising to 1)"""


class Masked(Settings):
    """mae, beit."""

    ratio: float | None = Field(default=None, gt=0, lt=1)
    """share of the patches that are hidden (default: mae .75, beit .4)"""
    normalise: bool = True
    """mae: pixels to draw are normalised in each patch"""
    decoder_width: int | None = Field(default=None, ge=1)
    """of mae (default: half the backbone's)"""
    decoder_layers: int = Field(default=2, ge=1)
    tokens: int = Field(default=256, ge=2)
    """beit: how many visual words its discrete autoencoder, which is trained first, may use"""
    tokenizer_steps: int = Field(default=500, ge=1)
    """beit: optimizer steps of that autoencoder"""


class Code(Settings):
    """autoencoder, denoising, sparse, vae, gan."""

    size: int = Field(default=64, ge=1)
    """numbers in a code: the latent ones of vae, the noise of gan"""
    noise: Literal["masking", "gaussian", "salt_and_pepper"] = "masking"
    """denoising"""
    noise_level: float = Field(default=0.3, gt=0)
    """the share of pixels that is spoilt, or the deviation of gaussian noise"""
    sparsity: Literal["kl", "l1"] = "kl"
    sparsity_weight: float = Field(default=1.0, gt=0)
    activity: float = Field(default=0.05, gt=0, lt=1)
    """sparse, kl: how often a unit shall be active"""
    beta: float = Field(default=1.0, ge=0)
    """vae: weight of the divergence"""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """of pixels given a code"""


_OF_OBJECTIVES = {  # values that not all objectives of their group read
    "contrast.temperature": ("simclr", "moco", "moco_v3"),
    "contrast.queue": ("moco",),
    "contrast.decay": ("moco", "moco_v3", "byol"),
    "masked.normalise": ("mae",),
    "masked.decoder_width": ("mae",),
    "masked.decoder_layers": ("mae",),
    "masked.tokens": ("beit",),
    "masked.tokenizer_steps": ("beit",),
    "code.noise": ("denoising",),
    "code.noise_level": ("denoising",),
    "code.sparsity": ("sparse",),
    "code.sparsity_weight": ("sparse",),
    "code.activity": ("sparse",),
    "code.beta": ("vae",),
    "code.likelihood": ("autoencoder", "denoising", "sparse", "vae"),
}


class Config(LearningSettings):
    """Pre-train on images: jaxptft pretrain images --data photos/ --objective simclr --out runs/x"""

    data: str = Field(min_length=1)
    """images: a folder, a table of paths, IDX files, a data set, sklearn:digits, apt:fashion-mnist; labels judge"""
    objective: ObjectiveName = "simclr"
    backbone: BackboneName | None = None
    """from scratch (default: vit for mae and beit, conv for those with codes, else resnet18)"""
    model: str | None = None
    """continue from this checkpoint's backbone: a folder, a run, or a name on the hub"""
    image_size: int | None = Field(default=None, ge=4)
    """pixels on a side (default: the files' own, which must then be one; the model's, with --model)"""
    channels: Literal[1, 3] | None = None
    """(default: the files' own)"""
    shape: Shape = Shape()
    views: Views = Views()
    projection: Projection = Projection()
    contrast: Contrast = Contrast()
    masked: Masked = Masked()
    code: Code = Code()
    eval_data: str | None = None
    """held-out images (default: the source's validation split, or eval_share of the images)"""
    eval_share: float = Field(default=0.1, gt=0, lt=1)
    eval_rows: int | None = Field(default=2000, ge=1)
    """held-out images at most"""
    columns: Columns = Columns()
    on_bad_row: Literal["error", "skip"] = "error"
    learning_rate: float = Field(default=1e-3, gt=0)
    batch_size: int = Field(default=256, ge=1)
    monitor: Literal["loss", "neighbours", "last"] | None = None
    """what chooses the model: held-out loss, the vote of labelled neighbours, or its being the last (default: last for
    gan, whose losses do not say which is best, else loss)"""
    pictures: bool = True
    """draw what was learnt into pictures/"""

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        codes, two = self.objective in CODES, self.objective in TWO_VIEWS
        unused = {  # what would otherwise be ignored without a word
            "backbone": (self.model is not None and self.backbone is not None, "is the checkpoint's own"),
            "shape": (self.model is not None and self.shape != Shape(), "is the checkpoint's own"),
            "freeze": (self.model is None and self.freeze != "none", "keeps what was imported, and nothing was"),
            "bitfit": (self.model is None and self.bitfit, "keeps what was imported, and nothing was"),
            "projection": (self.projection != Projection() and not two, f"is for {', '.join(TWO_VIEWS)}"),
            "contrast": (self.contrast != Contrast() and not two, f"is for {', '.join(TWO_VIEWS)}"),
            "masked": (self.masked != Masked() and self.objective not in PATCHES, "is for mae and beit"),
            "code": (self.code != Code() and not codes, f"is for {', '.join(CODES)}"),
            "views": (
                self.views != Views() and codes,
                f"do not go with {self.objective}, which draws images as they are",
            ),
        }
        for name, (ignored, why) in unused.items():
            if ignored:
                raise ValueError(f"{name} {why}; leave it out")
        for name, of in _OF_OBJECTIVES.items():
            group, _, field = name.partition(".")
            held: Any = getattr(self, group)
            if self.objective not in of and getattr(held, field) != getattr(type(held)(), field):
                raise ValueError(f"{name} is for {', '.join(of)}, and objective is {self.objective}; leave it out")
        backbone = self.backbone
        if backbone is not None and self.objective in PATCHES and backbone != "vit":
            raise ValueError(f"{self.objective} hides patches, so its backbone is vit; got {backbone}")
        if backbone is not None and codes and backbone not in ("conv", "mlp"):
            raise ValueError(
                f"{self.objective} has a backbone of conv or mlp, whose mirror image draws; got {backbone}"
            )
        if self.objective == "gan" and self.monitor == "loss":
            raise ValueError("the losses of a gan do not say which model is best; monitor last or neighbours")
        return self


class Result(NamedTuple):
    """What a run came to."""

    out: Path
    metrics: dict[str, float]  # of the chosen model on the held-out images
    seconds: float  # of training, evaluations included; of this process
    best_step: int
    steps: int


def run(config: Config, *, name: str = "pretrain", say: Callable[[str], None] = print) -> Result:
    """Run (or with `resume` continue) a pre-training on images; see `Config` for every value.

    Raises ValueError, FileNotFoundError or FileExistsError in one line for whatever does not fit, before the first
    step; `train.Stopped` after saving when SIGTERM or Ctrl-C asks for it.
    """
    from jaxptft.recipes.carry_out import carry_out
    from jaxptft.recipes.pretrain_images_run import PretrainImagesRun

    done = carry_out(config, say, lambda own, say, stop: PretrainImagesRun(own, name=name, say=say, stop=stop))
    return Result(config.out, done.found, done.seconds, done.loop.best_step, int(done.work.training.state.step))
