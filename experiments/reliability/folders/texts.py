"""Damage to config.json and to the files of a tokenizer."""

import hashlib
import json
from typing import Any

import numpy as np

from folders.draw import MORE_FIELDS, ODD, deep, flipped, pick
from folders.sound import FIELDS, WEIGHTS, Files


def config_fields(rng: np.random.Generator, files: Files) -> None:
    fields = json.loads(files["config.json"])
    for _ in range(int(rng.integers(1, 4))):
        name = pick(rng, (*FIELDS, *MORE_FIELDS))
        if rng.random() < 0.2:
            fields.pop(name, None)
        else:
            fields[name] = pick(rng, ODD)
    files["config.json"] = json.dumps(fields).encode()


def other_families(rng: np.random.Generator, files: Files) -> None:
    """The config.json of another family, which BERT's tensors cannot fit, with fields changed."""
    from jaxptft.convert.families import FAMILIES

    family = FAMILIES[pick(rng, [name for name in FAMILIES if name != "bert"])]
    fields = family.write_config(family.read_config({}), {})
    for _ in range(int(rng.integers(0, 4))):
        fields[pick(rng, (*fields, *MORE_FIELDS))] = pick(rng, ODD)
    files["config.json"] = json.dumps({**fields, "model_type": family.name}).encode()


def config_bytes(rng: np.random.Generator, files: Files) -> None:
    content = files["config.json"]
    odd = (b"", b"{", b"[]", b"null", b"NaN", b"1e999", b"\xff\xfe{}", b"\0" * 9, b"\xef\xbb\xbf" + content, b"'a'")
    fates = (
        lambda: content[: int(rng.integers(len(content)))],
        lambda: flipped(rng, content, 0, len(content)),
        lambda: pick(rng, odd),
        lambda: content.decode().encode(pick(rng, ("utf-16", "utf-32", "utf-16-be"))),
        lambda: deep(rng),
        lambda: content[:-1] + b', "surprise": ' + deep(rng) + b"}",
        lambda: content[:-1] + b', "vocab_size": ' + b"9" * pick(rng, (3, 30, 5000)) + b"}",
    )
    files["config.json"] = pick(rng, fates)()


def no_file(rng: np.random.Generator, files: Files) -> None:
    del files[pick(rng, ("config.json", WEIGHTS))]


def tokenizers(rng: np.random.Generator, files: Files) -> None:
    name = pick(rng, ("tokenizer.json", "tokenizer_config.json", "vocab.txt"))
    content = files[name]
    fates = (
        lambda: content[: int(rng.integers(len(content)))],
        lambda: flipped(rng, content, 0, len(content)),
        lambda: pick(rng, (b"", b"[]", b"null", b"{}", b"\xff" * 20, b"\0" * 20)),
        lambda: _changed_leaf(rng, content) if name.endswith(".json") else rng.bytes(200),
    )
    files[name] = pick(rng, fates)()


def own_folder(rng: np.random.Generator, files: Files) -> None:
    """Damage to the description of an imported folder, or to its weights under the SHA-256 that they now have."""
    description = files["jaxptft.json"]
    if rng.random() < 0.6:
        description = _changed_leaf(rng, description)
    elif rng.random() < 0.3:
        description = flipped(rng, description, 0, len(description))
    else:
        content = files["params.msgpack"]
        kept = int(rng.integers(len(content)))
        files["params.msgpack"] = flipped(rng, content, 0, len(content)) if rng.random() < 0.7 else content[:kept]
        if rng.random() < 0.9:
            old, new = (hashlib.sha256(weights).hexdigest() for weights in (content, files["params.msgpack"]))
            description = description.replace(old.encode(), new.encode())
    files["jaxptft.json"] = description


def as_fields(config: dict[str, Any]) -> dict[str, Any]:
    """What of a BertConfig decides shapes, under the names that a config.json has."""
    ours = {"hidden_size": "width", "num_hidden_layers": "layers", "intermediate_size": "mlp_width"}
    ours |= {"max_position_embeddings": "positions", "type_vocab_size": "token_types", "vocab_size": "vocab_size"}
    return {**FIELDS, **{theirs: config[name] for theirs, name in ours.items() if name in config}}


def _changed_leaf(rng: np.random.Generator, content: bytes) -> bytes:
    tree = json.loads(content)
    node = tree
    while True:
        key = pick(rng, list(node))
        if not isinstance(node[key], dict) or not node[key] or rng.random() < 0.3:
            node[key] = pick(rng, ODD)
            return json.dumps(tree).encode()
        node = node[key]
