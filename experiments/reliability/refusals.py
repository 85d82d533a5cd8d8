"""What differs on resume is refused by its name, in one line: every value of a config, and what a run reads."""

import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from forked.processes import QUICK_COMPILES
from kills import finish, prepared
from pydantic import BaseModel
from tiny import runs
from tiny.runs import Runs
from trials import Trials, main

from jaxptft import cli
from jaxptft.recipes import distill, finetune, pretrain, pretrain_images, run_folder

CONFIGS: dict[str, Any] = {
    "finetune": finetune.Config,
    "pretrain": pretrain.Config,
    "pretrain images": pretrain_images.Config,
    "distill": distill.Config,
}
RUN_OF = {
    "finetune": "finetune l2_to_pretrained",
    "pretrain": "mlm",
    "pretrain images": "images vae",
    "distill": "distill",
}
FORMS = ("resume", "overwrite", "out", "config")  # how a run is asked for, not what it is


def leaves(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that holds a value, with dots into groups, and its type."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.annotation


def another(kind: Any, before: Any, rng: random.Random) -> Any:
    """A value of the type which is not `before`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return rng.choice([value for value in inner if value != before])
    if origin is tuple:
        return [*(before or ()), "another" if inner[0] is str else 3]
    if origin is dict:
        return {**(before or {}), "another/**": 0.5 if inner[1] is float else {"rate": 0.5}}
    if inner:  # a union
        return another(rng.choice([part for part in inner if part is not NoneType]), before, rng)
    if kind is bool:
        return not before
    if kind is int:
        return (before or 0) + rng.randrange(1, 4)
    if kind is float:
        return before / 2 if before else 0.25
    return f"{before or ''}another"


def changed(values: dict[str, Any], key: str, kind: Any, rng: random.Random) -> dict[str, Any]:
    copy = json.loads(json.dumps(values))
    group, *rest = key.split(".")
    place = copy
    for name in rest:
        place, group = place.setdefault(group, {}), name
    place[group] = another(kind, place.get(group), rng)
    return copy


def resume_with(command: str, out: Path, values: dict[str, Any]) -> tuple[int, str]:
    """Exit status and complaint of a resume with these values, in this process: it is refused before it computes."""
    file = out.with_name("changed.yaml")
    file.write_text(yaml.safe_dump(values))
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        status = cli.main([*command.split(), "--config", str(file), "--resume"])
    return status, told.getvalue()


def is_refusal(status: int | None, said: str, *named: str) -> bool:
    """Status 2 and one line of complaint, which may come after what was done before, that names one of these."""
    *before, last = said.removesuffix("\n").split("\n")
    complaints = [line for line in before if line.startswith("jaxptft:") or "Traceback" in line]
    return status == 2 and not complaints and last.startswith("jaxptft: error: ") and any(key in last for key in named)


def config_values(trials: Trials, lane: str) -> None:
    """Each key changed alone: refused by its name, or among those that may."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        made = Runs(Path(scratch, "made"))
        for command, kind in CONFIGS.items():
            words, flags = made.lines[RUN_OF[command]]
            out = made.folder / f"run-{command.replace(' ', '-')}"
            given = runs.line(words, flags, out)[len(words.split()) :]
            run_folder.claim(out, cli._parse(kind, command, given), resume=False, overwrite=False)
            recorded = yaml.safe_load((out / "config.yaml").read_text())
            keys = [(key, of) for key, of in leaves(kind) if key not in FORMS]
            for key, of in keys if lane == "full" else rng.sample(keys, 10):
                values = changed(recorded, key, of, rng)
                if key in run_folder._MAY_CHANGE:
                    if key == "epochs":
                        values["steps"] = None  # one length in place of the other
                    complaint = accepted(kind, out, values)
                    trials.check(not complaint, f"{command}, {key} may change: {complaint}", of="may change")
                    continue
                status, said = resume_with(command, out, values)
                named = is_refusal(status, said, f"error: {key} is ")
                # A value that does not go with the others is refused as in any run, by the name of one of the two.
                alone = is_refusal(status, said, *kind.model_fields)
                how = "refused on resume" if named else "refused in any run"
                trials.check(named or alone, f"{command}, {key}: status {status}, {said}", of=how)


def accepted(kind: Any, out: Path, values: dict[str, Any]) -> str:
    try:
        config = kind.model_validate({**values, "out": str(out), "resume": True})
        run_folder.check(out, config, resume=True, overwrite=False)
    except ValueError as error:
        return str(error)
    return ""


# What a run reads


def edit_text(path: Path) -> None:
    path.write_text(path.read_text().replace("mat", "map", 1))


def drop_row(path: Path) -> None:
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def swap_rows(path: Path) -> None:
    lines = path.read_text().splitlines()
    other = next(number for number in range(2, len(lines)) if lines[number] != lines[1])
    lines[1], lines[other] = lines[other], lines[1]
    path.write_text("\n".join(lines) + "\n")


def change_label(path: Path) -> None:
    lines = path.read_text().splitlines()
    text, _, label = lines[1].rpartition(",")
    lines[1] = f"{text},{'good' if label == 'bad' else 'bad'}"
    path.write_text("\n".join(lines) + "\n")


def change_weights(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = max(tensors, key=lambda name: tensors[name].size)
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] += 1.0
    save_file(tensors, file)


def change_activation(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_act": "relu"}))


def change_casing(folder: Path) -> None:
    """Of the tokenizer, which then cuts capital letters into unknown pieces."""
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())
    whole["normalizer"]["lowercase"] = not whole["normalizer"].get("lowercase")
    file.write_text(json.dumps(whole))


def change_pixel(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    file = min(folder.rglob("*.png"))
    pixels = np.array(Image.open(file))
    pixels[0, 0] += 1
    Image.fromarray(pixels).save(file)


def delete_image(folder: Path) -> None:
    min(folder.rglob("*.png")).unlink()


Read = tuple[str, str, Callable[[Path], None], str]  # the run, the flag whose file changes, how, and what is named
READ: tuple[Read, ...] = (
    *(("finetune l2_to_pretrained", "train", edit, "training data") for edit in (edit_text, drop_row, swap_rows)),
    ("finetune l2_to_pretrained", "train", change_label, "training data"),
    *(("finetune l2_to_pretrained", "eval", edit, "evaluation data") for edit in (edit_text, drop_row, change_label)),
    ("finetune l2_to_pretrained", "model", change_weights, "initial model"),
    ("finetune l2_to_pretrained", "model", change_activation, ""),
    ("finetune l2_to_pretrained", "model", change_casing, "tokenizer"),
    *(("mlm", "corpus", edit, "data") for edit in (edit_text, drop_row)),
    ("mlm", "tokenizer", change_casing, "tokenizer"),
    ("mlm, packed, frozen", "model", change_weights, "initial model"),
    *(("images vae", "data", edit, "data") for edit in (change_pixel, delete_image)),
    ("distill", "teacher", change_weights, "teacher"),
)


def what_is_read(trials: Trials, lane: str) -> None:
    """A run of copies, one of which is changed before it goes on."""
    with prepared(QUICK_COMPILES, models=("encoder", "teacher") if lane == "full" else ("encoder",)) as (server, made):
        for name, flag, edit, expected in READ if lane == "full" else READ[3:14:5]:
            words, flags = made.lines[name]
            copy, out = made.folder / "copy", made.folder / "run"
            for place in (copy, out):
                shutil.rmtree(place, ignore_errors=True)
            copy.mkdir()
            original = Path(flags[flag])
            mine = copy / original.name
            (shutil.copytree if original.is_dir() else shutil.copy)(original, mine)
            finish(server, runs.line(words, {**flags, flag: mine, "steps": 1}, out))
            edit(mine / "model" if (mine / "model").is_dir() else mine)
            started = server.call(runs.__file__, "command", *words.split(), "--resume", "--out", out, "--steps", "2")
            _, said = started.communicate(300)
            started.close()
            what = f"{name}, {flag}, {edit.__name__}"
            trials.check(
                is_refusal(started.returncode, said, expected), f"{what}: status {started.returncode}, {said}", of=what
            )


if __name__ == "__main__":
    sys.exit(main({"config_values": config_values, "what_is_read": what_is_read}, script=__file__))
