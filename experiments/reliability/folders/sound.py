"""A sound model folder, made by hand: a tiny BERT classifier, whole or in two shards, with a tokenizer."""

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

FIELDS = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "vocab_size": 17,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "hidden_act": "gelu",
    "max_position_embeddings": 10,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "id2label": {"0": "neg", "1": "pos"},
    "label2id": {"neg": 0, "pos": 1},
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijkl"]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
Files = dict[str, bytes]


def shapes(fields: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a BERT classifier of two classes by Hugging Face's names, as `transformers` builds it."""
    width, wide = fields["hidden_size"], fields["intermediate_size"]
    rows = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    found: dict[str, tuple[int, ...]] = {
        f"bert.embeddings.{name}_embeddings.weight": (fields[key], width) for name, key in rows.items() if fields[key]
    }

    def norm(name: str) -> None:
        found.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def dense(name: str, outputs: int, inputs: int) -> None:
        found.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    norm("bert.embeddings.LayerNorm")
    for layer in range(fields["num_hidden_layers"]):
        within = f"bert.encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            dense(f"{within}.attention.{name}", width, width)
        norm(f"{within}.attention.output.LayerNorm")
        dense(f"{within}.intermediate.dense", wide, width)
        dense(f"{within}.output.dense", width, wide)
        norm(f"{within}.output.LayerNorm")
    dense("bert.pooler.dense", width, width)
    dense("classifier", 2, width)
    return found


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    """A file of these float32 tensors, written by hand: the length of the header, the header, the values."""
    header, place = {}, 0
    for name, array in tensors.items():
        offsets = [place, place + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        place += array.nbytes
    return joined(json.dumps(header).encode(), b"".join(array.tobytes() for array in tensors.values()))


def joined(header: bytes, values: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + values


def parted(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def whole_folder(form: str) -> Files:
    """The files of a sound folder: in "one file", in "shards", or as "our own"."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes(FIELDS).items()}
    files = {"config.json": json.dumps(FIELDS).encode(), **tokenizer_files(WORDS)}
    if form == "one file":
        return files | {WEIGHTS: safetensors(tensors)}
    if form == "our own":
        return _imported(files | {WEIGHTS: safetensors(tensors)})
    weight_map = {name: SHARDS[number % 2] for number, name in enumerate(tensors)}
    index = {"metadata": {"total_size": sum(array.nbytes for array in tensors.values())}, "weight_map": weight_map}
    held = {shard: {name: tensors[name] for name, place in weight_map.items() if place == shard} for shard in SHARDS}
    shards = {shard: safetensors(inside) for shard, inside in held.items()}
    return files | {INDEX: json.dumps(index).encode(), **shards}


def _imported(files: Files) -> Files:
    from jaxptft import convert

    with tempfile.TemporaryDirectory() as temporary:
        own = Path(temporary) / "own"
        convert.import_folder(write_folder(Path(temporary) / "source", files), own)
        return {path.name: path.read_bytes() for path in own.iterdir()}


def tokenizer_files(words: list[str]) -> Files:
    """A WordPiece tokenizer of these words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # pyright: ignore[reportAttributeAccessIssue]
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    config = {"tokenizer_class": "BertTokenizer", "model_max_length": 512, **special}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "vocab.txt": ("\n".join(words) + "\n").encode(),
    }


def write_folder(folder: Path, files: Files) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
