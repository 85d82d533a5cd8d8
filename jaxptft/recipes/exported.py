"""Exported models, asked like any other: `predict` and `evaluate` read folders of programs and of parameters."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp

from jaxptft import data, models, optim, train
from jaxptft.augment import View
from jaxptft.convert.hf_config import read_json
from jaxptft.convert.staging import tokenizer_files
from jaxptft.export import read_flax, runner
from jaxptft.export.flax_file import PARAMS
from jaxptft.recipes.inference import Opened
from jaxptft.recipes.model_source import QUANTIZATION
from jaxptft.recipes.preprocessing import Preprocessing


def open_any(model: str | Path, *, family: str | None = None, allow_bin: bool = False) -> Opened:
    """A fine-tuned model from any folder, or an export of one; refusals are those of `Opened` and `export.verify`."""
    folder = Path(model)
    if not any((folder / name).is_file() for name in (runner.DESCRIPTION, runner.PROGRAM)):
        return Opened(model, family=family, allow_bin=allow_bin)
    runner.verify(folder)
    format = runner.describe(folder)["format"]
    if format == "int8":
        return OpenedQuantized(folder)
    if format not in ("stablehlo", "flax"):
        raise ValueError(f"{folder} was exported as {format}, which is read by other programs; give the model itself")
    return OpenedProgram(folder) if format == "stablehlo" else OpenedParameters(folder)


class _Exported(Opened):
    """What `Opened` reads from a checkpoint is told by the description."""

    def __init__(self, folder: Path, told: dict[str, Any]):
        self.source, self.task, self.names = str(folder), told["task"], tuple(told["labels"] or ())
        self.settings, self.fields = told["settings"], {}
        self._mesh, self._placed = train.make_mesh(), None
        self.tokenizer = self.preprocessing = None
        if "image" in told:
            self.preprocessing = Preprocessing(**{name: _tuples(value) for name, value in told["image"].items()})
            return
        self.tokenizer = data.load_tokenizer(folder)
        self.max_length = told["text"]["max_length"]
        self.config: Any = SimpleNamespace(vocab_size=told["vocab_size"], max_length=told["limits"]["length"])


class OpenedParameters(_Exported):
    """Exported parameters, their files checked, and the architecture that they are of."""

    def __init__(self, folder: Path):
        runner.verify(folder, (runner.DESCRIPTION, PARAMS))
        told = runner.describe(folder)
        super().__init__(folder, told)
        architecture = told["architecture"]
        values = {name: _tuples(value) for name, value in architecture["values"].items()}
        self.config, self.params = getattr(models, architecture["config"])(**values), read_flax(folder)


class OpenedQuantized(OpenedParameters):
    """A model of int8 matrices, its files checked, which `predict`, `evaluate` and `export` read like any other."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.mode = quantization_of(folder)["mode"]
        fields = read_json(folder / "config.json")
        self.checkpoint: Any = SimpleNamespace(family=fields.pop("model_type"), tokenizer_files=tokenizer_files(folder))
        self.fields = fields

    def model(self, model_task: str, *, classes: int | None = None) -> models.Model:
        """The network, reading int8; ValueError where the folder lacks one of its parameters."""
        network = super().model(model_task, classes=classes)
        return network._replace(apply=models.with_int8(network.apply, self.mode))

    def _known(self) -> set[str]:
        paths = optim.paths(self.params)
        return {*paths, *(path.rpartition("/")[0] for path in paths if path.endswith("/int8"))}


def is_quantized(folder: str | Path) -> bool:
    """Whether `jaxptft quantize` wrote the folder."""
    return (Path(folder) / QUANTIZATION).is_file()


def quantization_of(folder: Path) -> dict[str, Any]:
    """How a folder was quantized; ValueError where its description does not tell."""
    told = runner.describe(folder).get("quantization")
    if not isinstance(told, dict) or told.get("mode") not in models.INT8_MODES:
        raise ValueError(f"{folder / runner.DESCRIPTION} does not tell how it was quantized; quantize the model again")
    return told


class OpenedProgram(_Exported):
    """An exported program, its files checked, in the place of a model."""

    def __init__(self, folder: Path):
        artifact = runner.Artifact(folder)
        super().__init__(folder, artifact.description)
        self.params, self.inputs = artifact.weights, artifact.description["inputs"]
        self.call: Any = artifact.call
        if self.preprocessing is not None:
            self.preprocessing = AsTheyAre(*self.preprocessing)

    def model(self, model_task: str, *, classes: int | None = None) -> models.Model:
        """The program's logits as a network's, whose parameters are the weights by path."""

        def apply(params: Any, batch: Any, *, rng: Any = None, train: bool = False) -> Any:
            inputs = {name: batch[name] for name in self.inputs}
            if "image" in inputs:
                inputs["image"] = inputs["image"].astype(jnp.uint8)
            return self.call(params, inputs)["logits"]

        def init(rng: Any, batch: Any) -> Any:
            raise ValueError(f"{self.source} is a program, which has no fresh parameters; train a model")

        return models.Model(init, apply)


class AsTheyAre(Preprocessing):
    """Images of the stored size, which the program prepares itself."""

    @property
    def view(self) -> View:
        return lambda key, image: image.astype(jnp.float32)


def _tuples(value: Any) -> Any:
    """JSON has no tuples, and configs no lists."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
