"""Files that would run code, write elsewhere, or fill the memory, given wherever the package reads files.

    python experiments/reliability/malicious.py --lane full    # results/malicious_full.json

Each payload would leave a witness file. A trial is survived where none has, nothing outside the folder has changed, and
the answer is one line (or a sound model, of which nothing was run). That the payloads work is tried first, on a raw
unpickle.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
from folders.sound import FIELDS, INDEX, whole_folder, write_folder
from trials import Trials, main

from jaxptft import convert, data
from jaxptft.cli import main as command_line
from jaxptft.recipes.settings import read_yaml

REFUSALS = (ValueError, OSError)


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def payloads(witness: Path) -> dict[str, Any]:
    """Objects whose unpickling makes the witness, by what they call."""
    touch, write = f"touch {witness}", f"open({str(witness)!r}, 'w')"
    return {
        "os.system": Calls(os.system, touch),
        "eval": Calls(eval, write),
        "exec": Calls(exec, write),
        "subprocess": Calls(subprocess.call, ["touch", str(witness)]),
        "open": Calls(open, str(witness), "w"),
        "nested": {"a": [1, {"b": (Calls(os.system, touch),)}]},
    }


def pickles(trials: Trials, lane: str) -> None:
    """pytorch_model.bin in every form that torch has had, with a call in its pickle."""
    forms = {"raw": _raw, "zip": _zip, "zip, another name": _zip_elsewhere, "tar": _tar, "legacy": _legacy}
    for protocol in range(6) if lane == "full" else (2, 4):
        for form, write in forms.items():
            with _place() as (folder, witness):
                for name, payload in payloads(witness).items():
                    for place in ("alone", "among others"):
                        value = payload if place == "alone" else {"classifier.bias": payload, "x": 1}
                        model = _model(folder / f"{form}-{name}-{place}")
                        for weights in model.glob("*.safetensors"):
                            weights.unlink()
                        content = pickle.dumps(value, protocol=protocol)
                        write(model / "pytorch_model.bin", content)
                        if form == "raw" and place == "alone":
                            with contextlib.suppress(Exception):
                                pickle.loads(content)
                            trials.check(
                                witness.exists(), f"{name}: the payload itself does nothing", of="payload works"
                            )
                            witness.unlink(missing_ok=True)
                        told = f"{form}, protocol {protocol}, {name} {place}"
                        _refused(trials, told, lambda m=model: convert.load(m, allow_bin=True), folder, witness)
                        _refused(trials, told, lambda m=model: convert.load(m), folder, witness)


def arrays(trials: Trials, lane: str) -> None:
    """Arrays of objects in the caches that are read back: tokens of a table, and what a run has measured."""
    from jaxptft.recipes.measured import Measured

    for name in payloads(Path("witness")):
        with _place() as (folder, witness):
            payload = payloads(witness)[name]
            bad = np.array([payload], dtype=object)
            tokenizer = data.load_tokenizer(_model(folder / "model"))
            table = data.make_table(["a b c", "d e"], source="rows")
            tokenize = lambda t=table, k=tokenizer: data.tokenize(t, k, 8)  # noqa: E731
            tokenize()
            spoilt = [*(folder / "cache").rglob("*.npy")]
            trials.check(bool(spoilt), "the cache of tokens holds no array", of="cache found")
            for path in spoilt:
                np.save(path, bad, allow_pickle=True)
            _refused(trials, f"tokens, {name}", tokenize, folder, witness)  # made anew, since the hash differs
            for path in spoilt:
                np.save(path, bad, allow_pickle=True)
                _record(path)
            _refused(trials, f"tokens and their manifest, {name}", tokenize, folder, witness)
            measured = Measured(folder / "run", resume=False)
            measured.take("importance", "of", lambda: {"a": np.ones(2)}, like={"a": 0})
            measured.keep()
            for path in (folder / "run").rglob("*.npz"):
                np.savez(path, leaf_0=bad, allow_pickle=True)
                _record(path)
            again = Measured(folder / "run", resume=True)
            take = lambda m=again: m.take("importance", "of", lambda: {"a": np.ones(2)}, like={"a": 0})  # noqa: E731
            _refused(trials, f"measured, {name}", take, folder, witness)


def remote_code(trials: Trials, lane: str) -> None:
    """Folders that name Python files of their own, as `trust_remote_code` runs them."""
    module = "open({!r}, 'w').close()\nclass Any(object):\n    pass\n"
    names = ["AutoModel", "AutoConfig", "AutoTokenizer", "AutoModelForSequenceClassification"]
    for name in names:
        for model_type in ("bert", "own"):
            with _place() as (folder, witness):
                model = _model(folder / "model")
                for file in ("modeling_own", "tokenization_own", "configuration_own"):
                    (model / f"{file}.py").write_text(module.format(str(witness)))
                fields = {**FIELDS, "auto_map": {name: "modeling_own.Any"}, "model_type": model_type}
                (model / "config.json").write_text(json.dumps(fields))
                settings = json.loads((model / "tokenizer_config.json").read_text())
                settings |= {"auto_map": {"AutoTokenizer": ["tokenization_own.Any", None]}, "tokenizer_class": "Any"}
                (model / "tokenizer_config.json").write_text(json.dumps(settings))
                rows = folder / "rows.csv"
                rows.write_text("text,label\n" + "a b,x\nc d,y\n" * 8)
                told = f"{name} of {model_type}"
                calls = {
                    "load": lambda m=model: convert.load(m),
                    "inspect": lambda m=model: convert.inspect(m),
                    "tokenizer": lambda m=model: data.load_tokenizer(m),
                    "convert": lambda m=model, f=folder: _command("convert", "import", str(m), str(f / "out")),
                    "finetune": lambda m=model, r=rows, f=folder: _command(
                        *("finetune", "--model", str(m), "--train", str(r), "--steps", "1", "--max-length", "8"),
                        *("--out", str(f / "run")),
                    ),
                }
                for call, do in calls.items():
                    if call != "finetune" or lane == "full" or name == "AutoModel":
                        _refused(trials, f"{told}, {call}", do, folder, witness)


def elsewhere(trials: Trials, lane: str) -> None:
    """Indexes of shards that name files outside their folder, which exist and are sound."""
    with _place() as (folder, witness):
        outside = _model(folder / "outside")
        paths = [
            "../outside/model.safetensors",
            str(outside / "model.safetensors"),
            "x/../../outside/model.safetensors",
        ]
        paths += ["..\\outside\\model.safetensors", "/etc/passwd", "/dev/zero", "/dev/stdin", ".", "", "\0", "a\nb"]
        for number, path in enumerate(paths):
            for every in (True, False):
                model = write_folder(folder / f"model{number}{every}", whole_folder("shards"))
                index = json.loads((model / INDEX).read_text())
                named = index["weight_map"]
                for name in list(named) if every else list(named)[:1]:
                    named[name] = path
                (model / INDEX).write_text(json.dumps(index))
                told = f"shard {path!r}"
                _refused(trials, told, lambda m=model: convert.load(m), folder, witness, error=True)
                _refused(trials, told, lambda m=model: convert.inspect(m), folder, witness, error=True)


def pictures(trials: Trials, lane: str) -> None:
    """Images that unpack to far more than they hold, end early, or are no images."""
    drawn = random.Random(0)
    sound = _png(8, 8, noise=drawn)
    bad = {
        f"{side} x {side}, of which nothing follows": _png(side, side, rows=1) for side in (30_000, 60_000, 2**31 - 1)
    }
    bad["a bomb"] = _png(20_000, 20_000, rows=20_000) if lane == "full" else _png(15_000, 15_000, rows=15_000)
    # Before the last pixels: what only lacks its checksums still shows all of them.
    bad |= {f"cut at {cut}": sound[:cut] for cut in sorted(drawn.sample(range(1, len(sound) - 24), 12))}
    bad |= {"empty": b"", "text": b"hello", "python": b"import os", "pickle": pickle.dumps(1)}
    for name, content in bad.items():
        with _place() as (folder, witness):
            for kind in ("x", "y"):
                (folder / "rows" / kind).mkdir(parents=True)
                for number in range(2):
                    (folder / "rows" / kind / f"{number}.png").write_bytes(sound)
            (folder / "rows" / "x" / "bad.png").write_bytes(content)
            read = lambda f=folder: data.read_images(str(f / "rows"), size=(8, 8), cache=False)  # noqa: E731
            _refused(trials, name, read, folder, witness, error=True, names="bad.png")


def scripts(trials: Trials, lane: str) -> None:
    """Folders of rows with a loading script, and YAML that would build objects."""
    with _place() as (folder, witness):
        rows = folder / "rows"
        rows.mkdir()
        (rows / "rows.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
        _refused(trials, "loading script", lambda: data.read_table(str(rows)), folder, witness, error=True)
        tags = {
            "apply": f"!!python/object/apply:os.system ['touch {witness}']",
            "new": f"!!python/object/new:os.system ['touch {witness}']",
            "name": "!!python/name:os.system",
            "module": "!!python/module:os",
            "apply in a list": f"[1, !!python/object/apply:subprocess.call [['touch', '{witness}']]]",
        }
        for name, tag in tags.items():
            path = folder / f"{name.replace(' ', '_')}.yaml"
            path.write_text(f"steps: {tag}\n")
            _refused(trials, f"YAML, {name}", lambda p=path: read_yaml(p), folder, witness, error=True)
            run = ("finetune", "--config", str(path), "--out", str(folder / "run"))
            _refused(trials, f"YAML, {name}, command", lambda r=run: _command(*r), folder, witness, error=True)


@contextlib.contextmanager
def _place() -> Iterator[tuple[Path, Path]]:
    """A folder to work in, and where a payload would leave its witness."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "inside"
        folder.mkdir()
        os.environ["JAXPTFT_CACHE"] = str(folder / "cache")
        yield folder, Path(made) / "witness"


