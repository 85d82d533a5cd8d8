"""Model folders that are damaged or lie, each read by `convert.load` and `inspect`: 20,000 of them in the full lane.

A folder is a tiny BERT classifier whose tensors are named and sized here by hand. One thing of it is changed: bits of
the safetensors header, its length, offsets, shapes, types or names, the file's length, config.json, the index of
shards, or the tokenizer's files. A trial is survived where the folder loads with every tensor that its config.json asks
for, in float32, or where one line names the file, the tensor or the field; in either case within `SECONDS`, within
`MEMORY` and without opening a file beside the folder. Bits of the tensors' values may flip unseen, for the format has
no checksum.
"""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from folders import tensors, texts
from folders.sound import FIELDS, INDEX, WEIGHTS, Files, shapes, whole_folder, write_folder
from trials import Trials, main

TRIALS = {"fast": 1_000, "full": 20_000}
SECONDS = 5.0  # a trial's; it takes some milliseconds
MEMORY = 1 << 30  # bytes that a trial may add to its process
CHUNK = 200  # trials of one process
LONGEST = 3000  # characters of a message

KINDS: dict[str, tuple[Callable[[np.random.Generator, Files], None], float]] = {
    "header bits": (tensors.header_bits, 5),
    "header length": (tensors.header_length, 2),
    "header not JSON": (tensors.header_json, 2),
    "offsets": (tensors.offsets, 4),
    "shapes": (tensors.header_shapes, 4),
    "types": (tensors.header_types, 3),
    "names": (tensors.tensor_names, 3),
    "cut": (tensors.cut, 2),
    "longer": (tensors.longer, 1),
    "noise": (tensors.noise, 1),
    "bits of values": (tensors.value_bits, 1),
    "config fields": (texts.config_fields, 8),
    "config bytes": (texts.config_bytes, 4),
    "other families": (texts.other_families, 4),
    "no file": (texts.no_file, 0.2),
    "tokenizer files": (texts.tokenizers, 1),
    "shards": (tensors.shards, 4),
    "links": (tensors.links, 0.5),
    "our own": (texts.own_folder, 4),
}
FORMS = {"shards": "shards", "links": "shards", "our own": "our own"}  # of the sound folder; else one file


def _prepared(number: int, root: Path, whole: dict[str, Files]) -> tuple[str, Path]:
    """The folder of a trial and its kind; both are a function of the number alone."""
    rng = np.random.default_rng((17, number))
    shares = np.array([share for _, share in KINDS.values()])
    kind = list(KINDS)[int(rng.choice(len(KINDS), p=shares / shares.sum()))]
    files = dict(whole[FORMS.get(kind, "one file")])
    KINDS[kind][0](rng, files)
    link = json.loads(files.pop("LINK", b"[]"))
    outside = str(root / "outside.safetensors").encode()
    if INDEX in files:
        files[INDEX] = files[INDEX].replace(b"OUTSIDE", outside)
    folder = write_folder(root / "model", files)
    if link:
        name, target = link
        (folder / name).unlink()
        if target == "FIFO":
            os.mkfifo(folder / name)
        else:
            (folder / name).symlink_to(name if target == "SELF" else target)
    return kind, folder


def _told(error: Exception, folder: Path) -> str:
    """What is wrong with an error: "" for one line that names where to look."""
    message = str(error)
    if type(error) not in (ValueError, FileNotFoundError):
        return f"raised {type(error).__name__}: {message}"
    if "\n" in message or "\r" in message or len(message) > LONGEST:
        return f"message of {len(message)} characters, {len(message.splitlines())} lines: {message}"
    if not any(mark in message for mark in (str(folder), "config.json", "model_type")):
        return f"names neither file nor field: {message}"
    return ""


def _survey(folder: Path, kind: str) -> tuple[str, bool]:
    """What was not survived, or "", and whether the folder was taken."""
    from jaxptft import convert, data
    from jaxptft.recipes.model_source import open_model

    if kind == "tokenizer files":
        try:
            tokenizer = data.load_tokenizer(folder)
            data.check_vocabulary(tokenizer, 10**9)
        except Exception as error:
            return _told(error, folder), False
    try:
        refusal = "; ".join(convert.inspect(folder).problems)
    except Exception as error:
        if problem := _told(error, folder):
            return f"inspect {problem}", False
        refusal = str(error)
    try:
        _, checkpoint = open_model(folder)
    except Exception as error:
        problem = _told(error, folder)
        return (f"load {problem}" if problem else ""), False
    if refusal:
        return f"loaded, where inspect says: {refusal}", True
    return ("loaded as what it is not" if kind == "other families" else _misfit(checkpoint, folder)), True


