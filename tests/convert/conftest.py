"""Tiny Hugging Face folders to convert: every tensor random, written by torch itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

VALUES = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 10,
}


class Folders:
    """Makes model folders below one temporary folder, reads and edits them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self, name: str, architecture: str = "BertForSequenceClassification", dtype=torch.float32, **changes):
        torch.manual_seed(0)
        model = getattr(transformers, architecture)(transformers.BertConfig(**(VALUES | changes))).eval()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.normal_(std=0.5)
        model.to(dtype).save_pretrained(self.root / name)
        return self.root / name

    def tensors(self, folder: Path) -> dict[str, np.ndarray]:
        return {name: array for file in sorted(folder.glob("*.safetensors")) for name, array in load_file(file).items()}

    def rewrite(self, folder: Path, change) -> None:
        """Replaces the tensors of a folder by what `change` makes of them."""
        tensors = change(self.tensors(folder))
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")

    def configure(self, folder: Path, drop=(), **changes) -> None:
        fields = json.loads((folder / "config.json").read_text()) | changes
        kept = {name: value for name, value in fields.items() if name not in drop}
        (folder / "config.json").write_text(json.dumps(kept))


@pytest.fixture
def folders(tmp_path) -> Folders:
    return Folders(tmp_path)


@pytest.fixture
def assert_same_tensors():
    def check(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
        assert one.keys() == other.keys()
        for name, array in one.items():
            assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape), name
            assert array.tobytes() == other[name].tobytes(), name

    return check
