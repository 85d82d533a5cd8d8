"""Runs a model that `jaxptft export --format stablehlo` wrote. It needs jax and numpy alone; this file travels with it.

    python run.py rows.jsonl                    # a line a row: {"input_ids": [101, 2023, 102]}
    python run.py arrays.npz --out scores.npz   # arrays by the names of the inputs, as model.json lists them
    python run.py texts.txt                     # a text a line

With the package `tokenizers` rows may be texts too: {"text": "..."}, or {"text": "...", "text_pair": "..."}. Every file
is checked against SHA256SUMS before it is read.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PROGRAM, WEIGHTS, DESCRIPTION, SUMS = "model.stablehlo", "weights.npz", "model.json", "SHA256SUMS"
TOKENIZER = "tokenizer.json"
FORMAT = 1
_TOLD = ("format", "task", "labels", "inputs", "limits")
GROUP = 32  # rows a call
MULTIPLE = 16  # of lengths, so that few are compiled for


def digest(path: Path) -> str:
    """The SHA-256 of a file, read in parts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: str | Path, needed: Sequence[str] = (DESCRIPTION,)) -> None:
    """Check every file that SHA256SUMS lists, `needed` among them.

    Raises FileNotFoundError or ValueError naming the first file that is absent, damaged or not listed.
    """
    sums, expected = Path(folder) / SUMS, {}
    if not sums.is_file():
        raise FileNotFoundError(f"{sums} is missing; export the model again")
    for number, line in enumerate(sums.read_bytes().decode("utf-8", "replace").splitlines(keepends=True), start=1):
        match = re.fullmatch(r"([0-9a-f]{64})  ([\w.-]+)\n", line)
        if match is None:
            raise ValueError(f"{sums} is damaged at line {number}; export the model again")
        expected[match[2]] = match[1]
    if unlisted := [name for name in needed if name not in expected]:
        raise ValueError(f"{sums} is damaged: it does not list {unlisted[0]}; export the model again")
    for name, known in expected.items():
        path = Path(folder) / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; export the model again")
        if digest(path) != known:
            raise ValueError(f"{path} has another SHA-256 than it was written with; export the model again")


def describe(folder: str | Path) -> dict[str, Any]:
    """The contents of model.json; ValueError where it is of another version, or not what an export writes."""
    path = Path(folder) / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version, absent = description.get("version"), [name for name in _TOLD if name not in description]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); export the model again") from None
    if version != FORMAT:
        raise ValueError(f"{path} is of version {version}, and this program reads {FORMAT}")
    if absent:
        raise ValueError(f"{path} does not tell {absent[0]}; export the model again")
    return description


class Artifact:
    """A checked and loaded export; call it with arrays, or hand `call` and `weights` to jax."""

    def __init__(self, folder: str | Path):
        import jax
        import jax.export  # pyright: ignore[reportUnusedImport]

        self.folder = Path(folder)
        has_text = (self.folder / TOKENIZER).is_file()
        verify(self.folder, (PROGRAM, WEIGHTS, DESCRIPTION, *((TOKENIZER,) if has_text else ())))
        self.description = describe(self.folder)
        if self.description["format"] != "stablehlo":
            raise ValueError(f"{self.folder} was exported as {self.description['format']}, not as stablehlo")
        exported = jax.export.deserialize(bytearray((self.folder / PROGRAM).read_bytes()))
        self.call = exported.call
        with np.load(self.folder / WEIGHTS, allow_pickle=False) as stored:
            self.weights: dict[str, Any] = {name: jax.device_put(stored[name]) for name in stored.files}
        self._compiled = jax.jit(self.call)

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The outputs for a batch; an absent `attention_mask` is all ones, absent `token_type_ids` all zeros.

        Raises ValueError for arrays that do not fit, and token ids the model has no row for.
        """
        outputs = self._compiled(self.weights, self.checked(inputs))
        return {name: np.asarray(array) for name, array in outputs.items()}

    def checked(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The inputs that the program reads, of its dtypes."""
        known, limits, found = self.description["inputs"], self.description["limits"], {}
        usual = {"attention_mask": 1, "token_type_ids": 0}
        sizes: dict[str, int] = {}
        for name, given in known.items():
            if name in inputs:
                array = np.asarray(inputs[name])
            elif name in usual and "input_ids" in inputs:
                array = np.full(np.shape(inputs["input_ids"]), usual[name])
            else:
                raise ValueError(f"input {name} is missing; expected {', '.join(known)}")
            axes = given["axes"]
            fits = array.ndim == len(axes) and array.size > 0
            for axis, size in zip(axes, array.shape, strict=False):
                fits = fits and size == (sizes.setdefault(axis, size) if isinstance(axis, str) else axis)
            if not fits or not np.issubdtype(array.dtype, np.integer):
                wanted = f"{given['dtype']} [{', '.join(map(str, axes))}]"
                raise ValueError(f"input {name} is {array.dtype} {list(array.shape)}; expected {wanted}")
            found[name] = array
        for axis, most in limits.items():
            if sizes.get(axis, 0) > most:
                raise ValueError(f"{axis} is {sizes[axis]}, and the model takes {most} at most")
        rows = self.description.get("vocab_size", 0)
        if "input_ids" in found and not 0 <= found["input_ids"].min() <= found["input_ids"].max() < rows:
            raise ValueError(f"input_ids has ids outside 0 to {rows - 1}, which the model has no rows for")
        if "image" in found and not 0 <= found["image"].min() <= found["image"].max() < 256:
            raise ValueError("image has values outside 0 to 255; expected bytes")
        return {name: array.astype(known[name]["dtype"]) for name, array in found.items()}