def _misfit(checkpoint: Any, folder: Path) -> str:
    """What a loaded model lacks of what its config.json asks for."""
    import jax

    asked = dict(FIELDS)
    if (folder / "jaxptft.json").is_file():
        read = texts.as_fields(json.loads((folder / "jaxptft.json").read_bytes())["config"])
    else:
        read = json.loads((folder / "config.json").read_bytes())
    # BertConfig's own defaults in `transformers` stand in for absent fields.
    usual = {"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}
    usual |= {"max_position_embeddings": 512, "type_vocab_size": 2}
    asked |= {name: read.get(name, value) for name, value in usual.items()}
    expected = sorted(shape for name, shape in shapes(asked).items())
    leaves = jax.tree.leaves(checkpoint.params)
    # As multisets, for kernels are the transposes of weights; a config may name an architecture without these heads.
    found = sorted(tuple(leaf.shape) for leaf in leaves)
    if read.get("architectures") == FIELDS["architectures"] or "classifier" in checkpoint.params:
        if sorted(map(sorted, found)) != sorted(map(sorted, expected)):
            return f"loaded with shapes {found}, expected {expected}"
    elif len(found) < len(expected) - 4:
        return f"loaded with {len(found)} parameters, expected {len(expected)}"
    if any(leaf.dtype != np.float32 for leaf in leaves):
        return "loaded with parameters that are not float32"
    return ""


def _child(numbers: range, pipe: int, root: Path, whole: dict[str, Files]) -> None:
    """Trials in a process of their own: a line on the pipe before each, and one with what came of it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, wherever it hangs
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    limit = pages * resource.getpagesize() + MEMORY if pages else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    beside: list[str] = []
    place = str(root / "model")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, mode = str(Path(os.fsdecode(arguments[0])).absolute()), arguments[1]
            inside = path == place or path.startswith(place + os.sep)
            writes = isinstance(mode, str) and bool(set(mode) & set("wax+"))
            if not inside and (writes or path.startswith(str(root))) and path not in ("/dev/null",):
                beside.append(path)

    sys.addaudithook(watch)
    with os.fdopen(pipe, "w") as say:
        for number in numbers:
            kind, folder = _prepared(number, root, whole)
            beside.clear()
            say.write(json.dumps([number, kind]) + "\n")
            say.flush()
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            problem, taken = _survey(folder, kind)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if beside and not problem:
                problem = f"opened {beside[0]}"
            if sorted(path.name for path in root.iterdir()) != ["model", "outside.safetensors"]:
                problem = problem or "a file was written beside the folder"
            say.write(json.dumps([number, kind, problem, taken]) + "\n")
            say.flush()
            shutil.rmtree(folder)


def _lines(numbers: range, root: Path, whole: dict[str, Files]) -> Iterator[list[Any]]:
    """What a forked child says of the trials; at its end [status]."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        status = 1
        try:
            _child(numbers, writing, root, whole)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as told:
        for line in told:
            yield json.loads(line)
    yield [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]


def weights_fuzz(trials: Trials, lane: str) -> None:
    """Damaged folders in forked processes, so that a crash or a hang is one trial's, and is counted."""
    from jaxptft import convert, data

    whole = {form: whole_folder(form) for form in ("one file", "shards", "our own")}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve()
        for files in whole.values():  # what is sound loads; and whatever is imported late is imported by now
            folder = write_folder(root / "sound", files)
            problem, taken = _survey(folder, "tokenizer files")
            trials.check(taken and not problem, f"sound folder: {problem}", of="sound")
            assert convert.load(folder).manifest is not None
            data.load_tokenizer(folder)
            shutil.rmtree(folder)
        (root / "outside.safetensors").write_bytes(whole["one file"][WEIGHTS])
        number, last = 0, TRIALS[lane]
        loaded: Counter[str] = Counter()
        while number < last:
            begun: list[Any] | None = None
            for line in _lines(range(number, min(number + CHUNK, last)), root, whole):
                if len(line) == 2:
                    begun = line
                elif len(line) == 4:
                    begun, number = None, line[0] + 1
                    loaded[line[1]] += line[3]
                    trials.check(not line[2], f"trial {line[0]} ({line[1]}): {line[2]}", of=line[1])
                elif line[0]:
                    which = begun or [number, "before a trial began"]
                    how = "hung" if line[0] == -signal.SIGALRM else f"ended the process with {line[0]}"
                    trials.failed(f"trial {which[0]} ({which[1]}): {how}")
                    number = which[0] + 1
                    shutil.rmtree(root / "model", ignore_errors=True)
        trials.facts["loaded"] = dict(loaded)


if __name__ == "__main__":
    sys.exit(main({"weights_fuzz": weights_fuzz}, script=__file__))
