"""A model, wherever it is: a run folder, a Hugging Face folder, a converted folder, or a name on the hub."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from jaxptft import convert, train
from jaxptft.convert.families import FAMILIES
from jaxptft.convert.hf_config import read_json
from jaxptft.convert.native import DESCRIPTION
from jaxptft.data.cache import fingerprint
from jaxptft.export import runner
from jaxptft.recipes.training_settings import LAYER_RUN

QUANTIZATION = "quantization.json"  # in folders that `jaxptft quantize` writes
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.bin", "*.msgpack"]


def locate(model: str | Path) -> Path:
    """The folder that holds the weights.

    A run folder stands for its `model/`; a name that is no folder, such as `bert-base-uncased` or `owner/name`, is
    fetched from the hub. Raises FileNotFoundError, saying what was looked for.
    """
    folder = Path(model)
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    if (folder / "config.yaml").is_file() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is a run that has no model/ yet; finish it with --resume")
    if (folder / QUANTIZATION).is_file():
        raise FileNotFoundError(f"{folder} is quantized, to be asked alone; give the model that it was made from")
    if (folder / "export.json").is_file() and (folder / runner.DESCRIPTION).is_file():
        raise FileNotFoundError(f"{folder} is an export, to be asked alone; give the model that it was made from")
    if (folder / "config.json").is_file() or (folder / DESCRIPTION).is_file():
        return folder
    if folder.exists():
        raise FileNotFoundError(f"{folder} holds no model: expected config.json, a run's model/, or a converted folder")
    if Path(model).is_absolute() or str(model).startswith(".") or str(model).count("/") > 1:
        raise FileNotFoundError(f"{model} does not exist")
    return _from_hub(str(model))


def open_model(
    model: str | Path,
    *,
    heads: str | tuple[str, ...] = "source",
    family: str | None = None,
    allow_bin: bool = False,
    allow_unused: tuple[str, ...] = (),
    allow_missing: tuple[str, ...] = (),
) -> tuple[Path, convert.Checkpoint]:
    """The folder and the checkpoint in it, with those of its heads that are named ("source": all)."""
    folder = locate(model)
    if (folder / DESCRIPTION).is_file():
        return folder, convert.read_native(folder)
    options: dict[str, Any] = {"family": family, "allow_bin": allow_bin, "allow_missing": allow_missing}
    return folder, convert.load(folder, heads=heads, allow_unused=allow_unused, **options)


def refuse_place(out: Path, model: str, *, overwrite: bool) -> None:
    """FileExistsError where what is made of a model cannot go there, ValueError where it would replace the model."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose a folder for --out")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise FileExistsError(f"{out} exists and is not empty; choose another --out, or pass --overwrite")
    places = (Path(model), Path(model) / "model")  # of a run, its model
    if out.exists() and any(place.resolve().is_relative_to(out.resolve()) for place in places):
        raise ValueError(f"{model} is in {out}, which --overwrite replaces; choose another --out")


def model_fingerprint(params: Any, architecture: Any, preprocessing: Any = None) -> str:
    """What tells a model from another: its parameters, what is computed with them, and how images come to it.

    Of the architecture's fields those count that are not as usual, so that one which a later version adds changes none,
    and not how layers run.
    """
    counted = [field.name for field in fields(architecture) if field.name not in LAYER_RUN]
    described = {name: getattr(architecture, name) for name in counted}
    usual = {field.name: field.default for field in fields(architecture)}
    own = {name: value for name, value in sorted(described.items()) if value != usual[name]}
    return fingerprint([train.fingerprint(params), type(architecture).__name__, repr(own), repr(preprocessing)])


def served_fingerprint(opened: Any) -> str:
    """What tells a model that was opened from another; of an exported program, that of its files."""
    if isinstance(opened.source, str) and (Path(opened.source) / runner.PROGRAM).is_file():
        folder = Path(opened.source)
        return fingerprint([runner.digest(folder / name) for name in (runner.PROGRAM, runner.WEIGHTS)])
    return model_fingerprint(opened.params, opened.config, opened.preprocessing)


def can_have(folder: Path, head: str, *, family: str | None = None) -> bool:
    """Whether the models of a folder's family have such a head; True where no known family is named."""
    fields = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    named = fields.get("model_type") or family
    return named not in FAMILIES or head in FAMILIES[named].heads


def _from_hub(name: str) -> Path:
    import huggingface_hub

    try:
        has_safetensors = any(file.endswith(".safetensors") for file in huggingface_hub.list_repo_files(name))
        skipped = ["*.bin", "*.msgpack"] if has_safetensors else []
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=skipped))
    except Exception:  # offline, gated, renamed: the hub's client has many errors, and a cached copy may still do
        try:
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True))
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FileNotFoundError(f"{name} is no folder, and the hub did not give it: {reason}") from None