def predict(artifact: Artifact, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """An answer for each row of token ids or text, in their order."""
    for start in range(0, len(rows), GROUP):
        part = [_encoded(artifact, row) for row in rows[start : start + GROUP]]
        batch = _padded(part, artifact.description)
        yield from _answers(artifact.description, artifact(batch), batch, part)


def _encoded(artifact: Artifact, row: Mapping[str, Any]) -> dict[str, Any]:
    """Token ids of a row that is text; others as they are, but checked."""
    inputs = artifact.description["inputs"]
    if "input_ids" not in inputs:
        raise ValueError("images come as arrays; give an .npz")
    nested = len(inputs["input_ids"]["axes"]) == 3
    if "input_ids" in row:
        ids, types = row["input_ids"], row.get("token_type_ids")
        if not _whole(ids, nested) or (
            types is not None and not (_whole(types, nested) and _sizes(types) == _sizes(ids))
        ):
            wanted = "a list of whole numbers for each choice" if nested else "a list of whole numbers"
            raise ValueError(
                f"input_ids of a row, and token_type_ids if there are any, must be {wanted}, of one length"
            )
        return dict(row)
    text, pair = row.get("text"), row.get("text_pair")
    if nested or artifact.description["task"] == "question_answering" or not isinstance(text, str):
        raise ValueError(f"a row holds {', '.join(map(str, row)) or 'nothing'}; expected input_ids")
    if not isinstance(pair, str | None):
        raise ValueError(f"text_pair of a row is {type(pair).__name__}; expected text")
    encoding = _tokenizer(artifact).encode(text, pair)
    found: dict[str, Any] = {"input_ids": encoding.ids, "token_type_ids": encoding.type_ids}
    return found | {"offsets": encoding.offsets, "special": encoding.special_tokens_mask}


def _whole(values: Any, nested: bool) -> bool:
    """Whether it is a list of whole numbers of 32 bits, or of several such lists; not empty."""
    if not isinstance(values, list) or not values:
        return False
    if nested:
        return all(_whole(entry, False) for entry in values)
    return all(type(value) is int and abs(value) < 2**31 for value in values)


def _sizes(values: list[Any]) -> list[int]:
    return [len(entry) if isinstance(entry, list) else 1 for entry in values]


def _tokenizer(artifact: Artifact) -> Any:
    if not hasattr(artifact, "tokenizer"):
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ValueError(
                "texts need the package `tokenizers` (pip install tokenizers); or give input_ids"
            ) from None
        text = artifact.description["text"]
        tokenizer = Tokenizer.from_file(str(artifact.folder / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.enable_truncation(text["max_length"], strategy="longest_first", direction=text["truncation_side"])
        artifact.tokenizer = tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    return artifact.tokenizer  # pyright: ignore[reportAttributeAccessIssue]


def _padded(part: Sequence[Mapping[str, Any]], description: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The rows as arrays of one size: of several choices, the most, and of the longest row."""
    nested = len(description["inputs"]["input_ids"]["axes"]) == 3
    texts = [
        [np.asarray(ids, np.int64) for ids in (row["input_ids"] if nested else [row["input_ids"]])] for row in part
    ]
    longest = max((len(ids) for row in texts for ids in row), default=0)
    length = max(longest, min(-(-longest // MULTIPLE) * MULTIPLE, description["limits"]["length"]))
    shape = (len(part), max(map(len, texts)), length)
    ids = np.full(shape, description["text"]["pad_id"], np.int32)
    mask, types = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for number, row in enumerate(texts):
        given = part[number].get("token_type_ids")
        for choice, tokens in enumerate(row):
            ids[number, choice, : len(tokens)], mask[number, choice, : len(tokens)] = tokens, 1
            if given is not None:
                types[number, choice, : len(tokens)] = given[choice] if nested else given
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return batch if nested else {name: array[:, 0] for name, array in batch.items()}


def _answers(
    description: Mapping[str, Any],
    outputs: Mapping[str, np.ndarray],
    batch: Mapping[str, np.ndarray],
    part: Sequence[Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    task, labels = description["task"], description["labels"]
    logits = outputs["logits"].astype(np.float64)
    shares = outputs.get("probabilities", logits).astype(np.float64)
    for number, row in enumerate(part):
        share = shares[number]
        if task == "regression":
            yield {"score": float(logits[number, 0])}
        elif task == "multiple_choice":
            share = share[: len(row["input_ids"])]
            yield {"choice": int(share.argmax()), "probabilities": _rounded(share)}
        elif task == "question_answering":
            inside = batch["attention_mask"][number] > 0
            starts, ends = logits[number, inside].T
            yield {"start_logits": _rounded(starts), "end_logits": _rounded(ends)}
        elif task == "token_classification":
            inside = np.flatnonzero(batch["attention_mask"][number])
            line = {"tags": [labels[place] for place in share[inside].argmax(-1)]}
            line |= {"scores": _rounded(share[inside].max(-1))}
            if "offsets" in row:
                kept = [place for place, special in enumerate(row["special"]) if not special]
                line = {name: [values[place] for place in kept] for name, values in line.items()}
                line["offsets"] = [list(row["offsets"][place]) for place in kept]
            yield line
        else:
            by_name = dict(zip(labels, _rounded(share), strict=True))
            if task == "multi_label":
                above = share > np.asarray(description["thresholds"])
                yield {"labels": [n for n, over in zip(labels, above, strict=True) if over], "probabilities": by_name}
            else:
                yield {"label": labels[int(share.argmax())], "probabilities": by_name}


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .json list, a .jsonl file, or a file of texts, one a line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        rows = _json(path, text)
    elif path.suffix == ".jsonl":
        rows = [_json(path, line) for line in text.split("\n") if line.strip()]
    else:
        rows = [{"text": line} for line in text.removesuffix("\n").split("\n")]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} holds no rows; expected a list of objects such as {{'input_ids': [...]}}")
    return rows


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict what a file holds; 2 after a mistake, told in one line."""
    parser = argparse.ArgumentParser(description="Predict with an exported model.")
    parser.add_argument("input", type=Path, help="rows (.jsonl, .json), texts (.txt) or arrays (.npz)")
    parser.add_argument("--out", type=Path, help="a .jsonl file, or for arrays an .npz of all outputs")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent, help="the exported folder")
    asked = parser.parse_args(arguments)
    try:
        artifact = Artifact(asked.model)
        if asked.input.suffix == ".npz":
            with np.load(asked.input, allow_pickle=False) as stored:
                outputs = artifact({name: stored[name] for name in stored.files})
            if asked.out is not None:
                np.savez(asked.out, **outputs)  # pyright: ignore[reportArgumentType]
                return 0
            lines: Any = (
                {name: values[row].tolist() for name, values in outputs.items()}
                for row in range(len(outputs["logits"]))
            )
        else:
            lines = predict(artifact, read_rows(asked.input))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        if asked.out is None:
            sys.stdout.write(text)
        else:
            asked.out.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