def _model(folder: Path) -> Path:
    return write_folder(folder, whole_folder("one file"))


def _refused(
    trials: Trials,
    told: str,
    do: Callable[[], Any],
    folder: Path,
    witness: Path,
    *,
    error: bool = False,
    names: str = "",
) -> None:
    """Count whether `do` ran nothing and ended well, or in one line that names `names`; with `error` it must not end
    well."""
    outcome, fault = "clean", None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of a picture that is too large
            do()
        fault = "nothing was refused" if error else None
    except REFUSALS as refusal:
        said = str(refusal)
        outcome = "refused"
        fault = None if said and "\n" not in said and len(said) < 2000 and names in said else f"said {said[:300]!r}"
    except Exception as other:
        fault = f"{type(other).__name__}: {other}"
    beside = sorted(path.name for path in folder.parent.iterdir() if path != folder)
    if witness.exists() or beside:
        fault = f"left {beside}"
        witness.unlink(missing_ok=True)
    trials.check(fault is None, f"{told}: {fault}", of=outcome)


def _record(path: Path) -> None:
    """Write a changed file's size and hash into its cache's manifest, as one who may write there can."""
    manifest = path.parent / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"][path.name] = [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
    manifest.write_text(json.dumps(content))


def _command(*flags: str) -> None:
    """A command line in this process; a ValueError of what it complains of."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        status = command_line(flags)
    lines = [line for line in err.getvalue().splitlines() if line.startswith("jaxptft: error: ")]
    if status:
        raise ValueError(lines[0] if len(lines) == 1 else f"status {status}\n{err.getvalue()}")


def _raw(path: Path, pickled: bytes) -> None:
    path.write_bytes(pickled)


def _zip(path: Path, pickled: bytes, inner: str = "archive/data.pkl") -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(inner, pickled)
        archive.writestr("archive/version", "3\n")


def _zip_elsewhere(path: Path, pickled: bytes) -> None:
    _zip(path, pickled, "data.pkl")


def _tar(path: Path, pickled: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled)
            archive.addfile(entry, io.BytesIO(pickled))


def _legacy(path: Path, pickled: bytes) -> None:
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001, "type_sizes": {}}]
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in head) + pickled)


def _png(width: int, height: int, rows: int | None = None, noise: random.Random | None = None) -> bytes:
    """Black, or noise, of which `rows` rows are there."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, packed = zlib.compressobj(9), b""
    row = bytes(1 + min(width, 2**20))
    for _ in range(height if rows is None else rows):
        packed += packer.compress(row if noise is None else b"\0" + noise.randbytes(width))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed + packer.flush()) + chunk(b"IEND", b"")


if __name__ == "__main__":
    rows = {
        "pickles": pickles,
        "arrays": arrays,
        "remote_code": remote_code,
        "elsewhere": elsewhere,
        "pictures": pictures,
        "scripts": scripts,
    }
    sys.exit(main(rows, script=__file__))
